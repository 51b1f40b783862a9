"""A delta and the old release into the new release's tree, through the ordinary restore. I/O: reads old content.

The new tree's files are laid out anew in frames that exist nowhere: runs of files that the old release has too, and the
frames of the delta with their contents as they will be. `Applied` makes such a frame when the restore asks for it, so a
delta is applied with the restore's own workers, metadata, durability and resumption. Every file is checked against the
new index; whatever the delta or the old content can't give right comes from the full release instead.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from imaging import delta, repack
from imaging.delta import Base, Content, Delta, files
from imaging.delta_index import from_lines, to_lines
from imaging.entry import ROOT, Entry, EntryType, Extent, Progress, printable
from imaging.file_contents import FileContents, FrameGiver, Kept, LayerContents, Payloads, unpacked
from imaging.folders import Folders
from imaging.index import Frame, Index
from imaging.packer import Packer, program_rows
from imaging.restore import RestoreReport, restore
from imaging.verify import compare
from plumbing.errors import CorruptError, NetworkError, NotFoundError

PIECE = 4 << 20
"""How much of the old content one made-up frame copies, in bytes."""

UNMADE = (CorruptError, NotFoundError, NetworkError)
"""What is raised when a delta, or the old content, does not give a file; the full release does."""

_BLOCK = 128 << 10
_KEPT_FRAMES = 4


@dataclass(frozen=True)
class _Part:
    """`length` bytes at `offset` of the new file number `row`; `whole` when that is all of it."""

    row: int
    offset: int
    length: int
    whole: bool


@dataclass
class Taken:
    """Where the new tree came from; sizes in bytes. `missed` names files that came from the full release."""

    copied: int = 0
    made: int = 0
    fetched: int = 0
    missed: tuple[str, ...] = ()


def new_index(head: Delta, old: Index, frames: FrameGiver) -> Index:
    """Return the new release's index out of the delta; raises CorruptError."""
    data = unpacked(head.index.frame, frames, to_lines(old))
    if blake3(data).digest() != head.index.raw_digest:
        raise delta.bad("its index does not come out right")
    return from_lines(data)


def apply(
    head: Delta, old: Index, new: Index, target: Path, *, contents: FileContents, frames: FrameGiver, full: FrameGiver,
    workers: int = 2, progress: Progress | None = None, done: Set[int] | None = None,
    on_frame: Callable[[int], None] | None = None, scratch: Path | None = None,
) -> tuple[RestoreReport, Taken]:
    """Make the tree of `new` in `target`, as imaging.restore does, out of a delta and what the old release had.

    `contents` are the old release's files, `frames` gives the delta's frames and `full` those of the new layer, asked
    only for what went wrong. `done` and `on_frame` are as in restore: the numbers are of the made-up frames, the same
    for the same releases. `scratch` is where a payload lies while it is packed again (default: the target's
    neighbourhood). Raises what restore raises, and CorruptError when even the full release doesn't give a file.
    """
    delta.check(head, old, new)
    applied = Applied(head, old, new, contents, frames, full, scratch or target)
    try:
        report = restore(applied.index, applied, target, workers=workers, progress=progress, done=done,
                         on_frame=on_frame)
        applied.verify_pieced(target)
    finally:
        applied.close()
    return report, applied.taken()


def make_contents(
    head: Delta, old: Index, new: Index, folder: Path, wanted: Set[bytes], *, contents: FileContents,
    frames: FrameGiver, full: FrameGiver, workers: int = 2, progress: Progress | None = None,
) -> Taken:
    """Make those contents of `new` whose digests are `wanted` as files named by them in `folder`, which is empty.

    The other arguments are those of `apply`. A content made in pieces is right by the delta's word alone: whoever uses
    it compares its digest.
    """
    delta.check(head, old, new)
    applied = Applied(head, old, new, contents, frames, full, folder)
    top = Entry(ROOT, EntryType.DIRECTORY, 0o700, 0, 0, 0)
    named = {entry.digest: Entry(entry.digest.hex().encode(), EntryType.FILE, 0o600, 0, 0, 0, entry.size,
                                 digest=entry.digest, extents=entry.extents)
             for entry in applied.index.entries if entry.size and entry.digest in wanted}
    try:
        restore(Index((top, *named.values()), applied.index.frames), applied, folder, workers=workers,
                progress=progress)
    finally:
        applied.close()
    return applied.taken()


class Applied:
    """Frames of a layer that nobody wrote: `index` is the new index, its files in them. Used from several threads."""

    def __init__(self, head: Delta, old: Index, new: Index, contents: FileContents, frames: FrameGiver,
                 full: FrameGiver, scratch: Path) -> None:
        self._head, self._frames, self._contents = head, frames, contents
        self._old_files, self._files = files(old), files(new)
        self._payloads = Payloads(contents, old)
        self._full = LayerContents(new, full)
        self._scratch = scratch
        self._old_rows = {entry.digest: row for row, entry in reversed(list(enumerate(self._old_files)))}
        self._made = {self._files[content.row].digest: content for content in head.contents}
        self._unpacked = Kept(_KEPT_FRAMES, self._unpack)
        self._lock = threading.Lock()
        self._packing, self._starting = threading.Lock(), threading.Lock()
        self._packer: Packer | None = None
        self._spools: dict[int, int] = {}
        self._sound: dict[int, bool] = {}
        self._taken = Taken()
        self._missed: set[int] = set()
        self._parts: list[list[_Part]] = []
        self._lengths: list[int] = []
        self.index = self._lay_out(new)

    # -- laying out ---------------------------------------------------------------------------------------------

    def _lay_out(self, new: Index) -> Index:
        """Give every content a place in made-up frames: what takes long first, then the delta's, then copies."""
        extents: dict[bytes, tuple[Extent, ...]] = {}
        spooled = [content.row for content in self._head.contents if content.recipe and len(content.extents) > 1]
        first = {row: self._put(self._new_frame(), self._piece(row, 0)) for row in spooled}
        extents.update((self._files[row].digest, ()) for row in spooled)
        by_frame: dict[int, int] = {}
        for content in self._head.contents:
            entry = self._files[content.row]
            if entry.digest in extents or not entry.size:
                continue
            place, found = 0, list[Extent]()
            for extent in content.extents:
                number = by_frame.get(extent.frame)
                if number is None:
                    number = by_frame[extent.frame] = self._new_frame()
                length = entry.size if content.recipe else extent.length
                found.append(self._put(number, _Part(content.row, place, length, length == entry.size)))
                place += length
            extents[entry.digest] = tuple(found)
        group = -1
        for row, entry in enumerate(self._files):
            if not entry.size or entry.digest in extents:
                continue
            if entry.size > PIECE:
                extents[entry.digest] = self._pieces(row)
                continue
            if group < 0 or self._lengths[group] + entry.size > PIECE:
                group = self._new_frame()
            extents[entry.digest] = (self._put(group, _Part(row, 0, entry.size, True)),)
        for row in spooled:  # what one worker packs the others must not wait for
            extents[self._files[row].digest] = (first[row], *self._pieces(row, PIECE))
        frames = tuple(Frame(number, 1, length, b"") for number, length in enumerate(self._lengths))
        entries = tuple(replace(entry, extents=extents[entry.digest]) if entry.is_file and entry.size else entry
                        for entry in new.entries)
        return Index(entries, frames)

    def _pieces(self, row: int, start: int = 0) -> tuple[Extent, ...]:
        return tuple(self._put(self._new_frame(), self._piece(row, at))
                     for at in range(start, self._files[row].size, PIECE))

    def _piece(self, row: int, start: int) -> _Part:
        size = self._files[row].size
        return _Part(row, start, min(PIECE, size - start), size <= PIECE)

    def _new_frame(self) -> int:
        self._parts.append([])
        self._lengths.append(0)
        return len(self._parts) - 1

    def _put(self, number: int, part: _Part) -> Extent:
        offset = self._lengths[number]
        self._parts[number].append(part)
        self._lengths[number] += part.length
        return Extent(number, offset, part.length)

    # -- making frames: in the restore's workers ----------------------------------------------------------------

    def frame(self, frame: Frame) -> bytes:
        """Return a made-up frame as a zstd frame of blocks that are not compressed."""
        return stored(b"".join(map(self._bytes, self._parts[frame.offset])))

    def taken(self) -> Taken:
        """Say where everything came from so far."""
        names = tuple(sorted(f"/{printable(self._files[row].path)}" for row in self._missed))
        return replace(self._taken, missed=names)

    def made(self, content: Content) -> Iterator[bytes]:
        """Yield what the delta makes of a content, piece by piece, for the caller to compare; raises one of UNMADE."""
        if content.recipe:
            return _up_to(self._files[content.row].size, self._packed(content))
        return self._extents(content)

    def unpacks(self, content: Content) -> bool:
        """Whether the frames of a content come out right, whatever becomes of them when they are packed again."""
        try:
            return all(self._extents(content))
        except UNMADE:
            return False

    def verify_pieced(self, target: Path) -> None:
        """Read back the files of the delta that were made piece by piece; raises CorruptError.

        Their pieces were right by the delta's word alone: now the new index has its say.
        """
        with Folders(target) as folders, Folders(target) as others:
            for content in self._head.contents:
                entry = self._files[content.row]
                if len(content.extents) > 1 and any(found.what == "content"
                                                    for found in compare(entry, folders, others)):
                    raise delta.bad(f"/{printable(entry.path)} does not come out as the release has it")

    def close(self) -> None:
        """Remove what was packed again."""
        for handle in self._spools.values():
            os.close(handle)
        self._spools.clear()
        if self._packer is not None:
            self._packer.close()

    def _bytes(self, part: _Part) -> bytes:
        """Return one part, checked; from the full release when the delta or the old content doesn't give it right."""
        entry = self._files[part.row]
        content = self._made.get(entry.digest)
        try:
            data = self._copy(entry, part) if content is None else self._make(content, entry, part)
            if len(data) != part.length or (part.whole and blake3(data).digest() != entry.digest):
                raise CorruptError(f"/{printable(entry.path)} is not as the release has it")
        except UNMADE:
            data = self._full.read(part.row, part.offset, part.length)
            if len(data) != part.length or (part.whole and blake3(data).digest() != entry.digest):
                raise CorruptError(f"/{printable(entry.path)} of the full release is not what its index says; publish "
                                   "the release anew") from None
            with self._lock:
                self._missed.add(part.row)
                self._taken.fetched += part.length
            return data
        with self._lock:
            if content is None:
                self._taken.copied += part.length
            else:
                self._taken.made += part.length
        return data

    def _copy(self, entry: Entry, part: _Part) -> bytes:
        row = self._old_rows[entry.digest]
        if not part.whole:
            sound = self._sound.get(row)
            if sound is None:
                sound = self._sound[row] = self._is_sound(row, entry)
            if not sound:
                raise CorruptError(f"/{printable(entry.path)} is not as the old release had it")
        return self._contents.read(row, part.offset, part.length)

    def _is_sound(self, row: int, entry: Entry) -> bool:
        """Whether a long file is what it was, before pieces of it are believed."""
        summed = blake3()
        try:
            for start in range(0, entry.size, PIECE):
                summed.update(self._contents.read(row, start, min(PIECE, entry.size - start)))
        except (CorruptError, NotFoundError):
            return False
        return summed.digest() == entry.digest

    def _make(self, content: Content, entry: Entry, part: _Part) -> bytes:
        if content.recipe and len(content.extents) > 1:
            handle = self._spool(content, entry)
            return os.pread(handle, part.length, part.offset)
        if content.recipe:
            return b"".join(self.made(content))
        place = 0
        for extent in content.extents:
            if place == part.offset:
                return self._unpacked.get(extent.frame)[extent.offset:extent.offset + extent.length]
            place += extent.length
        raise AssertionError("a part begins where no extent does")

    def _extents(self, content: Content) -> Iterator[bytes]:
        return (self._unpacked.get(extent.frame)[extent.offset:extent.offset + extent.length]
                for extent in content.extents)

    def _packed(self, content: Content) -> Iterable[bytes]:
        """Yield what a recipe makes of a payload; raises CorruptError when nothing here can follow it."""
        payload = self._extents(content)
        if not repack.is_recipe(content.recipe):
            raise delta.bad("it has a recipe that this reroot does not know")
        if content.recipe[0] == repack.ZLIB:
            return repack.pack_pieces(payload, content.recipe)
        return self._program().pack(payload, content.recipe[1], bytes(content.recipe[3:]))

    def _program(self) -> Packer:
        with self._starting:
            if self._packer is None:
                rows = program_rows(self._files)
                if rows is None:
                    raise delta.bad("it needs a gzip that the new release does not have")
                self._packer = Packer({name: self._bytes(_Part(row, 0, self._files[row].size, True))
                                       for name, row in rows.items()})
            return self._packer

    def _spool(self, content: Content, entry: Entry) -> int:
        """Pack a long payload again into a file without a name, once, and return it; raises CorruptError."""
        with self._packing:
            if content.row not in self._spools:
                # nothing to read until it is made, and for good when it can't be
                self._spools[content.row] = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                with tempfile.TemporaryFile(dir=self._scratch) as stream:
                    summed = blake3()
                    for piece in self.made(content):
                        summed.update(piece)
                        stream.write(piece)
                    stream.flush()
                    if summed.digest() == entry.digest:
                        os.dup2(stream.fileno(), self._spools[content.row], inheritable=False)
            return self._spools[content.row]

    def _unpack(self, number: int) -> bytes:
        """Return a frame of the delta, unpacked and checked; raises CorruptError."""
        one = self._head.frames[number]
        parts = list[bytes]()
        for run in one.runs:
            if run.base is Base.FRAME:
                parts.append(self._unpacked.get(run.row)[run.offset:run.offset + run.length])
            elif run.base is Base.OLD:
                parts.append(self._contents.read(run.row, run.offset, run.length))
            else:
                parts.append(self._payloads.read(run.row, run.offset, run.length))
        data = unpacked(one.frame, self._frames, b"".join(parts))
        if blake3(data).digest() != one.raw_digest:
            raise CorruptError("a frame of the delta does not come out right: an old file is not as it was")
        return data


def _up_to(size: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield pieces of at most `size` bytes together; raises CorruptError at the first byte more."""
    for piece in pieces:
        size -= len(piece)
        if size < 0:
            raise CorruptError("what is packed again becomes longer than the file was")
        yield piece


def stored(data: bytes) -> bytes:
    """Return a zstd frame of raw blocks (RFC 8878, 3.1.1): what restore takes, at the price of a copy."""
    view = memoryview(data)
    parts: list[bytes | memoryview] = [struct.pack("<IBI", 0xFD2FB528, 0xA0, len(data))]
    for start in range(0, len(data), _BLOCK):
        block = view[start:start + _BLOCK]
        last = start + _BLOCK >= len(data)
        parts += [struct.pack("<I", len(block) << 3 | last)[:3], block]
    return b"".join(parts)
