"""Verified frames out of sources that nobody believes. I/O through the sources.

Sources are asked in the order given, nearest first. One that sends other bytes than the index's BLAKE3 says has lied:
after LIES of them it is dropped. One that fails goes to the end of the queue for RETRY_S, and is dropped when it failed
FAILURES times in a row over `patience_s`. Whatever happens is bounded: every read has a deadline, every source a number
of chances.
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

Note = Callable[[str], None]
"""Takes one sentence about a source that failed or was dropped."""


@dataclass(frozen=True)
class SourceReport:
    """What one source gave: `size` in bytes; `dropped` says why nothing more is taken from it."""

    name: str
    frames: int
    size: int
    lies: int
    failures: int
    dropped: str | None


class _Standing:
    """How one source has behaved; changed under the fetcher's lock."""

    def __init__(self, source: FrameSource) -> None:
        self.source = source
        self.frames = self.size = self.lies = self.failures = self.streak = 0
        self.first_failure = self.last_failure = 0.0
        self.dropped: str | None = None


class FrameFetcher:
    """Gives frames of one layer, each checked; used from several threads at once.

    `patience_s`: for how long a failing source is tried again while there is no better one. `pause_s`: how long the
    first pause between rounds is; later ones double, with jitter. `note` is told what goes wrong.
    """

    def __init__(self, sources: Sequence[FrameSource], *, patience_s: float = 60.0, pause_s: float = 0.25,
                 note: Note | None = None) -> None:
        self._standings = [_Standing(source) for source in sources]
        self._patience_s = patience_s
        self._pause_s = pause_s
        self._note = note or (lambda _sentence: None)
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def frame(self, frame: Frame) -> bytes:
        """Return the compressed bytes of `frame`, exactly those that its digest names.

        Raises NetworkError when no source is left that has it; the sentence names each and why.
        """
        pause, reasons = self._pause_s, dict[str, str]()
        while True:
            standings = self._in_order()
            absent = 0
            for standing in standings:
                try:
                    return self._ask(standing, frame)
                except NotFoundError as error:
                    absent += 1
                    reasons[standing.source.name] = error.sentence
                except RerootError as error:
                    reasons[standing.source.name] = error.sentence
                    self._failed(standing, error)
            if absent == len(standings) or self._closing.is_set():
                raise self._nothing_left(reasons)
            if self._in_order():
                self._closing.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, keeps no secret
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def report(self) -> tuple[SourceReport, ...]:
        """Say what each source gave so far."""
        with self._lock:
            return tuple(SourceReport(s.source.name, s.frames, s.size, s.lies, s.failures, s.dropped)
                         for s in self._standings)

    def cancel(self) -> None:
        """Make every waiting `frame` give up at its next failure."""
        self._closing.set()

    def _in_order(self) -> list[_Standing]:
        """Return the sources to ask: as given, those that failed just now last."""
        now = clock.monotonic()
        with self._lock:
            alive = [standing for standing in self._standings if standing.dropped is None]
            return sorted(alive, key=lambda s: s.streak > 0 and now - s.last_failure < RETRY_S)

    def _ask(self, standing: _Standing, frame: Frame) -> bytes:
        data = standing.source.read(frame.offset, frame.length)
        if len(data) != frame.length or blake3(data).digest() != frame.digest:
            raise CorruptError(f"{standing.source.name} sent other bytes than the release has at {frame.offset}")
        with self._lock:
            standing.frames += 1
            standing.size += len(data)
            standing.streak = 0
        return data

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
