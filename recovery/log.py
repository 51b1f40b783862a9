"""What recovery says: lines on the consoles and the last of them in memory (I/O: writes to open streams).

A line is one line whatever is in it: control characters become spaces, because texts from orders, servers and
file names are shown here and sent by mail.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from plumbing import clock

RING_LINES = 400
"""How many lines are remembered for the last gasp and the rescue menu."""

PROGRESS_EVERY_S = 2.0
"""Least time between two progress lines of one phase, in seconds."""

Progress = Callable[[str, int, int], None]
"""(what, done, total) in bytes, as imaging.entry.Progress."""


def plain(text: str, limit: int = 2000) -> str:
    """Return `text` as one printable line of at most `limit` characters."""
    flat = "".join(c if c.isprintable() else " " for c in text[:limit].encode("utf-8", "replace").decode())
    return flat.strip()


def size(count: int) -> str:
    """Write a number of bytes for people: 512 B, 12.3 MB (powers of ten)."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


class Stream(Protocol):
    """Something to print on: an open text file, or recovery.rescue.Screen."""

    def write(self, text: str, /) -> int:
        """Print."""

    def flush(self) -> None:
        """Hold nothing back."""


class Log:
    """Lines with the seconds since the start, on every console and in a ring; any thread may write."""

    def __init__(self, streams: Sequence[Stream] | None = None, *, started: float | None = None,
                 alive: Callable[[], None] | None = None, begin: Callable[[str], None] | None = None) -> None:
        self._streams: list[Stream] = list(streams) if streams is not None else [sys.stdout]
        self._ring: deque[str] = deque(maxlen=RING_LINES)
        self._started = clock.monotonic() if started is None else started
        self._alive = alive
        self._begin = begin
        self._lock = threading.Lock()

    def say(self, phase: str, text: str) -> None:
        """Print one line: seconds since the start, the phase, what there is to say."""
        line = f"reroot [{clock.monotonic() - self._started:8.2f}] {phase}: {plain(text)}"
        with self._lock:
            self._ring.append(line)
            for stream in self._streams:
                # a console that went away (a serial adapter pulled out) must not stop a restore
                with suppress(OSError, ValueError):
                    stream.write(line + "\n")
                    stream.flush()
        self.alive()

    def begin(self, step: str) -> None:
        """Tell the watcher that a step begins; its limits are recovery.limits'."""
        if self._begin is not None:
            self._begin(step)

    def alive(self) -> None:
        """Tell the watcher that work goes on."""
        if self._alive is not None:
            self._alive()

    def last(self, count: int = 40) -> tuple[str, ...]:
        """Return the last `count` lines, oldest first."""
        with self._lock:
            return tuple(self._ring)[-count:]

    def progress(self, phase: str, also: Progress | None = None) -> Progress:
        """Return a callback that says how far `phase` is, now and then; `also` hears every call."""
        state = {"began": clock.monotonic(), "said": 0.0, "first": -1.0}

        def report(what: str, done: int, total: int) -> None:
            self.alive()
            if also is not None:
                also(what, done, total)
            now = clock.monotonic()
            if state["first"] < 0:
                state["first"] = float(done)
            if now - state["said"] < PROGRESS_EVERY_S:
                return
            state["said"] = now
            took = now - state["began"]
            share = f" ({100 * done // total} %)" if total > 0 else ""
            speed = f", {size(int((done - state['first']) / took))}/s" if took > 1 else ""
            of = f" of {size(total)}" if total > 0 else ""
            self.say(phase, f"{what} {size(done)}{of}{share}{speed}")

        return report
