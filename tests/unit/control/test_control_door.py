"""Many connections: a stranger's few, a fleet's thousands, and a server that outlives running out of descriptors."""

from __future__ import annotations

import asyncio
import logging
import resource
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from servers import Server, content_pids, make_site, publish_release, serving, wait_until

from control import door, log
from control.door import KEPT_BACK, MOST_IDLE, Door, network_of
from control.patience import KNOWN, PatientOnce
from plumbing.http import Client

HALF = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


class Caller:
    def __init__(self, *, idle: bool) -> None:
        self.idle, self.stays = idle, True

    def go(self) -> None:
        self.stays = False


def enter(made: Door, address: str, count: int, *, idle: bool) -> list[Caller]:
    callers = [Caller(idle=idle) for _ in range(count)]
    for one in callers:
        made.enter(one, address)
    return callers


@pytest.fixture
def widened() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    door.widen()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("address", "network"), [
    ("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:db8::1", "2001:db8::/64"),
    ("2001:db8:0:0:ffff::2", "2001:db8::/64"), ("fe80::1%eth0", "fe80::/64"), ("", ""),
])
def test_neighbours(address: str, network: str) -> None:
    assert network_of(address) == network


def test_one_network_has_few_places_for_nothing_and_a_quarter_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "places", lambda: 40)
    made = Door(most_idle=3)
    idle = enter(made, "10.0.0.1", 5, idle=True)
    assert [one.stays for one in idle] == [False, False, True, True, True]  # the newest may yet say what it wants
    busy = enter(made, "10.0.0.2", 11, idle=False)
    assert [one.stays for one in busy] == [True] * 10 + [False]
    for one in idle:
        made.leave(one, "10.0.0.1")
    (again,) = enter(made, "10.0.0.1", 1, idle=True)
    assert again.stays
    others = [one.stays for number in range(60) for one in enter(made, f"10.0.1.{number}", 1, idle=False)]
    assert others == [True] * (40 - 11) + [False] * (60 - 29)


@contextmanager
def held(url: str, source: str, count: int) -> Iterator[list[socket.socket]]:
    """Open `count` connections from `source` that each send half a request."""
    host, port = url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection((host, int(port)), 10, (source, 0)))
            made.append(one)
            try:
                one.sendall(HALF)
            except OSError:  # it was closed at once
                continue
        yield made


def alive(connections: list[socket.socket]) -> int:
    """Return how many connections the server has not closed."""
    ended = select.poll()
    for one in connections:
        ended.register(one, select.POLLIN | select.POLLHUP | select.POLLERR)
    return len(connections) - len(ended.poll(0))


@pytest.mark.parametrize("which", ["api", "content"])
def test_a_slow_loris_has_a_few_connections_and_nobody_else_notices(server: Server, which: str) -> None:
    url = str(getattr(server, which))
    with held(url, "127.0.0.9", 4 * MOST_IDLE) as connections:
        wait_until(lambda: alive(connections) <= MOST_IDLE)
        assert alive(connections) == MOST_IDLE
        assert Client(url).request("GET", "/healthz").status == 200
        with held(url, "127.0.0.9", 1) as (neighbour,):  # not even the others behind its address
            neighbour.sendall(b"\r\n")
            assert neighbour.recv(100).split()[1] == b"200"
    with held(url, "127.0.0.9", MOST_IDLE) as connections:  # the places of those that left are free again
        wait_until(lambda: alive(connections) == MOST_IDLE)


async def test_a_fleet_that_waits_gets_in(widened: None) -> None:
    """1500 hosts with a long poll each, from as many addresses, and 200 more behind one address."""
    count, shared = 1500, 200
    go, waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def app(scope: dict[str, Any], receive: object, send: Any) -> None:
        scope["state"][KNOWN] = True  # as a signed request does
        waiting.release()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def poll(port: int, source: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        writer.write(HALF + b"\r\n")
        line = await reader.readline()
        writer.close()
        return line.split()[1]

    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        kind: Any = partial(PatientOnce, door=Door())
        server = uvicorn.Server(uvicorn.Config(app, http=kind, lifespan="off", log_config=None))
        serve = asyncio.create_task(server._serve([listener]))
        port = listener.getsockname()[1]
        sources = [f"127.1.{n // 250}.{n % 250 + 1}" for n in range(count)] + ["127.0.0.8"] * shared
        polls = []
        for start in range(0, len(sources), 50):  # who comes is known when his request was read, not all at one moment
            polls += [asyncio.create_task(poll(port, source)) for source in sources[start:start + 50]]
            async with asyncio.timeout(60):
                for _ in range(50):
                    await waiting.acquire()
        go.set()
        assert await asyncio.gather(*polls) == [b"200"] * (count + shared)
        server.should_exit = True
        await serve


def test_the_server_takes_all_descriptors_it_may(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with serving(make_site(tmp_path / "site")) as server:
            for pid in (server.process.pid, *content_pids(server)):
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_server_outlives_running_out_of_descriptors(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", "[catalogue]\nrefresh_s = 0.1\n")
    publish_release(site, tmp_path)
    with serving(site) as server:
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (1, limits[1]))  # nothing can be opened any more
        with held(server.api, "127.0.0.1", 3):
            wait_until(lambda: server.log.read_text().count("was not refreshed") >= 3)
            wait_until(lambda: "can be accepted" in server.log.read_text())
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        assert server.process.poll() is None
        assert Client(server.api).request("GET", "/healthz").status == 200
        said = server.log.read_text()
        assert said.count("can be accepted") == 1
        assert "Traceback" not in said


def test_places_follow_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, places in ((KEPT_BACK + 3000, 1500), (1024, 128)):
        monkeypatch.setattr(resource, "getrlimit", lambda _which, soft=soft: (soft, soft))
        assert door.places() == places


def test_a_record_is_one_printable_line() -> None:
    try:
        raise ValueError("x\nERROR reroot.serve: FAKE\x1b[2J")
    except ValueError:
        record = logging.LogRecord("reroot.x", logging.ERROR, "", 0, "%s", ("a\nERROR reroot.serve: FAKE\x1b[2J",),
                                   sys.exc_info())
    lines = log.Lines().format(record).split("\n")
    assert lines[0].startswith("ERROR reroot.x: a ERROR")
    assert all(line.startswith("  | ") for line in lines[1:])
    assert "".join(lines).isprintable()
