import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from plumbing.errors import BusyError, DiskError
from throttle import semaphore
from throttle.repository import SqlRepository
from throttle.semaphore import Asker, Lease, Pool
from throttle.tables import metadata
from throttle.tickettab import Provider, Service

HAMMER = Path(__file__).with_name("hammer.py")
SERVICE = Service("dump", 3600, (Provider("a", 1), Provider("b", 2)))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'reroot.db'}", connect_args={"timeout": 0.2})
    metadata.create_all(made)
    yield made
    made.dispose()


def get(repository: SqlRepository, host: str, now: float = 0.0, service: Service = SERVICE) -> Lease:
    return repository.change(service, now, lambda pool: semaphore.acquire(pool, Asker(host), now))


def pool_of(repository: SqlRepository, now: float = 0.0) -> Pool:
    return repository.change(SERVICE, now, lambda pool: (pool, pool))


def hammer(engine: Engine, name: str, rounds: int) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, str(HAMMER), str(engine.url.database), name, str(rounds)], text=True,
                            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_a_pool_comes_back_as_it_was_kept(engine: Engine) -> None:
    kept = SqlRepository(engine, "boot")
    leases = [get(kept, host, 5.0) for host in ("alpha", "beta", "gamma")]
    again = pool_of(SqlRepository(engine, "boot"))
    assert again.leases == tuple(leases)
    assert again.last_fence == 3
    assert sum(again.credits.values()) == 0
    assert set(again.credits) == {"a", "b"}


def test_fences_belong_to_the_site_and_name_their_service(engine: Engine) -> None:
    repository = SqlRepository(engine, "boot")
    first, second = get(repository, "alpha"), get(repository, "alpha", service=replace(SERVICE, name="other"))
    assert (first.fence, second.fence) == (1, 2)
    assert [repository.service_of(fence) for fence in (1, 2, 3)] == ["dump", "other", None]


def test_a_rule_that_raises_changes_nothing(engine: Engine) -> None:
    repository = SqlRepository(engine, "boot")
    for host in ("alpha", "beta", "gamma"):
        get(repository, host)
    before = pool_of(repository)
    with pytest.raises(BusyError, match="all 3 tickets"):
        get(repository, "delta", 1.0)
    assert pool_of(repository) == before


def test_after_a_reboot_every_lease_has_one_lifetime_anew(engine: Engine) -> None:
    lease = get(SqlRepository(engine, "one boot"), "alpha", now=1_000_000.0)
    pool = pool_of(SqlRepository(engine, "the next boot"), now=7.0)
    assert pool.leases == (replace(lease, expires_s=7.0 + 3600),)
    assert pool_of(SqlRepository(engine, "the next boot"), now=50.0) == pool


def test_two_processes_never_share_a_slot(engine: Engine) -> None:
    both = [hammer(engine, name, 60) for name in ("x", "y")]
    words = [line.split() for child in both for line in child.communicate()[0].splitlines()]
    assert [child.returncode for child in both] == [0, 0]
    got = [ticket for verb, ticket, _ in words if verb == "got"]
    assert len(got) == len(set(got)) > 20
    live = {"a": 0, "b": 0}
    # A ticket is surely held from after it was got until before it is given back.
    for _, verb, ticket in sorted((float(at), verb, ticket) for verb, ticket, at in words):
        provider = ticket.partition("_")[0]
        live[provider] += 1 if verb == "got" else -1
        assert live["a"] <= 1
        assert live["b"] <= 2


def test_kill_9_loses_no_grant_and_doubles_none(engine: Engine) -> None:
    child = hammer(engine, "x", 10_000)
    assert child.stdout is not None
    seen = [child.stdout.readline().split() for _ in range(25)]
    child.kill()
    seen += [line.split() for line in child.stdout.read().splitlines()]
    child.wait()
    got, back = ({ticket for verb, ticket, _ in seen if verb == word} for word in ("got", "back"))
    pool = pool_of(SqlRepository(engine, "this boot"))
    assert got - back <= {lease.ticket for lease in pool.leases}
    assert len(pool.leases) <= 3
    assert all(count >= 0 for count in pool.free().values())
    assert pool.last_fence >= max(int(ticket.partition("_")[2]) for _, ticket, _ in seen)


def test_a_locked_database_is_busy_and_a_missing_table_is_a_sentence(engine: Engine, tmp_path: Path) -> None:
    other = sqlite3.connect(str(engine.url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BusyError, match="another process"):
        get(SqlRepository(engine, "boot"), "alpha")
    other.close()
    empty = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(DiskError, match="no such table"):
        get(SqlRepository(empty, "boot"), "alpha")
    empty.dispose()
