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
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy.exc import OperationalError

from control.api.hosts import opened
from control.api.refusals import refusal
from control.api.requests import parse
from control.api.tickets import HOLD_S, TicketBody, described
from control.database import unwritable
from control.door import Door
from control.parts import Parts
from control.ticket_request import Ask, read
from plumbing import clock
from plumbing.errors import DiskError, Kind, RerootError
from throttle.records import Lease
from throttle.waiting import Request

log = logging.getLogger("reroot.api")
T = TypeVar("T")

MAX_WAITING = 64 << 10
"""Bytes of further requests that are taken in while one is answered."""
LOOK_S = 60.0
"""How often a connection is looked at; it is closed at the second look without a request between, in seconds."""
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


async def prove(parts: Parts, ask: Ask) -> tuple[str, str | None]:
    """Return the host whose request it is, and the key that it signed with, None in a session; raises TrustError."""
    if ask.spoken is not None:
        identity, count, digest = ask.spoken
        found = await parts.sessions.find(identity)
        return found.accept(count, digest, ask.method, ask.target, ask.body), None
    now = clock.wall()
    claimed = await parts.signatures.claimed(parts.hosts.by_name, ask.headers, now)
    who = await parts.signatures.authenticate(claimed, ask.method, ask.target, ask.body, now)
    return who.host, who.key.text


@lru_cache(1024)
def _service(body: bytes) -> str:
    return parse(TicketBody, body).service


def granted(parts: Parts, lease: Lease | None) -> bytes:
    """Return the answer to a request that was done."""
    if lease is None:
        return _head(HTTPStatus.NO_CONTENT, int(clock.wall())) + b"\r\n"
    return _json(HTTPStatus.OK, described(parts, lease), {})


def refused(ask: Ask, error: BaseException) -> bytes:
    """Return the answer to a request that was not."""
    if isinstance(error, OperationalError):
        error = DiskError(unwritable(error))
    if not isinstance(error, RerootError):
        log.error("%s %s failed", ask.method, ask.target, exc_info=error)
        return _json(HTTPStatus.INTERNAL_SERVER_ERROR, {
            "kind": Kind.INTERNAL.value, "value": "the server failed at this; its log says where"}, {})
    told = refusal(error)
    if told.status >= 500:
        log.error("%s %s: %s", ask.method, ask.target, told.body["value"])
    return _json(HTTPStatus(told.status), told.body, told.headers)


def _json(status: HTTPStatus, value: object, headers: Mapping[str, str]) -> bytes:
    body = _ENCODE(value).encode()
    more = "".join(f"{name.lower()}: {text}\r\n" for name, text in headers.items())
    return (_head(status, int(clock.wall()))
            + f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode("latin-1") + body)


@lru_cache(64)
def _head(status: HTTPStatus, second: int) -> bytes:
    """Return the first lines of an answer; those of one second are asked for thousands of times."""
    return f"HTTP/1.1 {status.value} {status.phrase}\r\ndate: {formatdate(second, usegmt=True)}\r\n".encode()


class Server(Protocol):
    """What uvicorn knows of all its connections, as far as it is used here."""

    connections: set[Any]


class TicketDoor(asyncio.Protocol):
    """A connection before it is uvicorn's: `hand_over` makes uvicorn's protocol for it."""

    look_s = LOOK_S

    def __init__(self, parts: Parts, door: Door, server: Server, hand_over: Callable[[], asyncio.Protocol]) -> None:
        self._parts, self._door, self._server, self._hand_over = parts, door, server, hand_over
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._data = b""
        self._pending: asyncio.Future[Any] | None = None
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
        if self._pending is None and self._transport is not None:
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
        self._transport = None
        if self._pending is not None:
            self._pending.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer what is of the shape, hand over what is not."""
        self._data += data
        self._next()
        if len(self._data) > MAX_WAITING:
            self.go()

    def _next(self) -> None:
        """Begin with the requests that came, until one has to be waited for."""
        while self._pending is None and self._data and self._transport is not None and (
                not self._transport.is_closing()):
            found = read(self._data)
            if found is None:
                self._give_away()
                return
            if isinstance(found, int):
                return  # the rest of the body is under way
            ask, length = found
            self._data = self._data[length:]
            self._asked += 1
            self._prove(ask)

    def _prove(self, ask: Ask) -> None:
        spoken = None if ask.spoken is None else self._parts.sessions.believed(ask.spoken[0], clock.monotonic())
        if spoken is None or ask.spoken is None:  # a key is read, or a nonce written, before anything else
            self._wait(asyncio.get_running_loop().create_task(prove(self._parts, ask)), partial(self._proved, ask))
            return
        _, count, digest = ask.spoken
        try:
            host = spoken.accept(count, digest, ask.method, ask.target, ask.body)
        except RerootError as error:
            self._say(refused(ask, error))
        else:
            self._begin(ask, host, None)

    def _proved(self, ask: Ask, proving: asyncio.Future[tuple[str, str | None]]) -> None:
        if proving.cancelled():
            return
        self._pending = None
        error = proving.exception()
        if error is not None:
            self._say(refused(ask, error))
        elif self._transport is not None:  # else whoever asked has just hung up, and nothing is done for nobody
            self._begin(ask, *proving.result())
        self._next()

    def _begin(self, ask: Ask, host: str, key: str | None) -> None:
        self._known = True
        tickets = self._parts.tickets
        try:
            if ask.what == "open":
                self._say(_json(HTTPStatus.CREATED, opened(self._parts, host, key, ask.body), {}))
            elif ask.what == "return":
                self._wait(tickets.give_back(ask.ticket, host), partial(self._done, ask, None))
            elif ask.what == "renew":
                self._wait(tickets.renew(ask.ticket, host), partial(self._done, ask, None))
            else:
                request = tickets.ask(_service(ask.body), host, address=self._address,
                                      wait_s=0.0 if self._parts.bell.closed else HOLD_S)
                self._wait(request.answer, partial(self._done, ask, request))
        except Exception as error:
            self._say(refused(ask, error))

    def _wait(self, pending: asyncio.Future[T], then: Callable[[asyncio.Future[T]], None]) -> None:
        self._pending = pending
        pending.add_done_callback(then)

    def _done(self, ask: Ask, request: Request | None, done: asyncio.Future[Any]) -> None:
        if done.cancelled():  # whoever asked hung up
            if request is not None:
                self._parts.tickets.leave(request)
            return
        self._pending = None
        error = done.exception()
        self._say(granted(self._parts, done.result()) if error is None else refused(ask, error))
        self._next()

    def _say(self, answer: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(answer)
        if self._closing:
            self._transport.close()

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
        if self._pending is None and self._seen == self._asked:
            self._transport.close()
            return
        self._seen = self._asked if self._pending is None else -1
        asyncio.get_running_loop().call_later(self.look_s, self._look)
