"""Verified frames out of sources that nobody believes. I/O through the sources.

Sources come in groups, nearest first. Of a group, whose members serve abreast, the one is asked that should be
through first: what it still owes and what is wanted now, at the speed it was measured at. The next group is asked for
what the one before does not have. A source that sends other bytes than the index's BLAKE3 says has lied: after LIES
of them it is dropped. One that fails comes after all others for RETRY_S, and is dropped when it failed FAILURES times
in a row over `patience_s`. Whatever happens is bounded: every read has a deadline, every source a number of chances.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from imaging.index import Frame
from imaging.sources import FrameSource
from plumbing import clock
from plumbing.errors import CorruptError, NetworkError, NotFoundError, RerootError

LIES = 2
"""How often a source may send wrong bytes: a bit may flip once on the way, not twice."""
FAILURES = 3
RETRY_S = 30.0
"""For how long a source that failed is asked only when the others fail too."""
LONGEST_PAUSE_S = 5.0
NEWEST = 0.3
"""The weight of the newest range in a source's measured speed."""

Note = Callable[[str], None]
"""Takes one sentence about a source that failed or was dropped."""
Group = FrameSource | tuple[FrameSource, ...]
"""One source, or several that serve abreast."""


@dataclass(frozen=True)
class SourceReport:
    """What one source gave: `size` in bytes; `dropped` says why nothing more is taken from it.

    `speed` is in bytes per second of one connection, 0 before anything came.
    """

    name: str
    frames: int
    size: int
    lies: int
    failures: int
    dropped: str | None
    speed: float = 0.0


class _Standing:
    """How one source has behaved; changed under the fetcher's lock. `owed` is what it was asked for, in bytes."""

    def __init__(self, source: FrameSource, group: int) -> None:
        self.source, self.group = source, group
        self.frames = self.size = self.lies = self.failures = self.streak = self.owed = 0
        self.first_failure = self.last_failure = self.speed = 0.0
        self.dropped: str | None = None


class FrameFetcher:
    """Gives frames of one layer, each checked; used from several threads at once.

    `patience_s` is how long a source may fail before it is dropped for good (a server that restarts), `pause_s` how
    long the first pause between rounds is; later ones double, with jitter. `note` is told what goes wrong.
    """

    def __init__(self, sources: Sequence[Group], *, patience_s: float = 60.0, pause_s: float = 0.25,
                 note: Note | None = None) -> None:
        self._standings = [_Standing(source, number) for number, group in enumerate(sources)
                           for source in (group if isinstance(group, tuple) else (group,))]
        self._patience_s = patience_s
        self._pause_s = pause_s
        self._note = note or (lambda _sentence: None)
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def frame(self, frame: Frame) -> bytes:
        """Return the compressed bytes of `frame`, exactly those that its digest names.

        Raises NetworkError when no source is left that has it; the sentence names each and why.
        """
        return self.span((frame,))[0]

    def span(self, frames: Sequence[Frame]) -> list[bytes]:
        """Return the compressed bytes of each of `frames`, which lie side by side, read as one range where that works.

        What one source got wrong is read again from the others; raises as `frame` does.
        """
        found: dict[int, bytes] = {}
        pause, reasons = self._pause_s, dict[str, str]()
        while True:
            standings = self._in_order(sum(frame.length for frame in frames))
            absent = 0
            for standing in standings:
                try:
                    for first, last in _gaps(frames, found):
                        self._ask(standing, frames[first:last], first, found)
                    return [found[number] for number in range(len(frames))]
                except NotFoundError as error:
                    absent += 1
                    reasons[standing.source.name] = error.sentence
                except RerootError as error:
                    reasons[standing.source.name] = error.sentence
                    self._failed(standing, error)
            if absent == len(standings) or self._closing.is_set():
                raise self._nothing_left(reasons)
            if self._in_order(0):
                self._closing.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, keeps no secret
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def report(self) -> tuple[SourceReport, ...]:
        """Say what each source gave so far."""
        with self._lock:
            return tuple(SourceReport(s.source.name, s.frames, s.size, s.lies, s.failures, s.dropped, s.speed)
                         for s in self._standings)

    @property
    def width(self) -> int:
        """How many sources the largest group has that are still asked: so many can be read from at once."""
        with self._lock:
            groups = [standing.group for standing in self._standings if standing.dropped is None]
        return max(map(groups.count, groups), default=0)

    def cancel(self) -> None:
        """Make every waiting `frame` give up at its next failure."""
        self._closing.set()

    def _in_order(self, wanted: int) -> list[_Standing]:
        """Return the sources to ask for `wanted` bytes: by group, the soonest first; what failed just now last."""
        now = clock.monotonic()
        with self._lock:
            alive = [standing for standing in self._standings if standing.dropped is None]
            # One that was not measured yet counts as the fastest, or it never would be.
            fastest = max((standing.speed for standing in alive), default=0.0) or 1.0
            return sorted(alive, key=lambda s: (s.streak > 0 and now - s.last_failure < RETRY_S, s.group,
                                                (s.owed + wanted) / (s.speed or fastest)))

    def _ask(self, standing: _Standing, frames: Sequence[Frame], first: int, found: dict[int, bytes]) -> None:
        """Read `frames` from one source and put those that are right into `found`, the first of them as `first`."""
        length = sum(frame.length for frame in frames)
        with self._lock:
            standing.owed += length
        begin = clock.monotonic()
        try:
            data = standing.source.read(frames[0].offset, length)
        finally:
            with self._lock:
                standing.owed -= length
        seconds = max(clock.monotonic() - begin, 1e-6)
        wrong, right, place = None, 0, 0
        for number, frame in enumerate(frames, first):
            piece = data if len(frames) == 1 else data[place:place + frame.length]
            place += frame.length
            if len(piece) != frame.length or blake3(piece).digest() != frame.digest:
                wrong = frame
            else:
                found[number] = piece
                right += 1
        with self._lock:
            standing.frames += right
            standing.size += length if wrong is None else 0
            speed = length / seconds
            standing.speed = speed if not standing.speed else (1 - NEWEST) * standing.speed + NEWEST * speed
            if wrong is None:
                standing.streak = 0
        if wrong is not None:
            raise CorruptError(f"{standing.source.name} sent other bytes than the release has at {wrong.offset}")

    def _failed(self, standing: _Standing, error: RerootError) -> None:
        now = clock.monotonic()
        with self._lock:
            if standing.streak == 0:
                standing.first_failure = now
            standing.streak += 1
            standing.last_failure = now
            if isinstance(error, CorruptError):
                standing.lies += 1
            else:
                standing.failures += 1
            worn_out = standing.streak >= FAILURES and now - standing.first_failure >= self._patience_s
            dropped = standing.dropped is None and (standing.lies >= LIES or worn_out)
            if dropped:
                standing.dropped = error.sentence
        self._note(f"{standing.source.name} is not asked any more: {error.sentence}" if dropped else error.sentence)

    def _nothing_left(self, reasons: dict[str, str]) -> NetworkError:
        for standing in self._standings:
            if standing.dropped is not None:
                reasons.setdefault(standing.source.name, standing.dropped)
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "there is no source at all"
        return NetworkError(f"no source has the next frame of the release ({told}); check the content servers")


def _gaps(frames: Sequence[Frame], found: dict[int, bytes]) -> list[tuple[int, int]]:
    """Return the runs of `frames` that are not found yet, as (first, beyond the last)."""
    gaps: list[tuple[int, int]] = []
    for number in range(len(frames)):
        if number in found:
            continue
        if gaps and gaps[-1][1] == number:
            gaps[-1] = (gaps[-1][0], number + 1)
        else:
            gaps.append((number, number + 1))
    return gaps
