"""Making a delta: what a release holds and an older one does not, packed with the old content as dictionary. I/O.

needed files → like old ones (delta_match) → frames with their dictionaries → compressed by threads, in order → head →
manifest in the store. Small files share a frame; so do their old ones its dictionary. Equal input gives equal bytes,
however many workers there are.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import zstandard
from blake3 import blake3

from imaging import cpio, delta, delta_match, repack
from imaging.audit import load_index
from imaging.delta import DICTIONARY_BYTES, FRAME_BYTES, Base, Content, Delta, DeltaFrame, Run, files
from imaging.delta_index import to_lines
from imaging.delta_manifest import DeltaManifest
from imaging.entry import Entry, EntryType, Extent, Progress
from imaging.fetch import FrameFetcher
from imaging.file_contents import LayerContents, Payloads
from imaging.index import Frame, Index
from imaging.packer import Packer, program_rows
from imaging.release import EMPTY, Release
from imaging.sources import FileSource
from imaging.store import Store
from plumbing.digest import sha256
from plumbing.errors import CorruptError, UsageError

LONGEST_PAYLOAD = 512 << 20
"""A file that unpacks to more is not taken apart, in bytes: the builder has it in memory."""
PROGRAM_BYTES = 16 << 10
"""A gzip file that is shorter is not worth starting a program for, in bytes."""
GROUP_BYTES = 1 << 20
"""Small files share a frame until it is as long, in bytes; larger ones have frames of their own."""
LEVEL, HARD_LEVEL = 9, 19
"""zstd levels: for what a dictionary makes short anyway, and for what it does not."""
HARD = 24
"""A frame that becomes longer than one HARDth of what it was is worth HARD_LEVEL."""


@dataclass
class _Part:
    """A run of a new file's content, or of its payload, in the frame that is being planned."""

    row: int
    payload: bool
    offset: int
    length: int


@dataclass
class _Job:
    """One frame to be packed."""

    parts: list[_Part] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    length: int = 0

    @property
    def dictionary_bytes(self) -> int:
        """The length of its dictionary."""
        return sum(run.length for run in self.runs)


@dataclass(frozen=True)
class _Packed:
    """A packed frame: its bytes, and what it unpacks to."""

    data: bytes
    raw_length: int
    raw_digest: bytes


def build(
    store: Store, old: Release, new: Release, *, workers: int | None = None, progress: Progress | None = None,
) -> bytes:
    """Make the delta from `old` to `new`, both in `store`, put it there and return its manifest.

    Raises UsageError when they are the same or of different architectures, CorruptError for a damaged release.
    """
    if old.digest == new.digest:
        raise UsageError(f"{old.ref} and {new.ref} are the same release; name an older and a newer one")
    if old.arch != new.arch:
        raise UsageError(f"{old.ref} and {new.ref} are of different architectures; no host goes from one to the other")
    threads = workers if workers is not None else len(os.sched_getaffinity(0))
    sources = [FileSource(store.blob_path(release.layer_digest)) for release in (old, new)]
    try:
        before, after = (load_index(store, release) for release in (old, new))
        work = _Build(before, after, *(LayerContents(index, FrameFetcher([source]))
                                       for index, source in zip((before, after), sources, strict=True)))
        with ExitStack() as opened, store.incoming() as blob:
            summed = hashlib.sha256()
            frames, at = list[DeltaFrame](), 0
            opened.callback(work.close)
            jobs, contents = work.plan()
            total, done = sum(job.length for job in jobs), 0
            for packed, runs in work.packed(jobs, threads):
                blob.stream.write(packed.data)
                summed.update(packed.data)
                frame = Frame(at, len(packed.data), packed.raw_length, blake3(packed.data).digest())
                frames.append(DeltaFrame(frame, packed.raw_digest, runs))
                at += frame.length
                done += packed.raw_length if len(frames) > 1 else 0
                if progress is not None:
                    progress("delta", done, total)
            head = delta.encode(Delta(old.digest, new.digest, frames[0], tuple(frames[1:]), contents))
            blob.stream.write(head)
            summed.update(head)
            digest = f"sha256:{summed.hexdigest()}"
            blob.keep(digest)
    finally:
        for source in sources:
            source.close()
    found = DeltaManifest(old.ref, new.ref, digest, at + len(head), at, len(head), sha256(head))
    found.read_head(head, old, new)  # what no host could read must not be published
    store.add_bytes(EMPTY)
    manifest = found.manifest()
    store.put_manifest(found.ref, DeltaManifest.parse(manifest).manifest())
    return manifest


class _Build:
    """One delta between two indexes and their contents."""

    def __init__(self, old: Index, new: Index, old_layer: LayerContents, new_layer: LayerContents) -> None:
        self._old, self._new = old, new
        self._old_layer, self._new_layer = old_layer, new_layer
        self._old_files, self._new_files = files(old), files(new)
        self._payloads = Payloads(old_layer, old)
        self._long_payloads: dict[int, bytes] = {}
        self._packer: Packer | None = None
        rows = program_rows(self._new_files)
        if rows is not None:
            self._packer = Packer({name: new_layer.read(row, 0, self._new_files[row].size)
                                   for name, row in rows.items()})

    def plan(self) -> tuple[list[_Job], tuple[Content, ...]]:
        """Return the frames to be packed and the contents they will hold."""
        rows = self._needed()
        likes = self._likes(rows)
        jobs, contents, group = list[_Job](), list[Content](), _Job()
        later = list[tuple[int, int, tuple[int, ...]]]()
        for row in rows:
            entry = self._new_files[row]
            taken = self._payload(entry, row)
            if taken and taken[0] > FRAME_BYTES:
                later.append((row, *taken))
                continue
            size = taken[0] if taken else entry.size
            runs = self._bases(likes.get(row), bool(taken))
            if size >= GROUP_BYTES:
                if group.length:
                    jobs.append(group)
                    group = _Job()
                first = len(jobs)
                jobs += [_Job([_Part(row, bool(taken), start, min(FRAME_BYTES, size - start))],
                              _window(runs, start, size), min(FRAME_BYTES, size - start))
                         for start in range(0, size, FRAME_BYTES)]
                extents = tuple(Extent(first + number, 0, job.length) for number, job in enumerate(jobs[first:]))
            else:
                needs = sum(run.length for run in runs)
                if group.length and (group.length + size > GROUP_BYTES
                                     or group.dictionary_bytes + needs > DICTIONARY_BYTES):
                    jobs.append(group)
                    group = _Job()
                extents = (Extent(len(jobs), group.length, size),)
                group.parts.append(_Part(row, bool(taken), 0, size))
                group.runs += [run for run in _window(runs, 0, size) if run not in group.runs]
                group.length += size
            contents.append(Content(row, extents, taken[1] if taken else ()))
        jobs += [group] if group.length else []
        places = {self._new_files[content.row].digest: content for content in contents}
        for row, size, recipe in later:
            first = len(jobs)
            jobs += self._archive(row, size, places)
            extents = tuple(Extent(first + number, 0, job.length) for number, job in enumerate(jobs[first:]))
            contents.append(Content(row, extents, recipe))
        return jobs, tuple(sorted(contents, key=lambda content: content.row))

    def close(self) -> None:
        """Remove what was needed to prove recipes."""
        if self._packer is not None:
            self._packer.close()

    def packed(self, jobs: list[_Job], workers: int) -> Iterator[tuple[_Packed, tuple[Run, ...]]]:
        """Yield the frame of the index and that of every job, in order."""
        with ThreadPoolExecutor(max(1, workers), "delta") as pool:
            waiting: deque[tuple[Future[_Packed], tuple[Run, ...]]] = deque()
            try:
                waiting.append((pool.submit(self._index), ()))
                for job in jobs:
                    if len(waiting) > 4 * workers:
                        future, runs = waiting.popleft()
                        yield future.result(), runs
                    waiting.append((pool.submit(self._pack, job, jobs), tuple(job.runs)))
                while waiting:
                    future, runs = waiting.popleft()
                    yield future.result(), runs
            finally:
                for future, _ in waiting:
                    future.cancel()

    # -- planning ---------------------------------------------------------------------------------------------------

    def _needed(self) -> list[int]:
        """Return the numbers of the files whose content is not in the old release, once each."""
        seen = {entry.digest for entry in self._old_files}
        found = list[int]()
        for row, entry in enumerate(self._new_files):
            if entry.size and entry.digest not in seen:
                seen.add(entry.digest)
                found.append(row)
        return found

    def _likes(self, rows: list[int]) -> dict[int, int]:
        aliases = {entry.path: entry.link for entry in self._old.entries if entry.type is EntryType.LINK}
        wanted = {self._new_files[row].path: row for row in rows}
        found = delta_match.matched(self._old_files, (self._new_files[row] for row in rows), aliases)
        kept = {entry.path for entry in self._new_files}
        rest = {path: self._head(self._new_layer, row, self._new_files[row]) for path, row in wanted.items()
                if path not in found and self._new_files[row].size >= delta_match.SMALLEST}
        gone = {row: self._head(self._old_layer, row, entry) for row, entry in enumerate(self._old_files)
                if entry.path not in kept and entry.size >= delta_match.SMALLEST} if rest else {}
        found |= delta_match.alike(gone, rest)
        return {wanted[path]: row for path, row in found.items()}

    @staticmethod
    def _head(layer: LayerContents, row: int, entry: Entry) -> _Head:
        return _Head(layer, row, min(entry.size, delta_match.SAMPLED_BYTES))

    def _payload(self, entry: Entry, row: int) -> tuple[int, tuple[int, ...]] | None:
        """Return the length of a gzip file's payload and the recipe that was proven, if there is one."""
        if not 18 <= entry.size <= LONGEST_PAYLOAD or self._new_layer.read(row, 0, 3) != b"\x1f\x8b\x08":
            return None
        data = self._new_layer.read(row, 0, entry.size)
        payload = repack.payload(data, LONGEST_PAYLOAD)
        if not payload:
            return None
        found = repack.unpack(data, LONGEST_PAYLOAD)
        recipe = found[1] if found else self._proven(data, payload)
        if recipe and len(payload) > FRAME_BYTES:
            self._long_payloads[row] = payload
        return (len(payload), recipe) if recipe else None

    def _proven(self, data: bytes, payload: bytes) -> tuple[int, ...] | None:
        """Return the recipe by which the release's own gzip makes the file again, if it does here and now."""
        level = repack.LEVELS.get(data[8])
        if self._packer is None or level is None or len(data) < PROGRAM_BYTES:
            return None
        header = data[:repack.header_length(data)]
        try:
            made = b"".join(self._packer.pack([payload], level, header))
        except CorruptError:  # of another architecture than this machine, say
            return None
        return (repack.PROGRAM, level, 1, *header) if made == data else None

    def _archive(self, row: int, size: int, places: Mapping[bytes, Content]) -> list[_Job]:
        """Return the frames of a long payload; what it holds of the release's own files are their dictionaries."""
        payload = self._long_payloads[row]
        old_rows = {entry.digest: row for row, entry in reversed(list(enumerate(self._old_files)))}
        found = list[tuple[int, int, Run]]()
        for _, start, length in cpio.members(payload):
            digest = blake3(memoryview(payload)[start:start + length]).digest()
            content = places.get(digest)
            if digest in old_rows:
                found.append((start, length, Run(Base.OLD, old_rows[digest], 0, length)))
            elif content is not None and not content.recipe and len(content.extents) == 1:
                extent = content.extents[0]
                found.append((start, length, Run(Base.FRAME, extent.frame, extent.offset, length)))
        jobs = list[_Job]()
        for begin in range(0, size, FRAME_BYTES):
            end = min(begin + FRAME_BYTES, size)
            runs = [Run(run.base, run.row, run.offset + max(0, begin - start),
                        min(end, start + length) - max(begin, start))
                    for start, length, run in found if start < end and begin < start + length]
            jobs.append(_Job([_Part(row, True, begin, end - begin)], runs, end - begin))
        return jobs

    def _bases(self, like: int | None, payload: bool) -> list[Run]:
        """Return what a file's dictionary is: its like, whole, or what that unpacks to."""
        if like is None:
            return []
        entry = self._old_files[like]
        if payload and 18 <= entry.size <= FRAME_BYTES:
            length = repack.payload_length(self._old_layer.read(like, 0, entry.size), FRAME_BYTES)
            if length:
                return [Run(Base.OLD_PAYLOAD, like, 0, length)]
        return [Run(Base.OLD, like, 0, entry.size)]

    # -- packing: in threads ----------------------------------------------------------------------------------------

    def _index(self) -> _Packed:
        return _pack(to_lines(self._new), to_lines(self._old), HARD_LEVEL)

    def _pack(self, job: _Job, jobs: Sequence[_Job]) -> _Packed:
        raw = b"".join(map(self._part, job.parts))
        dictionary = b"".join(self._run(run, jobs) for run in job.runs)
        found = _pack(raw, dictionary, LEVEL)
        if len(found.data) * HARD > len(raw):
            found = min(found, _pack(raw, dictionary, HARD_LEVEL), key=lambda one: len(one.data))
        return found

    def _part(self, part: _Part) -> bytes:
        entry = self._new_files[part.row]
        if not part.payload:
            return self._new_layer.read(part.row, part.offset, part.length)
        found = self._long_payloads.get(part.row) or repack.payload(
            self._new_layer.read(part.row, 0, entry.size), FRAME_BYTES)
        return found[part.offset:part.offset + part.length]

    def _run(self, run: Run, jobs: Sequence[_Job]) -> bytes:
        if run.base is Base.FRAME:
            at = 0
            for part in jobs[run.row].parts:
                if at == run.offset or at <= run.offset < at + part.length:
                    inside = run.offset - at
                    return self._part(_Part(part.row, part.payload, part.offset + inside, run.length))
                at += part.length
            raise AssertionError("a run begins where no file does")
        source = self._old_layer if run.base is Base.OLD else self._payloads
        return source.read(run.row, run.offset, run.length)


@dataclass(frozen=True)
class _Head:
    """Reads the first bytes of a file when they are asked for."""

    layer: LayerContents
    row: int
    length: int

    def __call__(self) -> bytes:
        return self.layer.read(self.row, 0, self.length)


def _window(runs: list[Run], start: int, size: int) -> list[Run]:
    """Return the part of a dictionary around a piece that begins at `start` of `size` bytes, of a bounded length."""
    found = list[Run]()
    for run in runs:
        if run.length <= DICTIONARY_BYTES:
            found.append(run)
            continue
        middle = run.length * start // size + FRAME_BYTES // 2
        first = max(0, min(middle - DICTIONARY_BYTES // 2, run.length - DICTIONARY_BYTES))
        found.append(Run(run.base, run.row, first, DICTIONARY_BYTES))
    return found


def _pack(raw: bytes, dictionary: bytes, level: int) -> _Packed:
    window = max(10, min(27, (len(raw) + len(dictionary)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(raw) + len(dictionary), window_log=window, write_content_size=1, write_checksum=0)
    shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    packer = zstandard.ZstdCompressor(compression_params=parameters, dict_data=shared)
    return _Packed(packer.compress(raw), len(raw), blake3(raw).digest())
