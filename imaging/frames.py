"""A tar stream into independent zstd frames, and the layer that holds them. I/O: writes to one open file.

`Cutter` decides where frames end (docs/protocols/release.md, "Where frames are cut"); `LayerWriter` compresses
them on all cores, writes them in order and closes the layer with index and seek table. Frames in flight are
bounded, so is memory: about (workers + 3) × 5 MiB.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Semaphore
from types import TracebackType
from typing import BinaryIO

import zstandard
from blake3 import blake3

from imaging.entry import Extent
from imaging.index import Frame

SMALLEST = 1 << 20
"""A frame of small files is at least this long unpacked, in bytes, unless a large file follows it."""
SPREAD = 1 << 20
"""Beyond SMALLEST a frame ends after as many bytes on average."""
LONGEST = 4 << 20
"""A frame of small files ends here at the latest; the entry that reaches it is still in it."""
LARGE = 1 << 20
"""A file with as much content has frames of its own."""
PIECE = 4 << 20
"""The content of a large file in one frame, in bytes."""

INDEX_MAGIC, TABLE_MAGIC, TABLE_END = 0x184D2A50, 0x184D2A5E, 0x8F92EAB1


@dataclass(frozen=True)
class Layer:
    """What a finished layer is: lengths in bytes, SHA-256 digests as hex."""

    size: int
    digest: str
    raw_size: int
    diff_id: str
    index_offset: int


@dataclass
class _Written:
    """What is in the file up to a point; changed by the writing thread alone."""

    offset: int
    frames: list[Frame]
    layer: hashlib._Hash
    tar: hashlib._Hash
    raw_size: int = 0

    def copy(self) -> _Written:
        return _Written(self.offset, list(self.frames), self.layer.copy(), self.tar.copy(), self.raw_size)


def compress(raw: bytes, level: int) -> tuple[bytes, bytes]:
    """Return one frame's compressed bytes and their BLAKE3."""
    data = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(raw)
    return data, blake3(data).digest()


class LayerWriter:
    """Writes a layer into `out`, an empty file open for writing; a context manager. Used by one thread.

    The bytes depend on the frames, the level and the zstd library, not on the number of workers.
    """

    def __init__(self, out: BinaryIO, *, level: int, workers: int, on_written: Callable[[int], None] | None = None,
                 ) -> None:
        self._out = out
        self._level = level
        self._on_written = on_written
        self._compressors = ThreadPoolExecutor(workers, "compress")
        self._writer = ThreadPoolExecutor(1, "write")
        self._room = Semaphore(workers + 2)
        self._failure: BaseException | None = None
        self._count = 0
        self._state = _Written(0, [], hashlib.sha256(), hashlib.sha256())
        self._marked: tuple[int, _Written] | None = None

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._compressors.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)

    @property
    def next_frame(self) -> int:
        """The number that the next frame will have."""
        return self._count

    def add(self, raw: bytes) -> None:
        """Append one frame; returns before it is written. Raises what an earlier frame's writing raised."""
        self._room.acquire()
        self._raise_failure()
        packed = self._compressors.submit(compress, raw, self._level)
        self._writer.submit(self._land, packed, raw)
        self._count += 1

    def mark(self) -> None:
        """Remember this point for `rewind`."""
        self._writer.submit(self._remember, self._count)

    def rewind(self) -> None:
        """Forget every frame since `mark`."""
        self._writer.submit(self._forget).result()

    def frames(self) -> tuple[Frame, ...]:
        """Wait until all frames are written and return them."""
        self._writer.submit(self._raise_failure).result()
        return tuple(self._state.frames)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def finish(self, index: bytes) -> Layer:
        """Append the compressed index and the seek table, and say what the file is now."""
        frames = self.frames()
        state = self._state
        index_offset = state.offset + 8
        skippable = struct.pack("<II", INDEX_MAGIC, len(index)) + index
        pairs = [(frame.length, frame.raw_length) for frame in frames] + [(len(skippable), 0)]
        table = b"".join(struct.pack("<II", *pair) for pair in pairs) + struct.pack("<IBI", len(pairs), 0, TABLE_END)
        tail = skippable + struct.pack("<II", TABLE_MAGIC, len(table)) + table
        self._out.write(tail)
        self._out.flush()
        state.layer.update(tail)
        return Layer(state.offset + len(tail), state.layer.hexdigest(), state.raw_size, state.tar.hexdigest(),
                     index_offset)

    # The following run in the writing thread, one after another.

    def _land(self, packed: Future[tuple[bytes, bytes]], raw: bytes) -> None:
        try:
            if self._failure is not None:
                return
            data, digest = packed.result()
            state = self._state
            self._out.write(data)
            state.layer.update(data)
            state.tar.update(raw)
            state.frames.append(Frame(state.offset, len(data), len(raw), digest))
            state.offset += len(data)
            state.raw_size += len(raw)
            if self._on_written is not None:
                self._on_written(state.raw_size)
        except BaseException as error:  # the frames after a lost one must not be written in its place
            self._failure = error
            raise
        finally:
            self._room.release()

    def _remember(self, count: int) -> None:
        self._marked = (count, self._state.copy())

    def _forget(self) -> None:
        self._raise_failure()
        assert self._marked is not None, "rewind without mark"
        self._count, state = self._marked
        self._state = state.copy()
        self._out.flush()
        self._out.seek(state.offset)
        self._out.truncate()


class Cutter:
    """Cuts entries' records into frames by the rule of the protocol."""

    def __init__(self, writer: LayerWriter) -> None:
        self._writer = writer
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, header: bytes, content: bytes, padding: bytes, digest: bytes) -> tuple[Extent, ...]:
        """Append a small entry's record and return where its content will be; `digest` is empty unless it is a file."""
        start = self._length + len(header)
        self._parts += (header, content, padding)
        self._length = start + len(content) + len(padding)
        extents = (Extent(self._writer.next_frame, start, len(content)),) if content else ()
        if self._length >= LONGEST or (self._length >= SMALLEST and digest
                                       and ends_frame(digest, len(header) + len(content) + len(padding))):
            self.cut()
        return extents

    def add_large(self, header: bytes, pieces: Iterable[bytes], padding: bytes) -> tuple[Extent, ...]:
        """Append a large file, whose `pieces` are PIECE bytes each but the last, in frames of its own.

        When `pieces` raises, nothing of the file is left behind.
        """
        self.cut()
        self._writer.mark()
        extents: list[Extent] = []
        held: bytes | None = None
        try:
            for piece in pieces:
                if held is not None:
                    self._writer.add(held)
                extents.append(Extent(self._writer.next_frame, len(header), len(piece)))
                held, header = header + piece, b""
        except BaseException:
            self._writer.rewind()
            raise
        self._writer.add((held if held is not None else header) + padding)
        return tuple(extents)

    def cut(self) -> None:
        """End the open frame, if anything is in it."""
        if self._parts:
            self._writer.add(b"".join(self._parts))
            self._parts, self._length = [], 0


def ends_frame(digest: bytes, record_length: int) -> bool:
    """Whether a file with this content digest ends a frame that is long enough."""
    return int.from_bytes(digest[:8], "big") * SPREAD < record_length << 64
