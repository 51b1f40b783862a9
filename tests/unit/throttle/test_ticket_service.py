import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.database import Database
from plumbing import clock
from plumbing.errors import BusyError, ConfigError, DiskError, NotFoundError, RefusedError
from throttle import service, waiting
from throttle.records import Change, Lease
from throttle.repository import SqlRepository
from throttle.service import TicketService
from throttle.status import problems

HAMMER = Path(__file__).with_name("hammer.py")


class Nowhere:
    def near(self, host: str, providers: frozenset[str]) -> Mapping[str, int]:
        return {"hasbro": 24} if host == "neighbour" else {}

    def url(self, provider: str) -> str:
        return f"http://{provider}:8081"


@pytest.fixture
def tab(tmp_path: Path) -> Path:
    path = tmp_path / "tickettab"
    path.write_text("service dump 60\nmilton 1\nhasbro 1\n")
    return path


@pytest.fixture
def tickets(database: Database, tab: Path) -> TicketService:
    return TicketService(SqlRepository(database.engine, "boot"), tab, Nowhere())


@pytest.fixture
def second(url: str, tab: Path) -> Iterator[TicketService]:
    """Another server process on the same database."""
    database = Database(url)
    yield TicketService(SqlRepository(database.engine, "boot"), tab, Nowhere())
    database.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody sets an event for a test
            await asyncio.sleep(0.001)


async def test_get_renew_give_back(tickets: TicketService) -> None:
    lease = await tickets.get("dump", "neighbour")
    assert (lease.ticket, tickets.url(lease)) == ("hasbro_001", "http://hasbro:8081")
    assert (await tickets.renew(lease.ticket, "neighbour")).expires_s > lease.expires_s
    await tickets.give_back(lease.ticket, "neighbour")
    await tickets.give_back(lease.ticket, "neighbour")
    with pytest.raises(RefusedError, match="hasbro_001"):
        await tickets.renew(lease.ticket, "neighbour")


@pytest.mark.parametrize("ticket", ["", "milton", "milton_", "milton_x", "milton_999", "milton_" + "9" * 40])
async def test_what_is_no_ticket_is_refused_and_can_be_given_back(tickets: TicketService, ticket: str) -> None:
    with pytest.raises(RefusedError):
        await tickets.renew(ticket, "alpha")
    await tickets.give_back(ticket, "alpha")


async def test_waiting_gets_the_slot_that_comes_back_at_once(
    tickets: TicketService, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "LOOK_AGAIN_S", 3600.0)  # nobody finds it by looking
    held = [await tickets.get("dump", host) for host in ("alpha", "beta")]
    waiting = asyncio.create_task(tickets.get("dump", "gamma", wait_s=30))
    await until(lambda: tickets._waiting.held > 0)
    with pytest.raises(BusyError):
        await tickets.get("dump", "delta", wait_s=0.1)
    assert not waiting.done()
    await tickets.give_back(held[0].ticket, "alpha")
    assert (await waiting).provider == held[0].provider


async def test_a_hundred_at_once_get_two(tickets: TicketService) -> None:
    answers = await asyncio.gather(*(tickets.get("dump", f"h{n}") for n in range(100)), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 2
    assert all(isinstance(answer, BusyError) for answer in answers if isinstance(answer, BaseException))


async def test_an_edit_counts_and_a_broken_one_does_not(
    tickets: TicketService, tab: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    tab.write_text("service dump 60\nmilton 1\nservice extra 60\nxv 20\n")
    assert (await tickets.get("extra", "alpha")).provider == "xv"
    with caplog.at_level(logging.ERROR):
        tab.write_text("service dump sixty\n")
        os.utime(tab, ns=(1, 1))
        assert (await tickets.get("dump", "alpha")).provider == "milton"
    assert "'sixty'" in caplog.text
    with pytest.raises(NotFoundError, match=r"'absent'.*dump, extra"):
        await tickets.get("absent", "alpha")


async def test_a_ticket_of_a_service_taken_out_can_still_be_given_back(tickets: TicketService, tab: Path) -> None:
    lease = await tickets.get("dump", "alpha")
    tab.write_text("service other 60\nmilton 1\n")
    assert [(one.service.name, one.defined) for one in await tickets.status()] == [("other", True), ("dump", False)]
    await tickets.give_back(lease.ticket, "alpha")
    with pytest.raises(RefusedError):
        await tickets.renew(lease.ticket, "alpha")


async def test_status_says_who_holds_what_since_when_from_where_and_who_waits(tickets: TicketService) -> None:
    for host in ("alpha", "beta"):
        await tickets.get("dump", host, address="10.1.0.11")
    with pytest.raises(BusyError):
        await tickets.get("dump", "gamma")
    (found,) = [one.to_json() for one in await tickets.status()]
    leases, line = found.pop("leases"), found.pop("line")
    assert isinstance(leases, list)
    assert isinstance(line, list)
    assert found == {"service": "dump", "lifetime_s": 60, "defined": True, "quarantined": [], "waiting": 1,
                     "providers": [{"name": name, "slots": 1, "live": 1} for name in ("milton", "hasbro")]}
    assert [(one["ticket"], one["holder"], one["fence"], one["address"]) for one in leases] == [
        ("milton_001", "alpha", 1, "10.1.0.11"), ("hasbro_002", "beta", 2, "10.1.0.11")]
    assert 0 < leases[0]["expires_in_s"] <= 60
    assert abs(clock.from_iso(leases[0]["since"]) - clock.wall()) < 60
    assert [one["host"] for one in line] == ["gamma"]


async def test_fewer_slots_than_held_are_shown(tickets: TicketService, tab: Path) -> None:
    lease = await tickets.get("dump", "alpha")
    tab.write_text("service dump 60\nmilton 0\nhasbro 1\n")
    found = await tickets.status()
    assert found[0].to_json()["providers"] == [
        {"name": "milton", "slots": 0, "live": 1, "over": 1}, {"name": "hasbro", "slots": 1, "live": 0}]
    assert problems(found) == ["dump: 1 tickets of milton are held and it has 0 slots now; no more are granted until "
                               "enough came back"]
    assert (await tickets.renew(lease.ticket, "alpha")).fence == lease.fence


async def test_who_asked_first_is_served_first_however_often_others_ask(tickets: TicketService) -> None:
    held = [await tickets.get("dump", host) for host in ("alpha", "beta")]
    for host in ("gamma", "delta"):
        with pytest.raises(BusyError):
            await tickets.get("dump", host)
    late = asyncio.create_task(tickets.get("dump", "late", wait_s=30))
    gamma, delta = (asyncio.create_task(tickets.get("dump", host, wait_s=30)) for host in ("gamma", "delta"))
    await until(lambda: tickets._waiting.held == 3)
    await tickets.give_back(held[0].ticket, "alpha")
    assert (await gamma).provider == held[0].provider
    assert not late.done() and not delta.done()
    await tickets.give_back(held[1].ticket, "beta")
    assert (await delta).provider == held[1].provider
    late.cancel()


async def test_a_held_request_that_is_given_up_gets_no_ticket(tickets: TicketService) -> None:
    held = [await tickets.get("dump", host) for host in ("alpha", "beta")]
    given_up = asyncio.create_task(tickets.get("dump", "gamma", wait_s=30))
    await until(lambda: tickets._waiting.held > 0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await tickets.give_back(held[0].ticket, "alpha")
    assert await tickets.held("dump", "gamma") is None


async def test_more_than_can_be_held_are_told_when_to_come_back(
    tickets: TicketService, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "MAX_HELD", 5)
    monkeypatch.setattr(waiting, "MAX_FRONT", 2)
    held = [await tickets.get("dump", host) for host in ("alpha", "beta")]
    tasks = [asyncio.create_task(tickets.get("dump", f"h{number}", wait_s=30)) for number in range(50)]
    await until(lambda: sum(task.done() for task in tasks) == 45)
    done, waits = ([task for task in tasks if task.done() is over] for over in (True, False))
    assert (len(done), len(waits)) == (45, 5)
    errors = [error for task in done if isinstance(error := task.exception(), BusyError)]
    assert len(errors) == 45
    assert all(1 <= error.retry_after_s <= waiting.MAX_RETRY_S for error in errors)
    await tickets.give_back(held[0].ticket, "alpha")
    served, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().holder for task in served] == ["h0"]
    for task in tasks:
        task.cancel()


async def test_a_herd_is_served_to_the_last_and_the_server_is_asked_seldom(
    tickets: TicketService, tab: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "MAX_HELD", 20)
    monkeypatch.setattr(waiting, "MAX_FRONT", 5)
    monkeypatch.setattr(waiting, "SHORT_RETRY_S", 2.0)
    monkeypatch.setattr(waiting, "POLLS", 50.0)
    tab.write_text("service dump 60\nmilton 10\n")
    asked = 0

    async def host(name: str) -> None:
        nonlocal asked
        while True:
            asked += 1
            try:
                lease = await tickets.get("dump", name, wait_s=10)
            except BusyError as error:
                await asyncio.sleep(error.retry_after_s)  # as it was told
            else:
                break
        await tickets.give_back(lease.ticket, name)

    async with asyncio.timeout(60):
        await asyncio.gather(*(host(f"h{number}") for number in range(200)))
    assert tickets.waits("dump") == tickets._waiting.held == 0
    assert asked < 4 * 200


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(1e-6, 10**6), st.floats(0, 1))
def test_when_to_come_back_is_bounded(ahead: int, more: int, slots: int, rate: float, share: float) -> None:
    found = waiting._retry_s(ahead, ahead + more, slots, rate, share)
    assert 1.0 <= found <= waiting.MAX_RETRY_S
    assert found <= max(1.0, ahead / rate / waiting.STRETCH)  # before its turn, also when the client adds half of it


async def test_a_silent_holder_frees_its_slot_is_quarantined_and_told_of_once(
    database: Database, tab: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Lease] = []
    now = [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    tickets = TicketService(SqlRepository(database.engine, "boot"), tab, Nowhere(), on_silent=told.append)
    first = await tickets.get("dump", "alpha")
    await tickets.get("dump", "beta")
    now[0] = 130.0
    await tickets.renew(first.ticket, "alpha")
    now[0] = 160.0
    assert (await tickets.get("dump", "gamma")).provider == "hasbro"
    assert [lease.holder for lease in told] == ["beta"]
    with pytest.raises(RefusedError, match="hasbro_002 was not renewed in 60 s and is quarantined"):
        await tickets.renew("hasbro_002", "beta")
    (found,) = await tickets.status()
    assert [lease.ticket for lease in found.quarantined] == ["hasbro_002"]
    assert len(told) == 1


async def test_two_servers_share_the_slots_and_hear_of_each_other(
    tickets: TicketService, second: TicketService,
) -> None:
    lease = await tickets.get("dump", "alpha")
    assert (await second.get("dump", "alpha")).ticket == lease.ticket
    assert (await second.renew(lease.ticket, "alpha")).ticket == lease.ticket
    other = await second.get("dump", "beta")
    with pytest.raises(BusyError):
        await tickets.get("dump", "gamma")
    held = asyncio.create_task(tickets.get("dump", "gamma", wait_s=30))
    await second.give_back(lease.ticket, "alpha")
    assert (await held).provider == lease.provider
    assert other.fence < held.result().fence
    with pytest.raises(RefusedError):
        await tickets.renew(lease.ticket, "alpha")
    await tickets.give_back(lease.ticket, "alpha")


async def test_two_servers_at_once_lose_commits_and_never_a_slot(
    tickets: TicketService, second: TicketService, tab: Path,
) -> None:
    tab.write_text("service dump 60\nmilton 7\n")

    async def ask(server: TicketService, host: str) -> Lease | None:
        try:
            return await server.get("dump", host)
        except BusyError:
            return None

    found = await asyncio.gather(*(ask((tickets, second)[number % 2], f"h{number}") for number in range(40)))
    leases = [lease for lease in found if lease is not None]
    assert len(leases) == len({lease.fence for lease in leases}) == 7
    (shown,) = await second.status()
    assert {lease.fence for lease in shown.leases} == {lease.fence for lease in leases}


async def test_a_failed_commit_grants_nothing_and_the_next_one_knows_what_is_written(
    tickets: TicketService, monkeypatch: pytest.MonkeyPatch,
) -> None:
    await tickets.get("dump", "alpha")
    good = SqlRepository.commit

    def lost_answer(self: SqlRepository, version: int, last_fence: int, changes: list[Change]) -> bool:
        good(self, version, last_fence, changes)
        raise DiskError("the connection broke before the answer came")

    monkeypatch.setattr(SqlRepository, "commit", lost_answer)
    with pytest.raises(DiskError, match="broke"):
        await tickets.get("dump", "beta", wait_s=30)
    monkeypatch.setattr(SqlRepository, "commit", good)
    lease = await tickets.held("dump", "beta")
    assert lease is not None
    assert (await tickets.get("dump", "beta")).ticket == lease.ticket

    def nothing_written(self: SqlRepository, version: int, last_fence: int, changes: list[Change]) -> bool:
        raise DiskError("the disk is full")

    await tickets.give_back(lease.ticket, "beta")
    monkeypatch.setattr(SqlRepository, "commit", nothing_written)
    with pytest.raises(DiskError, match="full"):
        await tickets.get("dump", "gamma", wait_s=30)
    monkeypatch.setattr(SqlRepository, "commit", good)
    assert await tickets.held("dump", "gamma") is None
    assert (await tickets.get("dump", "gamma")).fence > lease.fence
    with pytest.raises(BusyError, match="all 2 tickets of dump are taken; ask again later"):
        await tickets.get("dump", "delta")  # and nobody is before it that has what it came for


async def test_many_at_once_are_written_by_few_commits(
    tickets: TicketService, tab: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    tab.write_text("service dump 60\nmilton 500\n")
    commits: list[int] = []
    good = SqlRepository.commit

    def counted(self: SqlRepository, version: int, last_fence: int, changes: list[Change]) -> bool:
        commits.append(len(changes))
        return good(self, version, last_fence, changes)

    monkeypatch.setattr(SqlRepository, "commit", counted)
    await asyncio.gather(*(tickets.get("dump", f"h{number}") for number in range(500)))
    assert sum(commits) == 500
    assert len(commits) < 10


async def test_a_host_that_finished_provides_until_its_offer_ends(
    tickets: TicketService, tab: Path, second: TicketService,
) -> None:
    with pytest.raises(RefusedError, match="takes no offers"):
        await tickets.offer("dump", "peer", 1, "http://peer:8081", 60)
    tab.with_name("tickettab.toml").write_text(
        "[service.stage]\nlifetime_s = 60\noffer_slots = 2\n")
    with pytest.raises(BusyError, match="all 0 tickets of stage"):
        await tickets.get("stage", "alpha")
    held = asyncio.create_task(tickets.get("stage", "alpha", wait_s=30))
    await second.offer("stage", "peer", 2, "http://peer:8081", 60)
    lease = await held
    assert (lease.ticket, tickets.url(lease)) == ("peer_001", "http://peer:8081")
    assert (await tickets.status())[-1].to_json()["providers"] == [
        {"name": "peer", "slots": 2, "live": 1, "offered_for_s": pytest.approx(60, abs=30)}]
    await tickets.withdraw("stage", "peer")
    with pytest.raises(BusyError):
        await second.get("stage", "beta")
    assert (await second.renew("peer_001", "alpha")).provider == "peer"


def hammer(url: str, tab: Path, name: str, rounds: int) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, str(HAMMER), url, str(tab), name, str(rounds)], text=True,
                            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_two_processes_never_share_a_slot(url: str, tab: Path) -> None:
    tab.write_text("service dump 60\na 1\nb 2\n")
    both = [hammer(url, tab, name, 10) for name in ("x", "y")]
    words = [line.split() for child in both for line in child.communicate()[0].splitlines()]
    assert [child.returncode for child in both] == [0, 0]
    got = [ticket for verb, ticket, _ in words if verb == "got"]
    assert len(got) == len(set(got)) > 100
    live = {"a": 0, "b": 0}
    # A ticket is surely held from after it was got until before it is given back.
    for _, verb, ticket in sorted((float(at), verb, ticket) for verb, ticket, at in words):
        provider = ticket.partition("_")[0]
        live[provider] += 1 if verb == "got" else -1
        assert live["a"] <= 1
        assert live["b"] <= 2


async def test_kill_9_loses_no_grant_and_doubles_none(url: str, tab: Path, tickets: TicketService) -> None:
    tab.write_text("service dump 60\na 1\nb 2\n")
    child = hammer(url, tab, "x", 10_000)
    assert child.stdout is not None
    seen = [child.stdout.readline().split() for _ in range(100)]
    child.kill()
    seen += [words for line in child.stdout.read().splitlines() if len(words := line.split()) == 3]
    child.wait()
    got, back = ({ticket for verb, ticket, _ in seen if verb == word} for word in ("got", "back"))
    (found,) = await tickets.status()
    assert got - back <= {lease.ticket for lease in found.leases}
    assert len(found.leases) <= 3
    assert sum(lease.provider == "a" for lease in found.leases) <= 1
    assert tickets._view.last_fence >= max(int(ticket.partition("_")[2]) for _, ticket, _ in seen)


def test_a_wrong_tickettab_stops_the_start(tmp_path: Path, database: Database, tab: Path) -> None:
    repository = SqlRepository(database.engine, "boot")
    with pytest.raises(ConfigError, match="cannot be read"):
        TicketService(repository, tmp_path / "absent", Nowhere())
    tab.with_name("tickettab.toml").write_text("[service.dump]\nlifetime_s = 60\n")
    with pytest.raises(ConfigError, match=r"service 'dump' is in tickettab too"):
        TicketService(repository, tab, Nowhere())
