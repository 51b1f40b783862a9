"""Tickets that survive a crash: compare-and-swap on one version. I/O: the database.

A process keeps a view of everything at some version, decides by it, and commits the changes if and only if the version
is still the same; otherwise it reads what others changed and decides again. One transaction holds any number of
changes, so that many grants cost one fsync. docs/adr/0012-tickets-of-a-fleet.md says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from sqlalchemy import (
    Connection,
    Delete,
    Engine,
    Insert,
    Row,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from plumbing.errors import BusyError, CorruptError, DiskError, RerootError
from throttle.records import Change, Key, Lease, LeaseKey, Offer, Record, Tuned, net
from throttle.tables import changes as change_log
from throttle.tables import counter, leases, offers, tuned

READING = "reroot_reading"
"""Execution option of a transaction that only reads (control.database begins those without the write lock)."""
KEPT_VERSIONS = 1000
"""So many versions back another process may be and still read only what changed."""
_PRUNE_EVERY = 100
_LOOKS = 20


@dataclass(frozen=True)
class Loaded:
    """Every record at `version`."""

    version: int
    last_fence: int
    records: Sequence[Record]


@dataclass(frozen=True)
class Caught:
    """What was changed up to `version`: each key with the record as it is now, None when it is gone."""

    version: int
    told: Sequence[tuple[Key, Record | None]]


class Repository(Protocol):
    """Where tickets are kept; `now` is monotonic seconds of this machine's boot."""

    def load(self, now: float) -> Loaded:
        """Read everything, of one version."""

    def since(self, version: int, now: float) -> Caught | None:
        """Read what changed after `version`; None when that is too long ago, so that everything must be read."""

    def commit(self, version: int, last_fence: int, changes: Sequence[Change]) -> bool:
        """Write the changes durably as version + 1 if the version is still `version`; say whether it was.

        Without changes nothing is written, and the answer only says whether `version` is the newest.
        """


class SqlRepository:
    """The tickets in SQLite or PostgreSQL; `boot` names the boot of this machine, e.g. the kernel's boot_id.

    Monotonic times of another boot or machine mean nothing here: a lease that was written by another clock has one
    whole lifetime from when it is read, which may keep a slot too long and never grants one twice.
    """

    def __init__(self, engine: Engine, boot: str) -> None:
        self._engine = engine
        self._boot = boot

    def load(self, now: float) -> Loaded:
        """See Repository; raises BusyError when others write all the time, DiskError when it cannot be read."""
        with self._transaction(reading=True) as connection:
            missing = connection.execute(select(counter.c.version)).first() is None
        if missing:
            self._begin()
        for _ in range(_LOOKS):
            with self._transaction(reading=True) as connection:
                before = connection.execute(select(counter.c.version, counter.c.last_fence)).one()
                records: list[Record] = [self._lease(row, now) for row in connection.execute(
                    select(leases).order_by(leases.c.fence))]
                records += [self._offer(row, now) for row in connection.execute(select(offers))]
                records += [Tuned(*row) for row in connection.execute(select(tuned))]
            with self._transaction(reading=True) as connection:
                if connection.scalar(select(counter.c.version)) == before.version:
                    return Loaded(before.version, before.last_fence, records)
        raise BusyError("the tickets could not be read whole, others change them all the time; try again")

    def since(self, version: int, now: float) -> Caught | None:
        """See Repository."""
        with self._transaction(reading=True) as connection:
            newest = int(connection.execute(select(counter.c.version)).scalar_one())
            rows = connection.execute(select(change_log).where(
                change_log.c.version > version).order_by(change_log.c.version)).all()
        if newest < version or len(rows) < newest - version or any(
                row.version != version + place for place, row in enumerate(rows, 1)):
            return None  # pruned, or a backup was put back
        told = [self._told(entry, now) for row in rows for entry in _entries(row.told)]
        return Caught(rows[-1].version if rows else version, told)

    def commit(self, version: int, last_fence: int, changes: Sequence[Change]) -> bool:
        """See Repository; raises BusyError or DiskError when nothing is known of the outcome."""
        if not changes:
            with self._transaction(reading=True) as connection:
                return bool(connection.scalar(select(counter.c.version)) == version)
        with self._transaction() as connection:
            # The first statement takes SQLite's write lock and PostgreSQL's row lock: nobody else is between it and
            # the commit, and a second process finds another version when its turn comes.
            moved = connection.execute(_MOVE, {"was": version, "becomes": version + 1, "fence": last_fence})
            if moved.rowcount != 1:
                return False
            changed = net(changes)
            _LEASES.write(connection, [one for one in changed if isinstance(one.after or one.before, Lease)], self._row)
            _OFFERS.write(connection, [one for one in changed if isinstance(one.after or one.before, Offer)], self._row)
            _TUNED.write(connection, [one for one in changed if isinstance(one.after or one.before, Tuned)], self._row)
            connection.execute(insert(change_log), {"version": version + 1, "told": json.dumps(
                [self._entry(change) for change in changed], separators=(",", ":"))})
            if version % _PRUNE_EVERY == 0:
                connection.execute(delete(change_log).where(change_log.c.version < version - KEPT_VERSIONS))
        return True

    def _begin(self) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(counter).values(id=1, version=0, last_fence=0))
        except IntegrityError:
            return  # another process was first
        except DBAPIError as error:
            raise _meant(error) from error

    @contextmanager
    def _transaction(self, *, reading: bool = False) -> Iterator[Connection]:
        engine = self._engine.execution_options(**{READING: True}) if reading else self._engine
        try:
            with engine.begin() as connection:
                yield connection
                if reading:
                    connection.rollback()
        except DBAPIError as error:
            raise _meant(error) from error

    # -- records and rows -----------------------------------------------------------------------------------------

    def _expires(self, clock: str, expires_s: float, lifetime_s: int, now: float) -> float:
        return expires_s if clock == self._boot else now + lifetime_s

    def _lease(self, row: Row[Any], now: float) -> Lease:
        return Lease(row.service, row.provider, row.fence, row.holder, row.lifetime_s,
                     self._expires(row.clock, row.expires_s, row.lifetime_s, now), row.since_s, row.address,
                     row.bandwidth, row.quarantined)

    def _offer(self, row: Row[Any], now: float) -> Offer:
        return Offer(row.service, row.provider, row.slots, row.url, row.lifetime_s,
                     self._expires(row.clock, row.expires_s, row.lifetime_s, now))

    def _row(self, record: Record) -> dict[str, object]:
        match record:
            case Lease() as one:
                return {"fence": one.fence, "service": one.service, "provider": one.provider, "holder": one.holder,
                        "lifetime_s": one.lifetime_s, "expires_s": one.expires_s, "clock": self._boot,
                        "since_s": one.since_s, "address": one.address, "bandwidth": one.bandwidth,
                        "quarantined": one.quarantined}
            case Offer() as one:
                return {"service": one.service, "provider": one.provider, "slots": one.slots, "url": one.url,
                        "lifetime_s": one.lifetime_s, "expires_s": one.expires_s, "clock": self._boot}
            case Tuned() as one:
                return {"service": one.service, "provider": one.provider, "slots": one.slots, "why": one.why,
                        "changed_s": one.changed_s}

    # -- what other processes read ----------------------------------------------------------------------------------

    def _entry(self, change: Change) -> list[object]:
        match change.after or change.before:
            case Lease() as one:
                return ["lease", one.fence, None if change.after is None else [
                    one.service, one.provider, one.holder, one.lifetime_s, one.expires_s, self._boot, one.since_s,
                    one.address, one.bandwidth, one.quarantined]]
            case Offer() as one:
                return ["offer", [one.service, one.provider], None if change.after is None else [
                    one.slots, one.url, one.lifetime_s, one.expires_s, self._boot]]
            case Tuned() as one:
                return ["tuned", [one.service, one.provider], None if change.after is None else [
                    one.slots, one.why, one.changed_s]]
        raise AssertionError(change)

    def _told(self, entry: Sequence[Any], now: float) -> tuple[Key, Record | None]:
        match entry:
            case ["lease", int(fence), None]:
                return fence, None
            case ["lease", int(fence), [service, provider, holder, life_s, expires_s, clock, *more]]:
                return fence, Lease(service, provider, fence, holder, life_s,
                                    self._expires(clock, expires_s, life_s, now), *more)
            case ["offer" | "tuned" as kind, [str(service), str(provider)], None]:
                return (kind, service, provider), None
            case ["offer", [str(service), str(provider)], [slots, url, life_s, expires_s, clock]]:
                return ("offer", service, provider), Offer(service, provider, slots, url, life_s,
                                                           self._expires(clock, expires_s, life_s, now))
            case ["tuned", [str(service), str(provider)], [slots, why, changed_s]]:
                return ("tuned", service, provider), Tuned(service, provider, slots, why, changed_s)
        raise CorruptError("the ticket database's change log is of another version of reroot; run the newer one")


_MOVE = update(counter).where(and_(counter.c.id == 1, counter.c.version == bindparam("was"))).values(
    version=bindparam("becomes"), last_fence=bindparam("fence"))


def _entries(told: str) -> list[Any]:
    found = json.loads(told)
    assert isinstance(found, list)
    return found


class _Statement:
    """A statement that is run for many rows at once: compiled once, and handed to the database's driver as it is."""

    def __init__(self, statement: Insert | Update | Delete) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, Callable[[dict[str, object]], Any]]] = {}

    def run(self, connection: Connection, rows: Sequence[dict[str, object]]) -> None:
        """Run it with the values of each row, by the names of its parameters."""
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            made = self._statement.compile(dialect=connection.dialect)
            compiled = made.string, _values(tuple(made.positiontup)) if made.positiontup else dict
            self._compiled[connection.dialect.name] = compiled
        text, values = compiled
        connection.exec_driver_sql(text, [values(row) for row in rows])


def _values(names: tuple[str, ...]) -> Callable[[dict[str, object]], Any]:
    if len(names) == 1:
        return lambda row: (row[names[0]],)
    return itemgetter(*names)


class _Rows:
    """How the records of one table are written: each statement once for all of a commit's records."""

    def __init__(self, table: Table) -> None:
        keys = [column.name for column in table.primary_key.columns]
        self._keys = [f"k_{name}" for name in keys]
        here = and_(*(table.c[name] == bindparam(f"k_{name}") for name in keys))
        self._delete = _Statement(delete(table).where(here))
        self._insert = _Statement(insert(table).values({one.name: bindparam(one.name) for one in table.columns}))
        self._update = _Statement(update(table).where(here).values(
            {one.name: bindparam(one.name) for one in table.columns if not one.primary_key}))

    def write(
        self, connection: Connection, changed: Sequence[Change], row: Callable[[Record], dict[str, object]],
    ) -> None:
        """Delete what is gone, change what was there, add what is new."""
        if gone := [self._key(one.key) for one in changed if one.after is None]:
            self._delete.run(connection, gone)
        if other := [{**row(one.after), **self._key(one.key)} for one in changed
                     if one.after is not None and one.before is not None]:
            self._update.run(connection, other)
        if fresh := [row(one.after) for one in changed if one.after is not None and one.before is None]:
            self._insert.run(connection, fresh)

    def _key(self, key: Key) -> dict[str, object]:
        return dict(zip(self._keys, (key,) if isinstance(key, LeaseKey) else key[1:], strict=True))


_LEASES, _OFFERS, _TUNED = _Rows(leases), _Rows(offers), _Rows(tuned)


def _meant(error: DBAPIError) -> RerootError:
    if "locked" in str(error.orig):
        return BusyError("another process holds the ticket database; try again")
    return DiskError(f"the ticket database does not work ({error.orig}); see the server's log")
