"""Who gets which ticket: a view, a request and `now` in, changes out. Pure; docs/machines/ticket.dot draws it.

`now` is seconds on a clock that never jumps; only differences count. No rule changes the view: the caller folds the
changes into it, writes them down, and undoes them when they cannot be written. (`choice` moves a round robin's
credits on, which nobody's promise depends on.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from plumbing.errors import RefusedError, UsageError
from throttle import choice
from throttle.records import Change, Lease, Offer, fence_of
from throttle.tickettab import MAX_LIFETIME_S, Service
from throttle.view import Pool, View

MAX_QUARANTINED = 1000
"""Quarantined tickets of one service that are kept to be shown; the oldest go first."""
QUARANTINED_S = 86_400.0
"""How long a quarantined ticket is shown, in seconds."""


@dataclass(frozen=True)
class Asker:
    """Who asks, from where, and which providers share how many bits of a subnet's prefix with it."""

    host: str
    near: Mapping[str, int] = field(default_factory=dict)
    address: str = ""


def acquire(
    view: View, service: Service, asker: Asker, now: float, *, wall: float | None = None, down: Collection[str] = (),
) -> tuple[list[Change], Lease] | None:
    """Lease a slot to `asker`, or renew the one it has; None when no slot is free.

    `wall` is the time that people read; providers that are `down` are left out.
    """
    pool = view.pool(service.name)
    held = pool.held.get(asker.host)
    if held is not None:
        return _renewed(service, held, now)
    left = choice.free(service, pool, now, down)
    if not left:
        return None
    provider = choice.choose(asker.host, asker.near, left, pool.turns)
    lease = Lease(service.name, provider, view.last_fence + 1, asker.host, service.lifetime_s,
                  now + service.lifetime_s, wall, asker.address, service.bandwidth)
    return [*_out_of_quarantine(pool, asker.host), Change(None, lease)], lease


def renew(view: View, service: Service | None, ticket: str, holder: str, now: float) -> tuple[list[Change], Lease]:
    """Begin the lifetime of a live ticket anew; raises RefusedError when it is not `holder`'s any more.

    `service` is the ticket's, None when the tickettab has it no more: then its holders go on as they began.
    """
    lease = _named(view, ticket)
    if lease is None or lease.holder != holder or lease.quarantined:
        raise RefusedError(_not_held(lease, ticket, holder))
    return _renewed(service or Service(lease.service, lease.lifetime_s, (), bandwidth=lease.bandwidth), lease, now)


def release(view: View, ticket: str, holder: str) -> list[Change]:
    """Give a ticket back; one that has ended already is nobody's loss. Raises RefusedError on another's."""
    lease = _named(view, ticket)
    if lease is None:
        return []
    if lease.holder != holder:
        raise RefusedError(_not_held(lease, ticket, holder))
    return [Change(lease, None)]


def expire(view: View, service: str, now: float) -> list[Change]:
    """Return the change for one thing whose time is over, an empty list when there is none.

    A ticket that was not given back is quarantined: its slot is free, and its number stays refused and is shown.
    """
    pool = view.pool(service)
    lease = pool.overdue(view.records, now)
    if lease is not None:
        crowded = [next(iter(pool.quarantined.values()))] if len(pool.quarantined) >= MAX_QUARANTINED else []
        gone = [*crowded, *([pool.quarantined[lease.holder]] if lease.holder in pool.quarantined else [])]
        return [*(Change(old, None) for old in dict.fromkeys(gone)), Change(lease, replace(lease, quarantined=True))]
    old = next(iter(pool.quarantined.values()), None)
    if old is not None and old.expires_s + QUARANTINED_S <= now:
        return [Change(old, None)]
    for offer in pool.offers.values():
        if offer.expires_s <= now:
            return [Change(offer, None)]
    return []


def offer(
    view: View, service: Service, provider: str, slots: int, url: str, lifetime_s: int, now: float,
) -> list[Change]:
    """Register `provider` for `lifetime_s` seconds, or anew; raises RefusedError when the service takes no offers."""
    if not service.offer_slots:
        raise RefusedError(f"service {service.name} takes no offers; write `offer_slots = N` for it into the site's "
                           "tickettab.toml")
    if not 1 <= lifetime_s <= MAX_LIFETIME_S or not 1 <= slots <= service.offer_slots:
        raise UsageError(f"an offer to {service.name} has 1 to {service.offer_slots} slots and a lifetime of 1 to "
                         f"{MAX_LIFETIME_S} s, not {slots} slots and {lifetime_s} s")
    before = view.pool(service.name).offers.get(provider)
    return [Change(before, Offer(service.name, provider, slots, url, lifetime_s, now + lifetime_s))]


def withdraw(view: View, service: str, provider: str) -> list[Change]:
    """End an offer; tickets for it go on until they end, and no new ones are granted."""
    before = view.pool(service).offers.get(provider)
    return [] if before is None else [Change(before, None)]


def _named(view: View, ticket: str) -> Lease | None:
    lease = view.lease(fence_of(ticket))
    return lease if lease is not None and lease.ticket == ticket else None


def _renewed(service: Service, lease: Lease, now: float) -> tuple[list[Change], Lease]:
    fresh = replace(lease, lifetime_s=service.lifetime_s, expires_s=now + service.lifetime_s,
                    bandwidth=service.bandwidth)
    return [Change(lease, fresh)], fresh


def _out_of_quarantine(pool: Pool, holder: str) -> list[Change]:
    back = pool.quarantined.get(holder)
    return [] if back is None else [Change(back, None)]


def _not_held(lease: Lease | None, ticket: str, holder: str) -> str:
    if lease is not None and lease.holder == holder and lease.quarantined:
        return (f"ticket {ticket} was not renewed in {lease.lifetime_s} s and is quarantined; stop using its provider "
                "and get a new one")
    return f"{holder} does not hold ticket {ticket} (any more); stop using its provider and get a new one"
