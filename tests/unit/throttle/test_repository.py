"""What every repository keeps to; the same tests run over SQLite and over a real PostgreSQL."""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from control.database import Database
from plumbing.errors import BusyError, DiskError
from throttle import repository as repositories
from throttle.records import Change, Lease, Offer, Record, Tuned
from throttle.repository import SqlRepository

LEASE = Lease("dump", "milton", 1, "alpha", 60, 1060.0, 1.7e9, "10.1.0.11", 5_000_000)
OFFER = Offer("dump", "alpha", 2, "http://alpha:8081", 600, 1600.0)
TUNED = Tuned("dump", "milton", 12, "11 → 12: load 0.30", 1.7e9)


@pytest.fixture
def repository(database: Database) -> SqlRepository:
    made = SqlRepository(database.engine, "boot")
    made.load(0.0)
    return made


@pytest.fixture
def other(url: str) -> Iterator[SqlRepository]:
    """The same tickets as another process of the same boot sees them."""
    database = Database(url)
    yield SqlRepository(database.engine, "boot")
    database.close()


def records(repository: SqlRepository, now: float = 0.0) -> list[Record]:
    return list(repository.load(now).records)


def test_it_begins_empty(repository: SqlRepository) -> None:
    found = repository.load(0.0)
    assert (found.version, found.last_fence, list(found.records)) == (0, 0, [])


def test_what_is_committed_is_read_back_by_any_process(repository: SqlRepository, other: SqlRepository) -> None:
    assert repository.commit(0, 1, [Change(None, one) for one in (LEASE, OFFER, TUNED)])
    assert records(other) == [LEASE, OFFER, TUNED]
    assert (other.load(0.0).version, other.load(0.0).last_fence) == (1, 1)


def test_records_change_and_go(repository: SqlRepository, other: SqlRepository) -> None:
    old: tuple[Record, ...] = (LEASE, OFFER, TUNED)
    fresh: tuple[Record, ...] = (
        replace(LEASE, expires_s=2000.0, quarantined=True), replace(OFFER, slots=1), replace(TUNED, why="less"))
    repository.commit(0, 1, [Change(None, one) for one in (LEASE, OFFER, TUNED)])
    assert repository.commit(1, 1, [Change(was, new) for was, new in zip(old, fresh, strict=True)])
    assert records(other) == list(fresh)
    assert repository.commit(2, 1, [Change(one, None) for one in fresh])
    assert records(other) == []


def test_who_is_late_changes_nothing(repository: SqlRepository, other: SqlRepository) -> None:
    assert repository.commit(0, 1, [Change(None, LEASE)])
    late = replace(LEASE, holder="beta")
    assert not other.commit(0, 1, [Change(None, late)])
    assert records(other) == [LEASE]
    assert other.commit(1, 2, [Change(None, replace(late, fence=2))])


def test_a_commit_of_nothing_says_whether_the_version_is_the_newest(
    repository: SqlRepository, other: SqlRepository,
) -> None:
    assert repository.commit(0, 0, [])
    other.commit(0, 1, [Change(None, LEASE)])
    assert not repository.commit(0, 0, [])
    assert repository.commit(1, 1, [])
    assert repository.load(0.0).version == 1


def test_catching_up_reads_only_what_changed_and_in_order(repository: SqlRepository, other: SqlRepository) -> None:
    gone = replace(LEASE, fence=2)
    repository.commit(0, 2, [Change(None, LEASE), Change(None, gone), Change(None, OFFER), Change(None, TUNED)])
    known = other.load(0.0).version
    fresh = replace(LEASE, expires_s=2000.0)
    repository.commit(1, 2, [Change(gone, None), Change(OFFER, None), Change(TUNED, None)])
    repository.commit(2, 2, [Change(LEASE, fresh)])
    caught = other.since(known, 0.0)
    assert caught is not None
    assert caught.version == 3
    assert list(caught.told) == [(2, None), (OFFER.key, None), (TUNED.key, None), (1, fresh)]
    assert other.since(3, 0.0) == repositories.Caught(3, [])
    everything = other.since(0, 0.0)
    assert everything is not None
    assert dict(everything.told)[1] == fresh


def test_who_was_away_too_long_reads_everything(
    repository: SqlRepository, other: SqlRepository, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repositories, "KEPT_VERSIONS", 3)
    lease = LEASE
    for version in range(101):
        fresh = replace(lease, expires_s=float(version))
        assert repository.commit(version, 1, [Change(lease if version else None, fresh)])
        lease = fresh
    assert other.since(50, 0.0) is None
    assert other.since(98, 0.0) is not None
    assert other.since(200, 0.0) is None  # a backup of the database was put back


def test_times_of_another_clock_become_one_lifetime_from_now(repository: SqlRepository, url: str) -> None:
    repository.commit(0, 1, [Change(None, LEASE), Change(None, OFFER)])
    database = Database(url)
    rebooted = SqlRepository(database.engine, "another boot")
    later = [replace(LEASE, expires_s=7.0 + 60), replace(OFFER, expires_s=7.0 + 600)]
    assert records(rebooted, now=7.0) == later
    caught = rebooted.since(0, 7.0)
    assert caught is not None
    assert [record for _, record in caught.told] == later
    database.close()


def test_of_many_at_once_one_is_faster_each_time(repository: SqlRepository, url: str) -> None:
    won: list[int] = []

    def climb() -> None:
        database = Database(url)
        mine = SqlRepository(database.engine, "boot")
        for _ in range(15):
            version = mine.load(0.0).version
            lease = replace(LEASE, fence=version + 1, holder=f"h{version}")
            if mine.commit(version, version + 1, [Change(None, lease)]):
                won.append(version)
        database.close()

    threads = [threading.Thread(target=climb) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(len(won)))
    assert len(records(repository)) == len(won) == repository.load(0.0).version


def test_answers_are_on_disk(database: Database) -> None:
    sqlite = database.engine.dialect.name == "sqlite"
    with database.engine.connect() as connection:
        found = connection.execute(text("PRAGMA synchronous" if sqlite else "SHOW synchronous_commit")).scalar()
    assert found == (2 if sqlite else "on")


def test_a_locked_database_is_busy_and_a_missing_table_is_a_sentence(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'reroot.db'}")
    database.migrate()
    hasty = create_engine(database.url, connect_args={"timeout": 0.1})
    SqlRepository(hasty, "boot").load(0.0)
    holder = sqlite3.connect(tmp_path / "reroot.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusyError, match="another process"):
        SqlRepository(hasty, "boot").commit(0, 1, [Change(None, LEASE)])
    holder.close()
    hasty.dispose()
    database.close()
    empty = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(DiskError, match="no such table"):
        SqlRepository(empty.engine, "boot").load(0.0)
    empty.close()
