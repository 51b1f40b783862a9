"""The ticket requests of a fleet, answered without a framework; every other request is uvicorn's. I/O: connections.

A fleet that asks for tickets all at once asks two or three small things in one exact shape, and the framework costs
more than all that they are about. So a connection begins here: a request for a ticket, a renewal or a return without
anything unusual is answered here, by the same signatures and the same service. At the first request of any other shape
the connection is uvicorn's, with that request and for good, whose routes (control.api.tickets) answer everything.
docs/adr/0013-ticket-door.md says what it is worth.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol, cast

from sqlalchemy.exc import OperationalError

from control.api.refusals import refusal
from control.api.requests import parse
from control.api.tickets import HOLD_S, TicketBody, described
from control.database import unwritable
from control.door import Door
from control.parts import Parts
from plumbing import clock
from plumbing.errors import DiskError, Kind, RerootError

log = logging.getLogger("reroot.api")

MAX_HEAD = 2048
MAX_BODY = 1024
"""Bytes; what is longer is not of the shape that is answered here."""
MAX_WAITING = 64 << 10
"""Bytes of further requests that are taken in while one is answered."""
LOOK_S = 60.0
"""How often a connection is looked at; it is closed at the second look without a request between, in seconds."""
_TICKETS = "/api/v1/tickets"
_BEGINS = (b"POST /api/v1/tickets", b"DELETE /api/v1/tickets/")
_SIGNED = ("reroot-host", "reroot-time", "reroot-nonce", "reroot-signature")
_PLAIN = frozenset({*_SIGNED, "host", "content-length", "content-type", "user-agent", "accept", "accept-encoding",
                     "connection"})


@dataclass(frozen=True)
class Ask:
    """A request of the shape that is answered here: `what` is get, renew or return, `ticket` the path's."""

    what: str
    method: str
    target: str
    ticket: str
    headers: Mapping[str, str]
    body: bytes


def read(data: bytes) -> tuple[Ask, int] | int | None:
    """Return the request at the beginning of `data` and its length in bytes; None when it is not of the shape.

    When its head has come whole and its body has not, return the length that is waited for.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0 or not data.startswith(_BEGINS):
        return None
    try:
        first, *lines = data[:end].decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        return None
    words = first.split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1":
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or name not in _PLAIN or name in headers or not value.isprintable():
            return None
        headers[name] = value.strip(" ")
    length = headers.get("content-length", "0")
    if headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    if not length.isdigit() or len(length) > 4 or int(length) > MAX_BODY or "host" not in headers:
        return None
    whole = end + 4 + int(length)
    what = _what(words[0], words[1])
    if what is None:
        return None
    if len(data) < whole:
        return whole
    return Ask(what[0], words[0], words[1], what[1], headers, data[end + 4:whole]), whole


def _what(method: str, target: str) -> tuple[str, str] | None:
    if target == _TICKETS:
        return ("get", "") if method == "POST" else None
    ticket, slash, rest = target.removeprefix(f"{_TICKETS}/").partition("/")
    if not target.startswith(f"{_TICKETS}/") or not ticket or not ticket.replace("_", "-").replace("-", "").replace(
            ".", "").isalnum():
        return None
    match method, slash, rest:
        case "POST", "/", "renew":
            return "renew", ticket
        case "DELETE", "", "":
            return "return", ticket
    return None


async def answer(parts: Parts, ask: Ask, address: str) -> tuple[bool, bytes]:
    """Do what a request asks; return whether its sender proved who it is, and the answer as it goes over the wire."""
    known = False
    try:
        now = clock.wall()
        who = await parts.signatures.claimed(parts.hosts.by_name, ask.headers, now)
        host = await parts.signatures.authenticate(who, ask.method, ask.target, ask.body, now)
        known = True
        if ask.what == "return":
            await parts.tickets.give_back(ask.ticket, host)
            return known, _head(HTTPStatus.NO_CONTENT, "") + b"\r\n"
        if ask.what == "renew":
            lease = await parts.tickets.renew(ask.ticket, host)
        else:
            wait_s = 0.0 if parts.bell.closed else HOLD_S
            lease = await parts.tickets.get(parse(TicketBody, ask.body).service, host, wait_s=wait_s, address=address)
        return known, _json(HTTPStatus.OK, described(parts, lease), {})
    except OperationalError as error:
        refused = refusal(DiskError(unwritable(error)))
    except RerootError as error:
        refused = refusal(error)
    except Exception:
        log.exception("%s %s failed", ask.method, ask.target)
        return known, _json(HTTPStatus.INTERNAL_SERVER_ERROR, {
            "kind": Kind.INTERNAL.value, "value": "the server failed at this; its log says where"}, {})
    if refused.status >= 500:
        log.error("%s %s: %s", ask.method, ask.target, refused.body["value"])
    return known, _json(HTTPStatus(refused.status), refused.body, refused.headers)


def _json(status: HTTPStatus, value: object, headers: Mapping[str, str]) -> bytes:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    more = "".join(f"{name.lower()}: {text}\r\n" for name, text in headers.items())
    return _head(status, f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{more}") + b"\r\n" + body


def _head(status: HTTPStatus, headers: str) -> bytes:
    return f"HTTP/1.1 {status.value} {status.phrase}\r\ndate: {_date(int(clock.wall()))}\r\n{headers}".encode("latin-1")


_dates: dict[int, str] = {}


def _date(second: int) -> str:
    """Return the Date header of one second; the same string is asked for thousands of times."""
    if second not in _dates:
        _dates.clear()
        _dates[second] = formatdate(second, usegmt=True)
    return _dates[second]


class Server(Protocol):
    """What uvicorn knows of all its connections, as far as it is used here."""

    connections: set[Any]
    tasks: set[asyncio.Task[None]]


class TicketDoor(asyncio.Protocol):
    """A connection before it is uvicorn's: `hand_over` makes uvicorn's protocol for it."""

    look_s = LOOK_S

    def __init__(self, parts: Parts, door: Door, server: Server, hand_over: Callable[[], asyncio.Protocol]) -> None:
        self._parts, self._door, self._server, self._hand_over = parts, door, server, hand_over
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._data = b""
        self._task: asyncio.Task[None] | None = None
        self._known = self._closing = False
        self._asked = self._seen = 0

    @property
    def idle(self) -> bool:
        """Whether whoever is there has not proved who it is."""
        return not self._known

    def go(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    def shutdown(self) -> None:
        """Close it when its request is answered, as uvicorn asks when it stops."""
        self._closing = True
        if self._task is None and self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        self._server.connections.add(self)
        self._door.enter(self, self._address)
        asyncio.get_running_loop().call_later(self.look_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back, and up what is still waited for."""
        self._leave()
        if self._task is not None:
            self._task.cancel()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer what is of the shape, hand over what is not."""
        self._data += data
        if self._task is None:
            self._next()
        elif len(self._data) > MAX_WAITING:
            self.go()

    def _next(self) -> None:
        if not self._data or self._transport is None or self._transport.is_closing():
            return
        found = read(self._data)
        if found is None:
            self._give_away()
            return
        if isinstance(found, int):
            return  # the rest of the body is under way
        ask, length = found
        self._data = self._data[length:]
        self._asked += 1
        self._task = asyncio.get_running_loop().create_task(self._serve(ask))
        self._server.tasks.add(self._task)
        self._task.add_done_callback(self._server.tasks.discard)

    async def _serve(self, ask: Ask) -> None:
        known, data = await answer(self._parts, ask, self._address)
        self._known = self._known or known
        self._task = None
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._closing:
            self._transport.close()
        else:
            self._next()

    def _give_away(self) -> None:
        assert self._transport is not None
        transport, data, self._data = self._transport, self._data, b""
        self._leave()
        self._transport = None
        protocol = self._hand_over()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._closing:
            cast("Any", protocol).shutdown()
        else:
            protocol.data_received(data)

    def _leave(self) -> None:
        if self._transport is not None:
            self._server.connections.discard(self)
            self._door.leave(self, self._address)

    def _look(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._task is None and self._seen == self._asked:
            self._transport.close()
            return
        self._seen = self._asked if self._task is None else -1
        asyncio.get_running_loop().call_later(self.look_s, self._look)
