"""Wakes the requests that wait for an order; lives in the event loop, may be rung from any thread."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress

from plumbing import clock


class Bell:
    """One wait per host name; `close` wakes everybody for good, so that a server can stop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.closed = False

    def ring(self, host: str) -> None:
        """Wake whoever waits for `host`."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._wake, host)

    def close(self) -> None:
        """Wake everybody, now and from now on."""
        self.closed = True
        for host in list(self._waiting):
            self._wake(host)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait until the bell rings for the event's host or the time is over."""
        if self.closed or seconds <= 0:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
        event.clear()

    def listen(self, host: str) -> _Listening:
        """Return a context in which rings for `host` set an event; enter it before looking at the database."""
        return _Listening(self._waiting, host)

    def _wake(self, host: str) -> None:
        for event in self._waiting.get(host, ()):
            event.set()


class _Listening:
    def __init__(self, waiting: defaultdict[str, set[asyncio.Event]], host: str) -> None:
        self._waiting, self._host, self._event = waiting, host, asyncio.Event()

    def __enter__(self) -> asyncio.Event:
        self._waiting[self._host].add(self._event)
        return self._event

    def __exit__(self, *_: object) -> None:
        self._waiting[self._host].discard(self._event)
        if not self._waiting[self._host]:
            del self._waiting[self._host]


def left(deadline: float) -> float:
    """Return the seconds until a monotonic deadline, never below zero."""
    return max(0.0, deadline - clock.monotonic())
