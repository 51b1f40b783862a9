"""Tickets at the content server: a stale one is refused, a live one is served at its pace. I/O: reads the database.

Whoever shows a ticket (the header `Reroot-Ticket`) is served while it is live: the row is read anew at the beginning of
each transfer and every LOOK_S while it lasts, and a lease whose time is over is refused before anybody ended it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import IO, Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from sqlalchemy import select

from control.database import Database
from plumbing import clock
from plumbing.errors import RefusedError
from throttle.pace import Pace
from throttle.records import fence_of
from throttle.tables import leases

HEADER = "Reroot-Ticket"
LOOK_S = 1.0
"""How often a transfer that lasts looks whether its ticket is live, in seconds."""
PIECE = 4 << 20
"""Bytes that are sent between two looks at most."""
SMALLEST = 16 << 10
MAX_PACES = 10_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return what names this boot of this machine, and with it the clock that leases are on."""
    return _BOOT_ID.read_text().strip()


class Gate:
    """The tickets of one site, as one of `processes` content servers looks at them."""

    def __init__(self, database: Database, boot: str, processes: int = 1) -> None:
        self._database = database
        self._boot = boot
        self._processes = processes
        self._paces: dict[str, Pace] = {}

    def look(self, ticket: str) -> int:
        """Return the bytes per second that a live ticket allows, 0 for any; raises RefusedError for any other."""
        fence = fence_of(ticket)
        row = None
        if fence is not None:
            with self._database.reading() as session:
                row = session.execute(select(leases).where(leases.c.fence == fence)).first()
        # What another machine's clock says cannot be compared; the servers there end it in time.
        live = (row is not None and not row.quarantined and f"{row.provider}_{row.fence:03d}" == ticket
                and (row.clock != self._boot or row.expires_s > clock.monotonic()))
        if row is None or not live:
            raise RefusedError(f"ticket {ticket[:80]!r} is not held any more; stop using it and get a new one")
        return int(row.bandwidth)

    def pace(self, ticket: str, bandwidth: int) -> Pace | None:
        """Return what all transfers under one ticket share, None when it allows any speed."""
        if not bandwidth:
            return None
        rate = bandwidth / self._processes
        found = self._paces.get(ticket)
        if found is None or found.rate != rate:
            if len(self._paces) >= MAX_PACES:
                self._paces.clear()
            found = self._paces[ticket] = Pace(rate)
        return found


class TicketFile(web.FileResponse):
    """A file that is sent while a ticket is live, and at its pace."""

    def __init__(self, path: Path, headers: dict[str, str], gate: Gate, ticket: str, bandwidth: int) -> None:
        super().__init__(path, headers=headers, chunk_size=1 << 20)
        self._gate, self._ticket = gate, ticket
        self._pace = gate.pace(ticket, bandwidth)

    async def _sendfile(
        self, request: web.BaseRequest, fobj: IO[Any], offset: int, count: int,
    ) -> AbstractStreamWriter:
        """Send piece by piece what aiohttp would send at once; it calls this when all headers are decided."""
        writer = await web.StreamResponse.prepare(self, request)
        assert writer is not None
        loop, transport = asyncio.get_running_loop(), request.transport
        looked = clock.monotonic()
        while count > 0:
            piece = min(count, PIECE if self._pace is None else max(SMALLEST, int(self._pace.rate / 8)))
            if self._pace is not None:
                await asyncio.sleep(self._pace.send(piece, clock.monotonic()))
            if clock.monotonic() - looked > LOOK_S:
                looked = clock.monotonic()
                try:
                    await asyncio.to_thread(self._gate.look, self._ticket)
                except RefusedError:
                    if transport is not None:
                        transport.abort()  # the status is sent; a cut is all that can still be said
                    raise ConnectionResetError("the ticket is not held any more") from None
            if transport is None or transport.is_closing():
                raise ConnectionResetError("the connection is gone")
            await loop.sendfile(transport, fobj, offset, piece)
            offset, count = offset + piece, count - piece
        await web.StreamResponse.write_eof(self)
        return writer
