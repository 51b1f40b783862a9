"""One line on a terminal's stderr that says how far a transfer is, how fast, and how long it will take. I/O: stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cli.console import size
from imaging.entry import Progress
from plumbing import clock

EVERY_S = 0.2
"""How often the line changes, in seconds."""


@contextmanager
def line(*, quiet: bool = False) -> Iterator[Progress | None]:
    """Yield what keeps the line up to date, None when nobody looks; the line is gone at the end."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    started, shown, first = clock.monotonic(), [0.0], list[int]()

    def tell(what: str, done: int, total: int) -> None:
        now = clock.monotonic()
        first.append(done) if not first else None
        if now - shown[0] >= EVERY_S:
            shown[0] = now
            print(f"\r{text(what, done, total, done - first[0], now - started)}\x1b[K", end="", file=sys.stderr,
                  flush=True)

    try:
        yield tell
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def text(what: str, done: int, total: int, moved: int, seconds: float) -> str:
    """Return the line: `moved` of the `done` bytes took `seconds`; `total` is 0 while unknown. Pure."""
    told = f"{what}: {size(done)}{f' of {size(total)}' if total else ''}"
    if moved <= 0 or seconds <= 0:
        return told
    told += f", {size(int(moved / seconds))}/s"
    if total <= done:
        return told
    left = round((total - done) * seconds / moved)
    return f"{told}, {left // 60}:{left % 60:02} left"
