"""Both ways to a ticket answer alike: the door for the usual shape, uvicorn for every other."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Machine, Server, wait_until

from control.door import Door
from control.parts import Parts
from control.ticket_door import TicketDoor
from control.ticket_request import Ask, read
from plumbing import clock, hostauth

Make = Callable[[], Machine]
HEAD = b"POST /api/v1/tickets HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize(("data", "found"), [
    (HEAD + b"body", Ask("get", "POST", "/api/v1/tickets", "", {"host": "x", "content-length": "4"}, b"body")),
    (b"POST /api/v1/tickets/mil-ton_080/renew HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n",
     Ask("renew", "POST", "/api/v1/tickets/mil-ton_080/renew", "mil-ton_080", {"host": "x", "connection": "keep-alive"},
         b"")),
    (b"DELETE /api/v1/tickets/a.b_1 HTTP/1.1\r\nHOST:x\r\n\r\n",
     Ask("return", "DELETE", "/api/v1/tickets/a.b_1", "a.b_1", {"host": "x"}, b"")),
])
def test_the_usual_shape_is_read(data: bytes, found: Ask) -> None:
    assert read(data) == (found, len(data))
    assert read(data + b"POST") == (found, len(data))


def test_a_body_under_way_is_waited_for_and_a_head_is_not() -> None:
    assert read(HEAD) == read(HEAD + b"bod") == len(HEAD) + 4
    assert all(read(HEAD[:cut]) is None for cut in range(len(HEAD)))


@pytest.mark.parametrize("data", [
    b"GET /api/v1/tickets HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /api/v1/tickets HTTP/1.0\r\nHost: x\r\n\r\n",
    b"POST /api/v1/tickets\r\n\r\n",
    b"POST /api/v1/tickets HTTP/1.1\r\n\r\n",
    b"POST /api/v1/tickets?x=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /api/v1/tickets/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /api/v1/tickets/a_1/renew/x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /api/v1/tickets/a%5F1/renew HTTP/1.1\r\nHost: x\r\n\r\n",
    b"DELETE /api/v1/tickets/../a_1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"DELETE /api/v1/tickets/offers/dump HTTP/1.1\r\nHost: x\r\n\r\n",
    HEAD.replace(b"Host", b"Transfer-Encoding: chunked\r\nHost"),
    HEAD.replace(b"Host", b"Expect: 100-continue\r\nHost"),
    HEAD.replace(b"Host", b"Connection: close\r\nHost"),
    HEAD.replace(b"Host", b"Content-Length: 4\r\nHost"),
    HEAD.replace(b"Host", b" folded\r\nHost"),
    HEAD.replace(b"Host: x", b"Host: \xff"),
    HEAD.replace(b": 4", b": -4"),
    HEAD.replace(b": 4", b": +4"),
    HEAD.replace(b": 4", b": 1025"),
    HEAD.replace(b": 4", b": 99999"),
    HEAD.replace(b"Host: x", b"Host: " + b"x" * 3000),
    HEAD.replace(b"\r\n", b"\n"),
])
def test_any_other_shape_is_uvicorn_s(data: bytes) -> None:
    assert read(data) is None


@given(st.binary(max_size=300))
def test_no_bytes_are_too_odd(noise: bytes) -> None:
    assert read(noise) is None
    found = read(b"POST /api/v1/tickets HTTP/1.1\r\nHost: x\r\n" + noise)
    assert found is None or isinstance(found, int | tuple)


class Line:
    """A connection by hand."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._data = b""

    def send(self, machine: Machine, method: str, path: str, body: bytes = b"", more: Mapping[str, str] | None = None,
             cut: int = 0) -> None:
        headers = {"Host": "x", "Content-Length": str(len(body)), **(more or {}),
                   **hostauth.sign(machine.key, machine.name, clock.wall(), method, path, body)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        whole = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
        if cut:
            self.connection.sendall(whole[:-cut])
        self.connection.sendall(whole[-cut:])

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self._data:
            self._more()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._data) < length:
            self._more()
        body, self._data = self._data[:length], self._data[length:]
        return int(first.split(" ")[1]), headers, body

    def _more(self) -> None:
        piece = self.connection.recv(65536)
        assert piece, "the connection is closed"
        self._data += piece


@contextmanager
def line_to(server: Server) -> Iterator[Line]:
    parts = urlsplit(server.api)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        yield Line(connection)


@pytest.fixture(params=[{}, {"X-Unusual": "1"}], ids=["door", "uvicorn"])
def more(request: pytest.FixtureRequest) -> dict[str, str]:
    """Headers that lead a request one way or the other."""
    return dict(request.param)


def test_both_ways_answer_alike(server: Server, machine: Make, more: dict[str, str]) -> None:
    server.site.tickettab.write_text("service root-dump 3600\ncontrol 10\nservice one 3600\ncontrol 1\n")
    first, second = machine().join(), machine().join()
    with line_to(server) as line:
        def ask(who: Machine, method: str, path: str, value: object = None, cut: int = 0) -> tuple[int, object]:
            body = b"" if value is None else json.dumps(value).encode()
            line.send(who, method, f"/api/v1/tickets{path}", body, more, cut)
            status, headers, answer = line.answer()
            assert headers["date"].endswith(" GMT")
            assert status == 204 or headers["content-type"] == "application/json"
            return status, json.loads(answer) if answer else None

        status, ticket = ask(first, "POST", "", {"service": "one"})
        assert isinstance(ticket, dict)
        assert (status, set(ticket)) == (200, {"ticket", "provider", "fence", "lifetime_s", "url", "bandwidth"})
        path = f"/{ticket['ticket']}"
        assert ask(first, "POST", "", {"service": "one"}, cut=5) == (200, ticket)
        assert ask(first, "POST", f"{path}/renew") == (200, ticket)
        sentence = (f"{second.name} does not hold ticket {ticket['ticket']} (any more); stop using its provider and "
                    "get a new one")
        for method, tail in (("POST", "/renew"), ("DELETE", "")):
            assert ask(second, method, f"{path}{tail}") == (403, {"kind": "refused", "value": sentence})
        assert ask(first, "POST", "", {"service": "two"})[0] == 404
        assert ask(first, "POST", "", {"service": ""}) == (400, {
            "kind": "usage", "value": "the request's service will not do: String should have at least 1 character"})
        assert ask(first, "POST", "", [1])[0] == 400
        stranger = Machine(server, "stranger", first.mac)
        thief = Machine(server, first.name, first.mac)
        assert ask(stranger, "POST", "", {"service": "one"})[0] == ask(thief, "DELETE", path)[0] == 401
        assert ask(first, "DELETE", path) == ask(first, "DELETE", path) == (204, None)


def test_all_slots_taken_is_429_with_when_to_come_back(
    server: Server, machine: Make, more: dict[str, str],
) -> None:
    server.site.tickettab.write_text("service root-dump 3600\ncontrol 10\nservice none 3600\ncontrol 0\n")
    with line_to(server) as line:
        line.send(machine().join(), "POST", "/api/v1/tickets", b'{"service": "none"}', more)
        status, headers, body = line.answer()
    server.site.tickettab.write_text("service root-dump 3600\ncontrol 10\n")
    assert (status, json.loads(body)["kind"]) == (429, "busy")
    assert int(headers["retry-after"]) >= 1


def test_one_connection_goes_both_ways_and_takes_requests_at_once(server: Server, machine: Make) -> None:
    host = machine().join()
    body = b'{"service": "root-dump"}'
    with line_to(server) as line:
        for _ in range(3):  # without waiting for answers
            line.send(host, "POST", "/api/v1/tickets", body)
        first, *others = [line.answer() for _ in range(3)]
        assert first[0] == 200
        assert [one[2] for one in others] == [first[2]] * 2
        line.send(host, "GET", f"/api/v1/hosts/{host.name}/order?wait=0")
        line.send(host, "POST", "/api/v1/tickets", body)
        assert [line.answer()[0] for _ in range(2)] == [204, 200]


def test_a_replayed_request_is_401_either_way(server: Server, machine: Make, more: dict[str, str]) -> None:
    host = machine().join()
    body, fixed = b'{"service": "root-dump"}', {}
    fixed.update(hostauth.sign(host.key, host.name, clock.wall(), "POST", "/api/v1/tickets", body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in {
        "Host": "x", "Content-Length": str(len(body)), **fixed, **more}.items())
    for status in (200, 401):
        with line_to(server) as line:
            line.connection.sendall(f"POST /api/v1/tickets HTTP/1.1\r\n{lines}\r\n".encode() + body)
            assert line.answer()[0] == status


def test_who_hangs_up_while_waiting_gets_no_ticket(server: Server, machine: Make) -> None:
    server.site.tickettab.write_text("service root-dump 3600\ncontrol 10\nservice one 3600\ncontrol 1\n")
    first, second = machine().join(), machine().join()
    ticket = first.client().post_json("/api/v1/tickets", {"service": "one"}).json()
    assert isinstance(ticket, dict)

    def shown() -> dict[str, object]:
        services = server.admin("GET", "/status").json()["tickets"]
        found = next(one for one in services if one["service"] == "one")
        assert isinstance(found, dict)
        return found

    with line_to(server) as line:
        line.send(second, "POST", "/api/v1/tickets", b'{"service": "one"}')
        wait_until(lambda: shown()["waiting"] == 1)
    assert first.client().request("DELETE", f"/api/v1/tickets/{ticket['ticket']}").status == 204
    wait_until(lambda: shown()["leases"] == [])


class State:
    """What uvicorn keeps of its connections."""

    def __init__(self) -> None:
        self.connections: set[Any] = set()
        self.tasks: set[asyncio.Task[None]] = set()


def nobody() -> asyncio.Protocol:
    raise AssertionError("this connection is not uvicorn's")


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"bod"])
async def test_what_does_not_come_whole_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, sent: bytes,
) -> None:
    monkeypatch.setattr(TicketDoor, "look_s", 0.05)
    state, parts = State(), cast("Parts", None)  # no request reaches them
    server = await asyncio.get_running_loop().create_server(
        lambda: TicketDoor(parts, Door(), state, nobody), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    assert state.connections == set()
    server.close()


async def test_a_stopping_server_closes_what_waits_for_nothing() -> None:
    state, parts = State(), cast("Parts", None)
    server = await asyncio.get_running_loop().create_server(
        lambda: TicketDoor(parts, Door(), state, nobody), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    async with asyncio.timeout(20):
        while not state.connections:  # noqa: ASYNC110 - nobody sets an event for a test
            await asyncio.sleep(0.001)
        for connection in list(state.connections):
            connection.shutdown()
        assert await reader.read() == b""
    writer.close()
    server.close()
