import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from plumbing.errors import BusyError, ConfigError, NotFoundError, RefusedError
from throttle import service
from throttle.repository import SqlRepository
from throttle.service import TicketService
from throttle.tables import metadata


class Nowhere:
    def near(self, host: str, providers: frozenset[str]) -> frozenset[str]:
        return providers & {"hasbro"} if host == "neighbour" else frozenset()

    def url(self, provider: str) -> str:
        return f"http://{provider}:8081"


@pytest.fixture
def tab(tmp_path: Path) -> Path:
    path = tmp_path / "tickettab"
    path.write_text("service dump 60\nmilton 1\nhasbro 1\n")
    return path


@pytest.fixture
def tickets(tmp_path: Path, tab: Path) -> Iterator[TicketService]:
    engine = create_engine(f"sqlite:///{tmp_path / 'reroot.db'}", connect_args={"timeout": 10})
    metadata.create_all(engine)
    yield TicketService(SqlRepository(engine, "boot"), tab, Nowhere())
    engine.dispose()


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
    assert [one.service.name for one in await tickets.status()] == ["other"]
    await tickets.give_back(lease.ticket, "alpha")
    with pytest.raises(RefusedError):
        await tickets.renew(lease.ticket, "alpha")


async def test_status_as_json(tickets: TicketService) -> None:
    await tickets.get("dump", "alpha")
    (found,) = [one.to_json() for one in await tickets.status()]
    leases = found.pop("leases")
    assert isinstance(leases, list)
    (lease,) = leases
    assert found == {"service": "dump", "lifetime_s": 60, "providers": [
        {"name": "milton", "slots": 1, "live": 1}, {"name": "hasbro", "slots": 1, "live": 0}]}
    assert (lease["ticket"], lease["holder"], lease["fence"]) == ("milton_001", "alpha", 1)
    assert 0 < lease["expires_in_s"] <= 60


def test_a_wrong_tickettab_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        TicketService(SqlRepository(create_engine("sqlite://"), "boot"), tmp_path / "absent", Nowhere())
