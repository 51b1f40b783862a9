"""Tickets as the control server's API sees them. I/O: the tickettab file, the repository, the clock.

Database work runs in threads, so that one slow fsync does not stop the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from plumbing import clock
from plumbing.errors import BusyError, ConfigError, NotFoundError, RefusedError
from throttle import semaphore, tickettab
from throttle.repository import Repository
from throttle.semaphore import Asker, Lease, Pool
from throttle.tickettab import Service

T = TypeVar("T")
log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0
"""How often a waiting request looks for a slot that another process gave back or that expired."""


class Directory(Protocol):
    """What tickets need to know of hosts."""

    def near(self, host: str, providers: frozenset[str]) -> frozenset[str]:
        """Return those of `providers` that share a subnet with `host`."""

    def url(self, provider: str) -> str:
        """Return the base URL `provider` serves content at, empty when it is a pool and not a host."""


@dataclass(frozen=True)
class Status:
    """A service as it stands at `now_s`, on the clock its leases are on."""

    service: Service
    leases: tuple[Lease, ...]
    now_s: float

    def to_json(self) -> dict[str, object]:
        """Return what docs/protocols/tickets.md calls an element of "tickets"."""
        live = Counter(lease.provider for lease in self.leases)
        return {
            "service": self.service.name, "lifetime_s": self.service.lifetime_s,
            "providers": [{"name": p.name, "slots": p.slots, "live": live[p.name]} for p in self.service.providers],
            "leases": [{"ticket": lease.ticket, "holder": lease.holder, "fence": lease.fence,
                        "expires_in_s": round(lease.expires_s - self.now_s, 1)} for lease in self.leases],
        }


class TicketService:
    """Get, renew and give back tickets of the services in one tickettab."""

    def __init__(self, repository: Repository, tab: Path, directory: Directory) -> None:
        """Read the tickettab; raises ConfigError when it is wrong."""
        self._repository = repository
        self._tab = tab
        self._directory = directory
        self._given_back = asyncio.Event()
        self._seen = _fingerprint(tab)
        self._services = _read(tab)

    def names(self) -> tuple[str, ...]:
        """Return the services of the tickettab as it was read last."""
        return tuple(self._services)

    async def get(self, service: str, host: str, *, wait_s: float = 0.0) -> Lease:
        """Lease a slot to `host`, waiting up to `wait_s` for one; raises BusyError or NotFoundError."""
        known = self._service(service)
        near = self._directory.near(host, frozenset(p.name for p in known.providers))
        deadline_s = clock.monotonic() + wait_s
        while True:
            given_back = self._given_back
            try:
                return await self._change(known, lambda pool, now: semaphore.acquire(pool, Asker(host, near), now))
            except BusyError:
                left_s = deadline_s - clock.monotonic()
                if left_s <= 0:
                    raise
            try:
                await asyncio.wait_for(given_back.wait(), min(LOOK_AGAIN_S, left_s))
            except TimeoutError:
                continue

    async def renew(self, ticket: str, host: str) -> Lease:
        """Begin the lifetime of `host`'s ticket anew; raises RefusedError when it is not held any more."""
        known = await self._service_of(ticket)
        if known is None:
            raise RefusedError(f"nobody holds ticket {ticket}; stop using its provider and get a new one")
        return await self._change(known, lambda pool, now: semaphore.renew(pool, ticket, host, now))

    async def give_back(self, ticket: str, host: str) -> None:
        """End `host`'s ticket; nothing happens when it ended before. Raises RefusedError on another host's."""
        known = await self._service_of(ticket)
        if known is not None:
            await self._change(known, lambda pool, now: (semaphore.release(pool, ticket, host, now), None))
            self._given_back.set()
            self._given_back = asyncio.Event()

    def url(self, lease: Lease) -> str:
        """Return where the holder of `lease` fetches from, empty when the provider is not a host."""
        return self._directory.url(lease.provider)

    async def status(self) -> list[Status]:
        """Return every service with its live leases."""
        self._reload()
        found = []
        for known in self._services.values():
            leases = await self._change(known, lambda pool, now: (pool, semaphore.expire(pool, now).leases))
            found.append(Status(known, leases, clock.monotonic()))
        return found

    async def _change(self, service: Service, rule: Callable[[Pool, float], tuple[Pool, T]]) -> T:
        def work() -> T:
            # The clock is read inside the transaction: waiting for the lock must not make `now` old.
            return self._repository.change(service, clock.monotonic(), lambda pool: rule(pool, clock.monotonic()))

        return await asyncio.to_thread(work)

    async def _service_of(self, ticket: str) -> Service | None:
        number = ticket.rpartition("_")[2]
        if not (number.isascii() and number.isdigit() and len(number) < 16):
            return None
        name = await asyncio.to_thread(self._repository.service_of, int(number))
        # A service taken out of the tickettab keeps its leases until they end.
        return None if name is None else self._services.get(name, Service(name, 1, ()))

    def _service(self, name: str) -> Service:
        self._reload()
        try:
            return self._services[name]
        except KeyError:
            raise NotFoundError(f"there is no service {name!r}; {self._tab} defines "
                                f"{', '.join(self._services) or 'none'}") from None

    def _reload(self) -> None:
        seen = _fingerprint(self._tab)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._services = _read(self._tab)
        except ConfigError as error:
            log.error("%s; the services stay as they were", error.sentence)


def _fingerprint(tab: Path) -> tuple[int, int, int]:
    try:
        found = tab.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _read(tab: Path) -> dict[str, Service]:
    try:
        return tickettab.parse(tab.read_text("utf-8"), str(tab))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{tab} cannot be read ({error}); it must be a UTF-8 text file") from error
