"""Connections that never finish a request are closed: a stranger must not hold all of them with half a line; I/O.

Both servers have time-outs for idle connections and none for slow ones. What is looked at here is whether a request
has come whole since the last look; one that waits for its answer, or takes its time to read it, is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from uvicorn.protocols.http.h11_impl import H11Protocol

LOOK_S = 60.0
"""How often a connection is looked at; it is closed at the second look that finds the same half request, in seconds."""


class PatientOnce(H11Protocol):
    """uvicorn's connection, closed when a request does not come whole."""

    look_s = LOOK_S
    _seen: object = None

    def connection_made(self, transport: Any) -> None:
        """Begin to look."""
        super().connection_made(transport)
        self.loop.call_later(self.look_s, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        coming = self.conn.their_state in {h11.IDLE, h11.SEND_BODY}
        if coming and self._seen == (id(self.cycle), self.conn.their_state):
            self.transport.abort()
            return
        self._seen = (id(self.cycle), self.conn.their_state) if coming else None
        self.loop.call_later(self.look_s, self._look)


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
