import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import load
from control.database import Database
from plumbing import clock
from plumbing.errors import BusyError
from throttle import adaptive, health
from throttle.adaptive import Measure
from throttle.health import Finding, Health
from throttle.repository import SqlRepository
from throttle.service import TicketService
from throttle.tickettab import Adaptive
from throttle.upkeep import Upkeep, ask

BOUNDS = Adaptive(2, 40)


class Nowhere:
    def near(self, host: str, providers: frozenset[str]) -> Mapping[str, int]:
        return {}

    def url(self, provider: str) -> str:
        return ""


# -- the rules ----------------------------------------------------------------------------------------------------


def test_three_failures_take_a_provider_out_and_two_answers_bring_it_back() -> None:
    known, seen = Health(), []
    for failed in ("x", "", "x", "x", "x", "x", "", "x", "", ""):
        known = health.judge(known, Finding(failed))
        seen.append(known.down)
    assert seen == [False, False, False, False, True, True, True, True, True, False]


def test_the_reason_is_told_while_it_is_down() -> None:
    known = Health()
    for _ in range(3):
        known = health.judge(known, Finding("tcp://x:1 does not accept (refused)"))
    assert known.why == "tcp://x:1 does not accept (refused), 3 times in a row"
    assert health.judge(known, Finding(load=0.5)).why == known.why


@pytest.mark.parametrize(("measure", "slots", "why"), [
    (Measure(8, 8, 0, 0.30), 9, "8 → 9 slots: load 0.30 is under 0.70 and all are taken"),
    (Measure(8, 3, 5, 0.30), 9, "8 → 9 slots: load 0.30 is under 0.70 and all are taken"),
    (Measure(8, 3, 0, 0.30), 8, "8 slots stay: load 0.30, and 5 of them are free"),
    (Measure(8, 8, 9, 0.80), 8, "8 slots stay: load 0.80 is between 0.70 and 0.90"),
    (Measure(9, 9, 9, 0.95), 4, "9 → 4 slots: load 0.95 is over 0.90"),
    (Measure(2, 9, 9, 0.95), 2, "2 slots stay: load 0.95 is over 0.90, and fewer are not allowed"),
    (Measure(40, 40, 9, 0.1), 40, "40 slots stay: load 0.10 is under 0.70, and more are not allowed"),
    (Measure(8, 8, 9, None), 8, "8 slots stay: the provider does not tell its load"),
    (Measure(1, 0, 0, 0.1), 2, "1 → 2 slots: the bounds are 2 to 40"),
    (Measure(99, 0, 0, 0.1), 40, "99 → 40 slots: the bounds are 2 to 40"),
])
def test_every_step_and_its_sentence(measure: Measure, slots: int, why: str) -> None:
    assert adaptive.step(BOUNDS, measure) == adaptive.Step(slots, why)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 5), st.none() | st.floats(allow_nan=True))
def test_always_within_the_bounds_and_never_two_more(slots: int, live: int, waiting: int, load_: float | None) -> None:
    found = adaptive.step(BOUNDS, Measure(slots, live, waiting, load_))
    assert 2 <= found.slots <= 40
    assert found.slots <= max(slots + 1, 2)
    assert found.why


def test_slots_settle_about_what_a_provider_bears() -> None:
    """A provider that bears 20: from one bound or the other, the load stays about it."""
    for start in (2, 40):
        slots, seen = start, []
        for _ in range(200):
            slots = adaptive.step(BOUNDS, Measure(slots, slots, 1, min(1.0, slots / 20))).slots
            seen.append(slots)
        assert all(7 <= one <= 19 for one in seen[50:])


# -- asking -------------------------------------------------------------------------------------------------------


class Provider:
    """A real HTTP server whose answer a test sets."""

    def __init__(self) -> None:
        self.status, self.body = 200, b'{"status": "ok", "load": 0.2}'
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/healthz"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.stop()


def test_what_an_answer_means(provider: Provider) -> None:
    assert ask(provider.url) == Finding(load=0.2)
    assert ask(f"tcp://127.0.0.1:{provider.port}") == Finding()
    for body in (b"ok", b"[1]", b'{"load": "high"}', b'{"load": true}', b'{"load": -1}', b'{"load": NaN}', b"\xff"):
        provider.body = body
        assert ask(provider.url) == Finding(), body
    provider.status = 503
    assert ask(provider.url) == Finding(f"{provider.url} answered 503")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        assert ask(f"http://127.0.0.1:{port}/").failed == f"http://127.0.0.1:{port}/ does not answer"
        assert "does not accept (Connection refused)" in ask(f"tcp://127.0.0.1:{port}").failed


def test_load_is_the_largest_pressure(tmp_path: Path) -> None:
    assert 0 <= load.load(tmp_path) <= 1  # of a kernel without it: the load average
    for name, share in (("cpu", "12.50"), ("io", "40.00"), ("memory", "0.00")):
        (tmp_path / name).write_text(f"some avg10={share} avg60=1.00 avg300=0.00 total=1\nfull avg10=99.00 total=1\n")
    assert load.load(tmp_path) == 0.4


# -- both together ------------------------------------------------------------------------------------------------


@pytest.fixture
def make(database: Database, tmp_path: Path) -> Callable[[str], TicketService]:
    def made(toml: str) -> TicketService:
        (tmp_path / "tickettab").write_text("")
        (tmp_path / "tickettab.toml").write_text(toml)
        return TicketService(SqlRepository(database.engine, "boot"), tmp_path / "tickettab", Nowhere())

    return made


async def test_a_provider_that_fails_its_check_is_skipped_and_comes_back_by_itself(
    make: Callable[[str], TicketService], provider: Provider,
) -> None:
    tickets = make(f'[service.dump]\nlifetime_s = 60\nprovider.a = {{ slots = 1, health = "{provider.url}" }}\n')
    upkeep = Upkeep(tickets)
    provider.status = 500
    for _ in range(health.DOWN_AFTER):
        await upkeep.look()
    with pytest.raises(BusyError):
        await tickets.get("dump", "alpha")
    (shown,) = [one.to_json() for one in await tickets.status()]
    assert shown["providers"] == [{"name": "a", "slots": 1, "live": 0,
                                   "down": f"{provider.url} answered 500, 3 times in a row"}]
    held = asyncio.create_task(tickets.get("dump", "alpha", wait_s=30))
    provider.status = 200
    for _ in range(health.UP_AFTER):
        await upkeep.look()
    assert (await held).provider == "a"


async def test_slots_follow_the_load_and_every_server_goes_by_them(
    make: Callable[[str], TicketService], monkeypatch: pytest.MonkeyPatch,
) -> None:
    toml = ('[service.dump]\nlifetime_s = 60\nadaptive = { least = 1, most = 8 }\n'
            'provider.a = { slots = 2, health = "http://a/healthz" }\n')
    tickets, other = make(toml), make(toml)
    loads, wall = [0.1], [1.7e9]
    monkeypatch.setattr(clock, "wall", lambda: wall[0])
    upkeep = Upkeep(tickets, lambda _url: Finding(load=loads[0]))
    for host in "abcd":
        if host < "c":
            await tickets.get("dump", host)
        wall[0] += 10
        await upkeep.look()
        await upkeep.look()  # before a step is due nothing moves
    shown = (await other.status())[0].to_json()["providers"]
    assert shown == [{"name": "a", "slots": 3, "live": 2, "why": "3 slots stay: load 0.10, and 1 of them are free"}]
    assert (await other.get("dump", "c")).provider == "a"
    loads[0] = 0.99
    wall[0] += 10
    await upkeep.look()
    shown = (await other.status())[0].to_json()["providers"]
    assert shown == [{"name": "a", "slots": 1, "live": 3, "over": 2, "why": "3 → 1 slots: load 0.99 is over 0.90"}]
    with pytest.raises(BusyError):
        await tickets.get("dump", "d")
