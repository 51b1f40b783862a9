"""Contents of a release's files by their number: from its tree, from its layer, unpacked. I/O: reads only.

A delta is applied to those of the old release, and what it can't make comes from those of the new.
Nothing that is read here is believed: whoever makes something of it checks what was made. A file that is not as the
release had it, or that cannot be read, is CorruptError or NotFoundError, and its content is had otherwise.
"""

from __future__ import annotations

import os
import stat
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import zstandard

from imaging.delta import files
from imaging.entry import ROOT, Entry, printable
from imaging.folders import Folders
from imaging.index import Frame, Index
from imaging.repack import GzipReader
from plumbing.errors import CorruptError, NotFoundError

KEPT_FRAMES = 2
"""How many unpacked frames of a layer, of up to 16 MiB each, are kept for all threads."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FileContents(Protocol):
    """The files of a release by their number; used from several threads."""

    def read(self, row: int, offset: int, length: int) -> bytes:
        """Return a range of a file's content; raises NotFoundError or CorruptError when it can't."""


class FrameGiver(Protocol):
    """What gives verified frames: imaging.fetch.FrameFetcher."""

    def frame(self, frame: Frame) -> bytes:
        """Return the compressed bytes of a frame, checked."""


class TreeContents:
    """The release's tree, as it lies in `top`: a living root, say, in which files may have changed since."""

    def __init__(self, top: Path, index: Index) -> None:
        self._top = top
        self._files = files(index)
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._all: list[Folders] = []

    def read(self, row: int, offset: int, length: int) -> bytes:
        """Return a range of a file that still has the size it had."""
        entry = self._files[row]
        above, _, name = entry.path.rpartition(b"/")
        try:
            handle = os.open(name, _OPEN, dir_fd=self._folders().enter(above or ROOT))
            try:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
                    raise CorruptError(f"{self._shown(entry)} is not what the release had there")
                data = os.pread(handle, length, offset)
                while len(data) < length:
                    more = os.pread(handle, length - len(data), offset + len(data))
                    if not more:
                        raise CorruptError(f"{self._shown(entry)} became shorter while it was read")
                    data += more
            finally:
                os.close(handle)
        except OSError as error:
            raise NotFoundError(f"{self._shown(entry)} can't be read ({error.strerror})") from error
        return data

    def close(self) -> None:
        """Close what is open; no thread may be reading."""
        with self._lock:
            for folders in self._all:
                folders.__exit__(None, None, None)
            self._all.clear()

    def _folders(self) -> Folders:
        found: Folders | None = getattr(self._mine, "folders", None)
        if found is None:
            found = self._mine.folders = Folders(self._top)
            with self._lock:
                self._all.append(found)
        return found

    def _shown(self, entry: Entry) -> str:
        return f"{self._top}/{printable(entry.path)}"


class LayerContents:
    """The release's layer, frame by frame; what was unpacked last is kept."""

    def __init__(self, index: Index, frames: FrameGiver) -> None:
        self._index = index
        self._files = files(index)
        self._unpacked = Kept(KEPT_FRAMES, lambda number: unpacked(index.frames[number], frames))

    def read(self, row: int, offset: int, length: int) -> bytes:
        """Return a range of a file's content, out of the frames that hold it."""
        parts, place = list[bytes](), 0
        for extent in self._files[row].extents:
            start, end = max(offset, place), min(offset + length, place + extent.length)
            if start < end:
                inside = extent.offset + start - place
                parts.append(self._unpacked.get(extent.frame)[inside:inside + end - start])
            place += extent.length
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Payloads:
    """What gzip files of the old release unpack to, read in runs that go forward."""

    def __init__(self, old: FileContents, index: Index) -> None:
        self._old = old
        self._files = files(index)

    def read(self, row: int, offset: int, length: int) -> bytes:
        """Return a range of a payload; raises CorruptError when there is none there."""
        size = self._files[row].size
        try:
            reader = GzipReader(lambda at, count: self._old.read(row, at, max(0, min(count, size - at))))
            reader.skip(offset)
            data = reader.read(length)
        except (zlib.error, IndexError, ValueError) as error:
            raise CorruptError(f"file {row} of the old release does not unpack ({error})") from error
        if len(data) != length:
            raise CorruptError(f"file {row} of the old release unpacks to less than the delta needs")
        return data


class Kept:
    """The last few values of a function of a number, made once each; used from several threads."""

    def __init__(self, count: int, make: Callable[[int], bytes]) -> None:
        self._count = count
        self._make = make
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def get(self, number: int) -> bytes:
        """Return the value for `number`; two threads that ask for the same may both make it."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        value = self._make(number)
        with self._lock:
            self._kept[number] = value
            while len(self._kept) > self._count:
                self._kept.popitem(last=False)
        return value


def unpacked(frame: Frame, frames: FrameGiver, dictionary: bytes = b"") -> bytes:
    """Return a frame's content; raises CorruptError when it does not unpack to its length."""
    packed = frames.frame(frame)
    shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    try:
        if zstandard.frame_content_size(packed) != frame.raw_length:
            raise CorruptError("a frame does not have the length that its index says; publish the release anew")
        unpacker = zstandard.ZstdDecompressor(dict_data=shared, max_window_size=1 << 27)
        return unpacker.decompress(packed, max_output_size=frame.raw_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError(f"a frame does not unpack ({error}); publish the release anew") from error
