"""A tar stream into independent zstd frames, and the layer that holds them. I/O: writes to one open file.

`Cutter` decides where frames end (docs/protocols/release.md, "Where frames are cut"); `LayerWriter` compresses
them on all cores, or takes what a base has compressed already, writes them in order and closes the layer with index and
seek table. Frames in flight are bounded, so is memory: FRAME_MEMORY and a compressor's for each worker.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Semaphore
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import zstandard
from blake3 import blake3

from imaging.entry import Extent
from imaging.index import Frame

if TYPE_CHECKING:
    from imaging.reuse import Base


class Cuts(NamedTuple):
    """Where frames end, all in bytes before compression.

    A frame of small files is at least `smallest` long, unless a large file follows it; beyond that it ends after
    `spread` bytes on average, and at `longest` at the latest (the entry that reaches it is still in it). A file with
    `large` bytes has frames of its own.
    """

    smallest: int
    spread: int
    longest: int
    large: int

    def ends(self, length: int, record: int, digest: bytes) -> bool:
        """Whether a frame of `length` ends with the small entry whose record is its last; a `digest` has a file."""
        return length >= self.longest or (
            length >= self.smallest and bool(digest)
            and int.from_bytes(digest[:8], "big") * self.spread < record << 64)


FINE = Cuts(256 << 10, 256 << 10, 1 << 20, 256 << 10)
"""For fast levels: their windows are short anyway, so small frames cost little and an upgrade fetches fewer bytes."""
COARSE = Cuts(1 << 20, 1 << 20, 4 << 20, 1 << 20)
"""For slow levels, which gain most from what lies far back."""
COARSE_LEVEL = 10
"""From this zstd level on frames are cut by COARSE."""
PIECE = 4 << 20
"""The content of a large file in one frame, in bytes."""

FRAME_MEMORY = 16 << 20
"""What a worker and the queue need for its frame, in bytes: unpacked, packed, and a base's two of it."""
WORKERS_MEMORY = 160 << 20
"""What all workers together may need, in bytes; the entries of the index come on top."""

Key = bytes | tuple[bytes, int]
"""What a base knows a frame by: the digests in it, or a large file's path and which of its pieces."""

_mine = threading.local()
"""Each thread's compressors: their tables are megabytes that need not be mapped anew for every frame."""

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
    reused: int = 0
    reused_bytes: int = 0

    def copy(self) -> _Written:
        return replace(self, frames=list(self.frames), layer=self.layer.copy(), tar=self.tar.copy())


class Packed(NamedTuple):
    """A frame's compressed bytes, their BLAKE3, and whether a base had them."""

    data: bytes
    digest: bytes
    reused: bool


def compression(level: int) -> str:
    """Return what makes the bytes of a frame what they are: the library, its version and the level."""
    return f"zstd-{'.'.join(map(str, zstandard.ZSTD_VERSION))}-{level}"


def level_of(made: str | None) -> int | None:
    """Return the level that gives the bytes of frames `made` so, with the library of this process; None for others."""
    return next((level for level in range(1, 20) if compression(level) == made), None)


def workers_for(level: int, cores: int) -> int:
    """Return how many workers may compress at `level` at once on so many cores, within WORKERS_MEMORY.

    At level 3 ten fit, more than SHA-256 in one thread can follow; at 19 two do.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=PIECE)
    each = int(parameters.estimated_compression_context_size()) + FRAME_MEMORY
    return max(1, min(cores, WORKERS_MEMORY // each))


def compress(raw: bytes, level: int, base: Base | None = None, candidate: Frame | None = None) -> Packed:
    """Return one frame compressed; the `candidate` of `base` if that is the same."""
    if base is not None and candidate is not None:
        known = base.same(candidate, raw)
        if known is not None:
            return Packed(known, candidate.digest, True)
    kept: dict[int, zstandard.ZstdCompressor] = _mine.__dict__.setdefault("compressors", {})
    compressor = kept.get(level)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        kept[level] = compressor
    data = compressor.compress(raw)
    return Packed(data, blake3(data).digest(), False)


class LayerWriter:
    """Writes a layer into `out`, an empty file open for writing; a context manager. Used by one thread.

    The bytes depend on the frames, the level and the zstd library, not on the number of workers. `cuts` is how its
    frames are to be cut.
    """

    def __init__(self, out: BinaryIO, *, level: int, workers: int, on_written: Callable[[int], None] | None = None,
                 base: Base | None = None) -> None:
        self._out = out
        self._level = level
        self._base = base
        self.cuts = FINE if level < COARSE_LEVEL else COARSE
        self._on_written = on_written
        self._compressors = ThreadPoolExecutor(workers, "compress")
        self._writer = ThreadPoolExecutor(1, "write")
        self._hasher = ThreadPoolExecutor(1, "hash")
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
        self._hasher.shutdown()

    @property
    def next_frame(self) -> int:
        """The number that the next frame will have."""
        return self._count

    @property
    def reused(self) -> tuple[int, int]:
        """How many of the frames came from the base, and their compressed bytes; once `frames` was called."""
        return self._state.reused, self._state.reused_bytes

    def add(self, raw: bytes, key: Key | None = None) -> None:
        """Append one frame; returns before it is written. Raises what an earlier frame's writing raised.

        `key` is what a frame with the same bytes would be known by in the base.
        """
        self._room.acquire()
        self._raise_failure()
        candidate = self._base.candidate(key, len(raw)) if self._base is not None and key is not None else None
        packed = self._compressors.submit(compress, raw, self._level, self._base, candidate)
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

    def _land(self, packed: Future[Packed], raw: bytes) -> None:
        try:
            if self._failure is not None:
                return
            data, digest, reused = packed.result()
            state = self._state
            tar = self._hasher.submit(state.tar.update, raw)  # the slowest step of all when nothing is compressed
            self._out.write(data)
            state.layer.update(data)
            tar.result()
            if reused:
                state.reused += 1
                state.reused_bytes += len(data)
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

    def __init__(self, writer: LayerWriter, cuts: Cuts = FINE) -> None:
        self._writer = writer
        self._cuts = cuts
        self._parts: list[bytes] = []
        self._length = 0
        self._files: list[tuple[int, bytes]] = []

    @property
    def large(self) -> int:
        """From how many bytes on a file goes to `add_large`."""
        return self._cuts.large

    def add(self, header: bytes, content: bytes, padding: bytes, digest: bytes) -> tuple[Extent, ...]:
        """Append a small entry's record and return where its content will be; `digest` is empty unless it is a file."""
        start = self._length + len(header)
        self._parts += (header, content, padding)
        self._length = start + len(content) + len(padding)
        extents = (Extent(self._writer.next_frame, start, len(content)),) if content else ()
        if content:
            self._files.append((start, digest))
        if self._cuts.ends(self._length, len(header) + len(content) + len(padding), digest):
            self.cut()
        return extents

    def add_large(self, path: bytes, header: bytes, pieces: Iterable[bytes], padding: bytes) -> tuple[Extent, ...]:
        """Append a large file, whose `pieces` are PIECE bytes each but the last, in frames of its own.

        Its header ends the frame before: another time or owner leaves the frames of the content as they are. A base is
        asked for the pieces of its file at the same `path`. When `pieces` raises, nothing of the file is left behind.
        """
        before = [*self._parts], self._length, [*self._files]
        self._writer.mark()
        self._parts.append(header)
        self.cut()
        extents: list[Extent] = []
        held: bytes | None = None
        try:
            for piece in pieces:
                if held is not None:
                    self._writer.add(held, (path, len(extents) - 1))
                extents.append(Extent(self._writer.next_frame, 0, len(piece)))
                held = piece
        except BaseException:
            self._writer.rewind()
            self._parts, self._length, self._files = before
            raise
        if held is not None or padding:
            self._writer.add((held or b"") + padding, (path, max(0, len(extents) - 1)))
        return tuple(extents)

    def cut(self) -> None:
        """End the open frame, if anything is in it."""
        if self._parts:
            self._writer.add(b"".join(self._parts), small_key(self._files) if self._files else None)
            self._parts, self._length, self._files = [], 0, []


def small_key(files: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the key of a frame of small files: (offset in the frame, BLAKE3) of each that has content, in order."""
    summed = blake3()
    for offset, digest in files:
        summed.update(struct.pack("<Q", offset) + digest)
    return summed.digest()
