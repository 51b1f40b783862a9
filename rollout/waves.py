"""In which waves hosts may go down, given who serves what. Pure.

Source: the SAS paper, section Upgrading Servers: first the servers, some at a time, then everything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from plumbing.errors import RefusedError


def default_minimum(providers: int) -> int:
    """Return how many of a service's providers stay up when nobody said: half of them, none of a single one."""
    return (providers + 1) // 2 if providers > 1 else 0


def waves(
    hosts: Sequence[str], serves: Mapping[str, Collection[str]], minimum: Mapping[str, int] | None = None,
) -> list[list[str]]:
    """Split `hosts` into waves; within one, every service keeps at least its minimum of providers up.

    `serves` maps each host that serves (also those that are not updated) to its services. Hosts that serve nothing
    go last, in one wave. Each wave begins only when the one before it is healthy. The order within a wave is that of
    `hosts`. Raises RefusedError when a minimum leaves no provider free to go.
    """
    spare = _spare(serves, minimum or {})
    busy = [host for host in hosts if serves.get(host)]
    for host in busy:
        for service in serves[host]:
            if spare[service] < 1:
                raise RefusedError(f"{host} serves {service}, which cannot spare a provider; add a provider, lower its "
                                   f"minimum, or leave {host} out")
    split: list[list[str]] = []
    down: list[Counter[str]] = []
    # Hosts of the scarcest service first: first-fit then wastes the fewest waves.
    for host in sorted(busy, key=lambda host: min(spare[service] for service in serves[host])):
        services = set(serves[host])
        fits = next((i for i, gone in enumerate(down) if all(gone[s] < spare[s] for s in services)), len(split))
        if fits == len(split):
            split.append([])
            down.append(Counter())
        split[fits].append(host)
        down[fits].update(services)
    place = {host: number for number, host in enumerate(hosts)}
    split = [sorted(wave, key=place.__getitem__) for wave in split]
    rest = [host for host in hosts if not serves.get(host)]
    return [*split, rest] if rest else split


def _spare(serves: Mapping[str, Collection[str]], minimum: Mapping[str, int]) -> dict[str, int]:
    providers = Counter(service for services in serves.values() for service in set(services))
    return {service: count - minimum.get(service, default_minimum(count)) for service, count in providers.items()}
