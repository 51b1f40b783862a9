"""Tickets that survive a crash: one transaction round each change. I/O: the database.

Every change begins by writing the counter's row. That takes the write lock of SQLite and the row lock of
PostgreSQL before anything is read, so two processes can never both see the same free slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from plumbing.errors import BusyError, DiskError
from throttle.semaphore import Lease, Pool
from throttle.tables import counter, leases, rounds
from throttle.tickettab import Service

T = TypeVar("T")


class Repository(Protocol):
    """Where pools are kept; `now` is monotonic seconds of this machine's boot."""

    def change(self, service: Service, now: float, rule: Callable[[Pool], tuple[Pool, T]]) -> T:
        """Apply `rule` to the service's pool and keep the pool it returns, all or nothing; pass its answer on."""

    def service_of(self, fence: int) -> str | None:
        """Return the service whose lease has this fence."""


class SqlRepository:
    """The pools in SQLite or PostgreSQL; `boot` names the boot of this machine, e.g. the kernel's boot_id."""

    def __init__(self, engine: Engine, boot: str) -> None:
        self._engine = engine
        self._boot = boot

    def change(self, service: Service, now: float, rule: Callable[[Pool], tuple[Pool, T]]) -> T:
        """See Repository; raises what `rule` raises, having changed nothing."""
        with self._transaction() as connection:
            last_fence = self._lock(connection, now)
            old = _load(connection, service, last_fence)
            new, answer = rule(old)
            _store(connection, old, new)
        return answer

    def service_of(self, fence: int) -> str | None:
        """See Repository."""
        with self._transaction() as connection:
            name: str | None = connection.scalar(select(leases.c.service).where(leases.c.fence == fence))
        return name

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            if "locked" in str(error.orig):
                raise BusyError("another process holds the ticket database; try again") from error
            raise DiskError(f"the ticket database does not work ({error.orig}); see the server's log") from error

    def _lock(self, connection: Connection, now: float) -> int:
        locked = connection.execute(update(counter).values(id=1))
        if locked.rowcount == 0:
            try:
                connection.execute(insert(counter).values(id=1, last_fence=0, boot=self._boot))
            except IntegrityError as error:  # PostgreSQL alone: another process was first, by milliseconds
                raise BusyError("another process is setting up the ticket database; try again") from error
        row = connection.execute(select(counter.c.last_fence, counter.c.boot)).one()
        if row.boot != self._boot:
            # Times of another boot mean nothing now. A whole lifetime anew may hold a slot too long, and never
            # grants one twice.
            connection.execute(update(leases).values(expires_s=now + leases.c.lifetime_s))
            connection.execute(update(counter).values(boot=self._boot))
        return int(row.last_fence)


def _load(connection: Connection, service: Service, last_fence: int) -> Pool:
    rows = connection.execute(select(leases).where(leases.c.service == service.name).order_by(leases.c.fence))
    held = tuple(Lease(r.service, r.provider, r.fence, r.holder, r.lifetime_s, r.expires_s) for r in rows)
    turns = connection.execute(select(rounds.c.provider, rounds.c.credit).where(rounds.c.service == service.name))
    return Pool(service, held, last_fence, {r.provider: r.credit for r in turns})


def _store(connection: Connection, old: Pool, new: Pool) -> None:
    before, after = set(old.leases), set(new.leases)
    if gone := [lease.fence for lease in before - after]:
        connection.execute(delete(leases).where(leases.c.fence.in_(gone)))
    if added := [vars(lease) for lease in after - before]:
        connection.execute(insert(leases), added)
    if new.last_fence != old.last_fence:
        connection.execute(update(counter).values(last_fence=new.last_fence))
    if new.credits != old.credits:
        name = new.service.name
        connection.execute(delete(rounds).where(rounds.c.service == name))
        if turns := [{"service": name, "provider": p, "credit": c} for p, c in new.credits.items()]:
            connection.execute(insert(rounds), turns)
