"""Who gets which ticket: a pool and `now` in, a pool and a lease out. Pure.

`now` is seconds on a clock that never jumps; only differences count. The number of the last ticket is
part of the value, so a fence can only grow for as long as the caller stores what it was given back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from plumbing.errors import BusyError, RefusedError
from throttle.tickettab import Provider, Service

MAX_RETRY_S = 60.0
"""Slots mostly come back long before a lease would expire, so nobody is told to wait longer than this."""


@dataclass(frozen=True)
class Lease:
    """One slot of `provider`, held by `holder` until `expires_s` on the clock `now` is from."""

    service: str
    provider: str
    fence: int
    holder: str
    lifetime_s: int
    expires_s: float

    @property
    def ticket(self) -> str:
        """The ticket's name: `${ticket%_*}` is the provider."""
        return f"{self.provider}_{self.fence:03d}"


@dataclass(frozen=True)
class Pool:
    """A service with its leases; `credits` is the state of the round robin, `last_fence` the site's last ticket."""

    service: Service
    leases: tuple[Lease, ...] = ()
    last_fence: int = 0
    credits: Mapping[str, int] = field(default_factory=dict)

    def free(self) -> dict[str, int]:
        """Slots nobody holds, per provider; 0 also where more are held than there are slots now."""
        taken = Counter(lease.provider for lease in self.leases)
        return {p.name: max(0, p.slots - taken[p.name]) for p in self.service.providers}


@dataclass(frozen=True)
class Asker:
    """Who asks, and which providers share its subnet."""

    host: str
    near: Collection[str] = frozenset()


def expire(pool: Pool, now: float) -> Pool:
    """Drop the leases whose time is over."""
    return replace(pool, leases=tuple(lease for lease in pool.leases if lease.expires_s > now))


def acquire(pool: Pool, asker: Asker, now: float) -> tuple[Pool, Lease]:
    """Lease a slot to `asker`, or renew the one it has; raises BusyError when none is free."""
    pool = expire(pool, now)
    held = next((lease for lease in pool.leases if lease.holder == asker.host), None)
    if held is not None:
        return _renewed(pool, held, now)
    free = {name: slots for name, slots in pool.free().items() if slots}
    if not free:
        raise _busy(pool, now)
    near = {name: slots for name, slots in free.items() if name in asker.near}
    candidates = {asker.host: free[asker.host]} if asker.host in free else near or free
    provider, credits = _next_in_round(candidates, pool.credits)
    lifetime_s = pool.service.lifetime_s
    lease = Lease(pool.service.name, provider, pool.last_fence + 1, asker.host, lifetime_s, now + lifetime_s)
    return replace(pool, leases=(*pool.leases, lease), last_fence=lease.fence,
                   credits=_forget_gone(credits, pool.service.providers)), lease


def renew(pool: Pool, ticket: str, holder: str, now: float) -> tuple[Pool, Lease]:
    """Begin the lifetime of a live ticket anew; raises RefusedError when it is not `holder`'s any more."""
    pool = expire(pool, now)
    return _renewed(pool, held_by(pool, ticket, holder), now)


def release(pool: Pool, ticket: str, holder: str, now: float) -> Pool:
    """Give a ticket back; one that has ended already is nobody's loss. Raises RefusedError on another's."""
    pool = expire(pool, now)
    if all(lease.ticket != ticket for lease in pool.leases):
        return pool
    gone = held_by(pool, ticket, holder)
    return replace(pool, leases=tuple(lease for lease in pool.leases if lease != gone))


def held_by(pool: Pool, ticket: str, holder: str) -> Lease:
    """Return the lease `ticket` names; raises RefusedError unless `holder` has it."""
    for lease in pool.leases:
        if lease.ticket == ticket and lease.holder == holder:
            return lease
    raise RefusedError(f"{holder} does not hold ticket {ticket} (any more); stop using its provider and get a new one")


def _renewed(pool: Pool, lease: Lease, now: float) -> tuple[Pool, Lease]:
    lifetime_s = pool.service.lifetime_s
    fresh = replace(lease, lifetime_s=lifetime_s, expires_s=now + lifetime_s)
    return replace(pool, leases=tuple(fresh if one == lease else one for one in pool.leases)), fresh


def _busy(pool: Pool, now: float) -> BusyError:
    slots = sum(provider.slots for provider in pool.service.providers)
    first = min((lease.expires_s - now for lease in pool.leases), default=MAX_RETRY_S)
    return BusyError(f"all {slots} tickets of {pool.service.name} are taken; ask again later",
                     retry_after_s=min(max(1.0, first / 10), MAX_RETRY_S))


def _next_in_round(free: Mapping[str, int], credits: Mapping[str, int]) -> tuple[str, dict[str, int]]:
    """Smooth weighted round robin, as nginx has it: 8, 4 and 16 free slots give 2:1:4 without bursts."""
    raised = {name: credits.get(name, 0) + slots for name, slots in free.items()}
    chosen = max(raised, key=lambda name: raised[name])
    raised[chosen] -= sum(free.values())
    return chosen, {**credits, **raised}


def _forget_gone(credits: Mapping[str, int], providers: tuple[Provider, ...]) -> dict[str, int]:
    return {p.name: credits[p.name] for p in providers if p.name in credits}
