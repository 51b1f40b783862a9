"""Frames made from files that hold their content: what a host being upgraded need not fetch. I/O: reads them.

A tar header follows from its entry in the index, a content from any file with its digest, a frame's bytes from both,
the zstd level and the zstd library. So a frame without new content can be made on the spot, bit for bit; it is
believed no more than one from a stranger, for whoever asks compares its BLAKE3. Another zstd library makes other
bytes; two of them, and the source is dropped as any that lies.
"""

from __future__ import annotations

import glob
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from blake3 import blake3

from imaging.entry import Entry
from imaging.excludes import Exclude
from imaging.frames import PIECE, compress
from imaging.index import Index
from imaging.scan import TreeReader, scan
from imaging.tarstream import END, header, order, padding
from plumbing.errors import BusyError, CorruptError, DiskError, NotFoundError


@dataclass(frozen=True)
class There:
    """A file that holds a content: `entry` is what it was when it was read."""

    tree: Path
    entry: Entry


def known_content(tree: Path, wanted: Collection[Entry]) -> dict[bytes, There]:
    """Return which of the contents of `wanted` some file of `tree` holds, by their digests.

    Only files of a length that is still wanted are read, and none at or beyond a mount point, nor those with more holes
    than a content of that length: any user can make thousands, of no bytes and of hours to read. What changes meanwhile
    is left out.
    """
    lacking, hollow = dict[int, set[bytes]](), dict[int, int]()
    for entry in filter(lambda entry: entry.size, wanted):
        lacking.setdefault(entry.size, set()).add(entry.digest)
        hollow[entry.size] = max(hollow.get(entry.size, 0), _hollow(entry))
    found: dict[bytes, There] = {}
    with TreeReader(tree) as reader:
        for entry in scan(tree, excludes=list(_mounts(tree)), one_file_system=True):
            if not entry.is_file or not lacking.get(entry.size) or _hollow(entry) > hollow[entry.size]:
                continue
            summed = blake3()
            try:
                for piece in reader.pieces(entry):
                    summed.update(piece)
            except (BusyError, DiskError):
                continue
            if summed.digest() in lacking[entry.size]:
                lacking[entry.size].remove(summed.digest())
                found[summed.digest()] = There(tree, entry)
    return found


def _mounts(tree: Path) -> Iterator[Exclude]:
    """Yield what is mounted below `tree`: root may not even look at a user's FUSE, and waits long for a dead server."""
    top = os.fsencode(tree.resolve()).rstrip(b"/") + b"/"
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:  # a name may hold a carriage return
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])
        if point.startswith(top) and point != top:
            yield Exclude("/" + glob.escape(os.fsdecode(point.removeprefix(top))))


def _hollow(entry: Entry) -> int:
    """Return how many bytes of a file are holes."""
    return sum(hole.length for hole in entry.holes)


class TreeSource:
    """The frames of a release that can be made from files of this machine; used from several threads at once.

    `found` is what `known_content` says of the release's entries, `level` the zstd level of the release.
    """

    def __init__(self, index: Index, found: Mapping[bytes, There], level: int) -> None:
        self.name = "this machine's own files"
        self._found, self._level, self._frames = found, level, index.frames
        self._entries = [index.entries[row] for row in order(index.entries)]
        self._frame_starts = [0, *accumulate(frame.raw_length for frame in index.frames)]
        self._offsets = {frame.offset: number for number, frame in enumerate(index.frames)}
        self._starts: list[int] = []
        place = 0
        for entry in self._entries:
            self._starts.append(place)
            place += len(header(entry)) + entry.size + len(padding(entry.size))
        self._end = place
        lacking = {extent.frame for entry in index.entries if entry.size and entry.digest not in found
                   for extent in entry.extents}
        sound = place + len(END) == self._frame_starts[-1]
        self._has = frozenset(range(len(index.frames))) - lacking if sound else frozenset()

    def has(self, number: int) -> bool:
        """Whether the frame of that number has no content that the tree lacks."""
        return number in self._has

    def read(self, offset: int, length: int) -> bytes:
        """Make the frames that lie in a range of the layer; raises NotFoundError for any other range."""
        made, place = [], offset
        while place < offset + length:
            number = self._offsets.get(place)
            if number is None or number not in self._has:
                raise NotFoundError(f"{length} bytes at {offset} can't be made from {self.name}")
            data = compress(self._raw(number), self._level).data
            if len(data) != self._frames[number].length:
                raise CorruptError(f"frame {number} comes out otherwise when it is made from {self.name}: they "
                                   "changed, or another zstd made the release; it is fetched")
            made.append(data)
            place += len(data)
        data = b"".join(made)
        if len(data) != length:
            raise NotFoundError(f"{length} bytes at {offset} are no whole frames")
        return data

    def _raw(self, number: int) -> bytes:
        begin, end = self._frame_starts[number], self._frame_starts[number + 1]
        if begin >= self._end:
            return END
        parts = []
        for row in range(bisect_right(self._starts, begin) - 1, bisect_left(self._starts, end)):
            entry, start = self._entries[row], self._starts[row]
            head = header(entry)
            parts.append(head[max(0, begin - start):max(0, end - start)])
            content = start + len(head)
            first, last = max(begin - content, 0), min(end - content, entry.size)
            if first < last:
                parts.append(self._content(entry, first, last))
            tail = content + entry.size
            parts.append(padding(entry.size)[max(0, begin - tail):max(0, end - tail)])
        return b"".join(parts)

    def _content(self, entry: Entry, first: int, last: int) -> bytes:
        """Return a run of a content, from the file that has it now."""
        there = self._found[entry.digest]
        try:
            with TreeReader(there.tree) as reader:
                return b"".join(reader.pieces(there.entry, PIECE, first, last))
        except (BusyError, DiskError) as error:
            raise NotFoundError(f"{self.name} have changed: {error.sentence}") from error
