"""Connections that never finish a request are closed: a stranger must not hold all of them with half a line; I/O.

Both servers have time-outs for idle connections and none for slow ones. What is looked at here is whether a request
has come whole since the last look; one that waits for its answer, or takes its time to read it, is left alone. How many
there may be is control.door's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import h11
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from uvicorn.protocols.http.h11_impl import H11Protocol

from control.door import Door

LOOK_S = 60.0
"""How often a connection is looked at; it is closed at the second look that finds the same half request, in seconds."""

KNOWN = "known"
"""Key of a request's state: its sender proved who it is."""


class PatientOnce(H11Protocol):
    """uvicorn's connection, closed when a request does not come whole."""

    look_s = LOOK_S
    _seen: object = None

    def __init__(self, *args: Any, door: Door | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._door = door or Door()

    @property
    def idle(self) -> bool:
        """Whether whoever is there has not proved who it is: here that is what makes a request worth its place."""
        return self.scope is None or KNOWN not in self.scope["state"]

    def connection_made(self, transport: Any) -> None:
        """Begin to look."""
        super().connection_made(transport)
        self._door.enter(self, _peer(transport))
        self.loop.call_later(self.look_s, self._look)

    def go(self) -> None:
        """Close it at once."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._door.leave(self, _peer(self.transport))
        super().connection_lost(exc)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        coming = self.conn.their_state in {h11.IDLE, h11.SEND_BODY}
        if coming and self._seen == (id(self.cycle), self.conn.their_state):
            self.transport.abort()
            return
        self._seen = (id(self.cycle), self.conn.their_state) if coming else None
        self.loop.call_later(self.look_s, self._look)


class PatientFile(web.RequestHandler):
    """aiohttp's connection, which `close_slow` looks after."""

    __slots__ = ("_door",)

    def __init__(self, manager: web.Server, door: Door, **more: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **more)
        self._door = door

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self._current_request is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place."""
        super().connection_made(transport)
        self._door.enter(self, _peer(transport))

    def go(self) -> None:
        """Close it at once."""
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        if self.transport is not None:
            self._door.leave(self, _peer(self.transport))
        super().connection_lost(exc)


def patient(server: web.Server, door: Door) -> Callable[[], asyncio.Protocol]:
    """Return what makes the connections of an aiohttp server, for a loop's create_server."""
    return lambda: PatientFile(server, door, **server._kwargs)


def _peer(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


async def close_slow(server: web.Server, look_s: float = LOOK_S) -> None:
    """Close aiohttp's connections that do not get a request across, until cancelled."""
    seen: dict[int, int] = {}
    while True:
        await asyncio.sleep(look_s)
        now = {}
        for connection in server.connections:
            if connection._current_request is not None:
                continue
            count = connection._request_count
            if seen.get(id(connection)) == count and connection.transport is not None:
                connection.transport.abort()
            else:
                now[id(connection)] = count
        seen = now


def quiet_about_strangers(record: logging.LogRecord) -> bool:
    """Tell whether a line of aiohttp's log is worth keeping: what a stranger sent that is not HTTP is not."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
