"""Frames fetched before they are asked for: wide ranges, from several providers at once. I/O through a fetcher.

Lanes, threads of their own, read the announced frames in order. Neighbours are read as one range, since a server's
answer costs about the same whatever its length; how wide a range is, and how much lies ready, is bounded, so a disk
slower than the network costs no memory.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType

from imaging.fetch import FrameFetcher
from imaging.index import Frame

SPAN_BYTES = 2 << 20
"""How wide a range becomes, in bytes, unless one frame alone is wider."""
AHEAD_BYTES = 16 << 20
"""How much may be on its way or lie ready, in bytes."""
LANES = 2
"""Ranges on their way from each provider: while one is checked the next is coming."""
MOST_LANES = 6
M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 256 << 10
"""mallopt(3): buffers of this many bytes are mapped, and given back to the kernel when they are freed."""


class Ahead:
    """Gives the frames of a fetcher, those that were announced before they are asked for; a context manager.

    `frames` are what will be asked for, roughly in that order, each once; any other is fetched when it is asked for.
    """

    def __init__(self, fetcher: FrameFetcher, frames: Sequence[Frame], *, span_bytes: int = SPAN_BYTES,
                 ahead_bytes: int = AHEAD_BYTES) -> None:
        # glibc raises the threshold to what was freed last, up to 32 MiB: every thread then keeps megabytes for itself
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        self._fetcher, self._span_bytes, self._ahead_bytes = fetcher, span_bytes, ahead_bytes
        self._todo = OrderedDict((frame.offset, frame) for frame in frames)
        self._coming: set[int] = set()
        self._ready: dict[int, bytes | BaseException] = {}
        self._held = 0
        self._changed = threading.Condition()
        self._stop = False
        count = min(max(1, LANES * fetcher.width), MOST_LANES, len(self._todo))  # one tells that there is no source
        self._lanes = [threading.Thread(target=self._lane, name=f"ahead-{n}", daemon=True) for n in range(count)]

    def __enter__(self) -> Ahead:
        for lane in self._lanes:
            lane.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if error is not None:
            self._fetcher.cancel()  # what a lane waits for nobody wants any more
        if isinstance(error, KeyboardInterrupt):
            return  # nor is waited for
        for lane in self._lanes:
            lane.join()

    @property
    def held(self) -> int:
        """What is on its way or lies ready, in bytes."""
        return self._held

    def frame(self, frame: Frame) -> bytes:
        """Return the compressed bytes of a frame, checked; raises what fetching it raised."""
        key = frame.offset
        with self._changed:
            # A lane will take it while there is room; with none left, whoever needs it fetches it.
            while key in self._coming or (key in self._todo and self._held < self._ahead_bytes and not self._stop):
                self._changed.wait()
            found = self._ready.pop(key, None)
            if found is None:
                self._todo.pop(key, None)  # asked for before its turn
            else:
                self._held -= frame.length
                self._changed.notify_all()
        if isinstance(found, BaseException):
            raise found
        return self._fetcher.frame(frame) if found is None else found

    # The following run in the lanes.

    def _lane(self) -> None:
        while frames := self._next():
            found: Sequence[bytes | BaseException]
            try:
                found = self._fetcher.span(frames)
            except BaseException as error:  # it is raised again where a frame is asked for
                found = [error] * len(frames)
            with self._changed:
                for frame, data in zip(frames, found, strict=True):
                    self._coming.discard(frame.offset)
                    self._ready[frame.offset] = data
                self._changed.notify_all()

    def _next(self) -> list[Frame]:
        """Wait for room and take the next neighbours; returns nothing when there is nothing left to do."""
        with self._changed:
            while not self._stop and self._todo and self._held >= self._ahead_bytes:
                self._changed.wait()
            taken: list[Frame] = []
            size = 0
            while not self._stop and self._todo:
                frame = next(iter(self._todo.values()))
                end = taken[-1].offset + taken[-1].length if taken else frame.offset
                if frame.offset != end or (taken and size + frame.length > self._span_bytes):
                    break
                taken.append(self._todo.pop(frame.offset))
                size += frame.length
            self._held += size
            self._coming.update(frame.offset for frame in taken)
            self._changed.notify_all()
            return taken
