"""How a long command tells how far it is. I/O: stderr.

On a terminal a bar with rate and time left; with --json one object a line (docs/commands.md, "Events"); elsewhere
nothing, so that logs stay readable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from plumbing import clock
from plumbing.rate import Rate, seconds_left

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from imaging.entry import Progress

EVENT_S = 1.0
"""A progress event comes at most so often, in seconds."""


class Report:
    """What a command says while it works; a context manager. `advance` may be called by any one thread at a time."""

    def __init__(self, *, as_json: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._as_json = as_json
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._began = self._told = 0.0
        self._rate = Rate(0.0)

    def __enter__(self) -> Report:
        if not self._as_json and self._stream.isatty():
            self._bar = _bar(self._stream)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def heard(self) -> bool:
        """Whether anybody is told how far it is; if not, finding out how much there is can be spared."""
        return self._as_json or self._bar is not None

    def begin(self, what: str, **facts: object) -> None:
        """A step begins; `facts` say of what."""
        self._began = self._told = clock.monotonic()
        self._rate = Rate(self._began)
        self._event("begin", what=what, **facts)
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=None)

    def advance(self, what: str, done: int, total: int) -> None:
        """So many bytes of the step `what` are done, of `total`, 0 while that is not known. An entry.Progress."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what, completed=done, total=total or None)
        now = clock.monotonic()
        if self._as_json and now - self._told >= EVENT_S:
            self._told = now
            rate = self._rate.at(now, done)
            left = seconds_left(done, total, rate)
            self._event("progress", what=what, done_bytes=done, total_bytes=total or None,
                        bytes_per_s=None if rate is None else round(rate),
                        seconds_left=None if left is None else round(left, 1))

    def note(self, sentence: str) -> None:
        """Something that a person should know and that stops nothing."""
        self._event("note", value=sentence)

    def done(self, what: str, **facts: object) -> None:
        """The step is over."""
        self._event("done", what=what, **facts, seconds=round(clock.monotonic() - self._began, 3))

    def _event(self, event: str, **facts: object) -> None:
        if self._as_json:
            self._stream.write(json.dumps({"event": event, **facts}) + "\n")  # at once, for notes come from any thread
            self._stream.flush()


@contextmanager
def telling(what: str, *, as_json: bool) -> Iterator[Progress | None]:
    """Report one step and yield what it is told through, None when nobody listens."""
    with Report(as_json=as_json) as report:
        report.begin(what)
        yield report.advance if report.heard else None
        report.done(what)


def _bar(stream: TextIO) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(),
                    TransferSpeedColumn(), TimeRemainingColumn(), console=Console(file=stream), transient=True)
