"""The content server's processes: started, watched, restarted, ended; I/O.

Each child shares one listening socket and holds one end of a pipe, its lifeline: the child says "ready" on it, and when
this process dies by whatever cause the pipe closes and the child goes too.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from control import content
from control.site import Site
from plumbing import clock
from plumbing.errors import CommandError

log = logging.getLogger("reroot.serve")

START_S = 30.0
STOP_S = 5.0
MAX_DEATHS = 5
DEATHS_WINDOW_S = 60.0
"""A child that dies MAX_DEATHS times within this many seconds ends the server: something is wrong with it."""


class _Child:
    def __init__(self, site: Site, listener: socket.socket, database: str, count: int) -> None:
        self._lifeline, theirs = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self.process: SpawnProcess = spawn.Process(
            target=content.main, args=(str(site.root), listener, theirs, database, count),
            name="reroot-content", daemon=True)
        self.process.start()
        theirs.close()

    async def ready(self) -> None:
        """Wait until the child serves; raises CommandError when it ends or hangs instead."""
        try:
            await asyncio.wait_for(_readable(self._lifeline), START_S)
            self._lifeline.recv_bytes(16)
        except (TimeoutError, EOFError) as error:
            raise CommandError(f"the content server did not start (status {self.process.exitcode}); its complaint is "
                               "above") from error

    async def ended(self) -> None:
        """Wait until the process is gone."""
        await _readable_number(self.process.sentinel)

    async def stop(self) -> None:
        """End the process, by force when it does not listen."""
        self._lifeline.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended(), STOP_S)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


async def _readable(connection: Connection) -> None:
    await _readable_number(connection.fileno())


async def _readable_number(number: int) -> None:
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(number, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(number)


@asynccontextmanager
async def serving(
    site: Site, listener: socket.socket, count: int, database: str,
) -> AsyncIterator[asyncio.Task[None]]:
    """Keep `count` content processes up inside the block; the task ends only by raising, when they keep dying.

    `database` is the URL of where the tickets are that they look at.
    """
    def make() -> _Child:
        return _Child(site, listener, database, count)

    children = [make() for _ in range(count)]
    try:
        await asyncio.gather(*(child.ready() for child in children))
        watch = asyncio.create_task(_watch(make, children))
        try:
            yield watch
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError, CommandError):
                await watch
    finally:
        await asyncio.gather(*(child.stop() for child in children))


async def _watch(make: Callable[[], _Child], children: list[_Child]) -> None:
    deaths: list[float] = []
    while True:
        ends = {asyncio.create_task(child.ended()): place for place, child in enumerate(children)}
        try:
            gone, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
        for place in sorted(ends[task] for task in gone):
            now = clock.monotonic()
            deaths = [*(one for one in deaths if now - one < DEATHS_WINDOW_S), now]
            await children[place].stop()
            if len(deaths) >= MAX_DEATHS:
                raise CommandError(f"the content server died {MAX_DEATHS} times in a minute (status "
                                   f"{children[place].process.exitcode}); look for the reason above")
            log.error("a content process died (status %s) and is started again", children[place].process.exitcode)
            children[place] = make()
            await children[place].ready()
