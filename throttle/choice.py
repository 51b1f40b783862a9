"""Which provider a ticket names: the asker itself, then the nearest subnet, then all the others in turn. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from throttle.tickettab import Service
from throttle.view import Pool


def slots(service: Service, pool: Pool, now: float) -> dict[str, int]:
    """Return the slots of every provider as they count at `now`: written, measured, or offered at run time."""
    found = {}
    for provider in service.providers:
        tuned = pool.tuned.get(provider.name) if service.adaptive is not None and provider.slots else None
        found[provider.name] = provider.slots if tuned is None else tuned.slots
    if service.offer_slots:
        for offer in pool.offers.values():
            if offer.provider not in found and offer.expires_s > now:
                found[offer.provider] = min(offer.slots, service.offer_slots)
    return found


def free(service: Service, pool: Pool, now: float, down: Collection[str] = ()) -> dict[str, int]:
    """Return the providers that have slots nobody holds, and how many; `down` failed their health check."""
    taken = pool.taken
    return {name: left for name, count in slots(service, pool, now).items()
            if (left := count - taken[name]) > 0 and name not in down}


def choose(asker: str, near: Mapping[str, int], left: Mapping[str, int], turns: dict[str, int]) -> str:
    """Return the provider of the next ticket and move `turns` on; `left` is what is free, and not empty.

    `near` has the length in bits of the longest prefix that a provider shares with the asker, where there is one.
    """
    if asker in left:
        return asker
    best = max((near[name] for name in left if name in near), default=0)
    candidates = {name: count for name, count in left.items() if name in near and near[name] == best} or left
    return _next_in_round(candidates, turns)


def _next_in_round(left: Mapping[str, int], turns: dict[str, int]) -> str:
    """Smooth weighted round robin, as nginx has it: 8, 4 and 16 free slots give 2:1:4 without bursts."""
    if len(left) == 1:
        return next(iter(left))
    for name, count in left.items():
        turns[name] = turns.get(name, 0) + count
    chosen = max(left, key=lambda name: turns[name])
    turns[chosen] -= sum(left.values())
    return chosen
