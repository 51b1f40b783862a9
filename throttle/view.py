"""All tickets of a site, indexed: what one process knows of the repository at one version. Pure: values in memory.

A view is only ever changed by `fold`, whose cost does not grow with the number of tickets (a heap's logarithm for
the order in which leases end). Rules read it and return changes; folding a change and then its `undone()` leaves the
view as it was.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

from throttle.records import Change, Key, Lease, Offer, Record, Tuned

_SLACK = 1024
"""Entries of ended leases that a heap may hold beyond as many as are live before it is built anew."""


class Pool:
    """One service's part of a view."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        """Live tickets of each provider."""
        self.held: dict[str, Lease] = {}
        """The live lease of each holder."""
        self.quarantined: dict[str, Lease] = {}
        """The quarantined lease of each holder, the oldest first."""
        self.offers: dict[str, Offer] = {}
        self.tuned: dict[str, Tuned] = {}
        self.turns: dict[str, int] = {}
        """The round robin's credits: advice, kept by nobody else."""
        self._ends: list[tuple[float, int]] = []

    def first_end(self) -> float | None:
        """Return when the next live lease may end (never later than it does), in monotonic seconds."""
        return self._ends[0][0] if self._ends else None

    def overdue(self, leases: dict[Key, Record], now: float) -> Lease | None:
        """Return a live lease whose time is over at `now`."""
        while self._ends and self._ends[0][0] <= now:
            lease = leases.get(self._ends[0][1])
            if not isinstance(lease, Lease) or lease.quarantined:
                heapq.heappop(self._ends)
            elif lease.expires_s > now:  # renewed meanwhile
                heapq.heapreplace(self._ends, (lease.expires_s, lease.fence))
            else:
                return lease
        return None

    def ends_at(self, lease: Lease) -> None:
        """Take note of when a lease ends."""
        heapq.heappush(self._ends, (lease.expires_s, lease.fence))
        if len(self._ends) > 2 * len(self.held) + _SLACK:
            self._ends = [(one.expires_s, one.fence) for one in self.held.values()]
            heapq.heapify(self._ends)


class View:
    """Every record of a site at `version`; `last_fence` is the site's last ticket, decided or written."""

    def __init__(self, version: int = 0, last_fence: int = 0, records: Iterable[Record] = ()) -> None:
        self.version = version
        self.last_fence = last_fence
        self.records: dict[Key, Record] = {}
        self.pools: dict[str, Pool] = {}
        for record in records:
            self.fold(Change(None, record))

    def pool(self, service: str) -> Pool:
        """Return a service's part, an empty one for a service without any record."""
        found = self.pools.get(service)
        if found is None:
            found = self.pools[service] = Pool()
        return found

    def lease(self, fence: int | None) -> Lease | None:
        """Return the lease, live or quarantined, with this fence."""
        found = self.records.get(fence) if fence is not None else None
        return found if isinstance(found, Lease) else None

    def put(self, key: Key, record: Record | None) -> None:
        """Take in what the repository says of one record now, None when it is gone."""
        self.fold(Change(self.records.get(key), record))

    def fold(self, change: Change) -> None:
        """Apply one change; its `before` must be what the view holds."""
        if change.before is not None:
            self._remove(change.before)
        if change.after is not None:
            self._insert(change.after, change.before)

    def _remove(self, record: Record) -> None:
        self.records.pop(record.key, None)
        pool = self.pool(record.service)
        match record:
            case Lease(holder=holder) if record.quarantined:
                if pool.quarantined.get(holder) == record:
                    del pool.quarantined[holder]
            case Lease(holder=holder, provider=provider):
                if pool.taken[provider] > 1:
                    pool.taken[provider] -= 1
                else:
                    del pool.taken[provider]
                if pool.held.get(holder) == record:
                    del pool.held[holder]
            case Offer(provider=provider):
                pool.offers.pop(provider, None)
                pool.turns.pop(provider, None)
            case Tuned(provider=provider):
                pool.tuned.pop(provider, None)

    def _insert(self, record: Record, before: Record | None) -> None:
        self.records[record.key] = record
        pool = self.pool(record.service)
        match record:
            case Lease(holder=holder) if record.quarantined:
                pool.quarantined[holder] = record
            case Lease(holder=holder, provider=provider):
                self.last_fence = max(self.last_fence, record.fence)
                pool.taken[provider] += 1
                pool.held[holder] = record
                renewed = isinstance(before, Lease) and not before.quarantined and before.expires_s <= record.expires_s
                if not renewed:  # the entry of a renewed one is moved when its old time comes
                    pool.ends_at(record)
            case Offer(provider=provider):
                pool.offers[provider] = record
            case Tuned(provider=provider):
                pool.tuned[provider] = record
