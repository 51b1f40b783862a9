"""A release into a target directory: names, content, metadata, exactly. I/O: writes below the target only.

In this order: the skeleton (directories closed to others, symlinks, devices, fifos, empty files, large files at their
length) → frames, by parallel workers (each file of a frame made whole at once; of a large file, its piece) → hard
links → directories' own metadata, deepest first → everything synced. A frame counts as done only when what it made is
durable. Until the last step directories have mode 0700, so nothing in them can be reached by others.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import zstandard

from imaging.entry import ROOT, Entry, EntryType, Progress, parent, printable
from imaging.folders import Folders, sync_filesystem
from imaging.index import Frame, Index
from imaging.inodes import blamed, create, disk_error, finish, make_node, reopen, replace_name, segments, split, write
from plumbing import clock
from plumbing.errors import CorruptError, DiskError

SYNC_BYTES = 64 << 20
"""Finished frames are made durable, and reported, whenever as many bytes of them (unpacked) were written."""

_NO_NAMES = {b"", b".", b".."}
_DEFAULT_ACL = b"system.posix_acl_default"


class Frames(Protocol):
    """What gives verified frames: imaging.fetch.FrameFetcher."""

    def frame(self, frame: Frame) -> bytes:
        """Return the compressed bytes of a frame, checked."""


@dataclass(frozen=True)
class RestoreReport:
    """What a restore did; sizes in bytes, `seconds` of wall time. `frames_reused` were done before it began."""

    entries: int
    content_bytes: int
    frames: int
    frames_reused: int
    seconds: float


@dataclass
class _Large:
    """A file whose content is not one extent of one frame; `left` counts the frames that are still to come."""

    entry: Entry
    left: int = 0


@dataclass
class _Plan:
    """Which frame makes which files. A piece is (large file, offset in the frame, offset in the file, length)."""

    whole: dict[int, list[Entry]] = field(default_factory=dict)
    pieces: dict[int, list[tuple[_Large, int, int, int]]] = field(default_factory=dict)
    large: list[_Large] = field(default_factory=list)

    def numbers(self) -> list[int]:
        """The frames that hold any content, in layer order."""
        return sorted(self.whole.keys() | self.pieces.keys())


def restore(
    index: Index, fetcher: Frames, target: Path, *, workers: int = 2, progress: Progress | None = None,
    done: Set[int] | None = None, on_frame: Callable[[int], None] | None = None,
) -> RestoreReport:
    """Make the tree of `index` in the directory `target`, which is empty or holds an unfinished restore of the same.

    `done`: numbers of the frames that an earlier attempt reported through `on_frame`, whose files are not made again.
    `on_frame` is called in this thread, in any order, for frames whose files are durable. `progress` counts unpacked
    bytes. Raises DiskError when the target can't be written, CorruptError when the index contradicts itself, and what
    the fetcher raises; the target is unfinished then.
    """
    begin = clock.monotonic()
    plan = _plan(index)
    with Folders(target) as folders:
        earlier = _skeleton(index, plan, folders, frozenset(done or ()))
        numbers = [number for number in plan.numbers() if number not in earlier]
        _count_pieces(plan, numbers)
        run = _Run(index, plan, fetcher, target, numbers, progress, on_frame)
        run.frames(max(1, min(workers, len(numbers))))
        _links(index, target, folders)
        _finish_folders(index, folders)
        _sync(folders.enter(ROOT), target)
    return RestoreReport(len(index.entries), index.content_bytes, len(numbers), len(plan.numbers()) - len(numbers),
                         clock.monotonic() - begin)


# -- planning (pure) -------------------------------------------------------------------------------------------


def _plan(index: Index) -> _Plan:
    """Sort files by frame. Decoding an index checked it already; a hand-made one is checked here again."""
    plan = _Plan()
    folders = {ROOT}
    raw = [frame.raw_length for frame in index.frames]
    for entry in index.entries:
        path = entry.path
        above, _, name = path.rpartition(b"/")
        if path != ROOT and ((above or ROOT) not in folders or above == ROOT or name in _NO_NAMES or b"\0" in path):
            raise _bad(entry, "is not in a directory of the tree")
        if entry.is_directory:
            folders.add(path)
        elif entry.is_file:
            _plan_file(plan, entry, raw)
    return plan


def _plan_file(plan: _Plan, entry: Entry, raw: list[int]) -> None:
    extents = entry.extents
    place = 0
    if len(extents) == 1 and extents[0][2] == entry.size:
        number, offset, length = extents[0]
        if number < len(raw) and 0 <= offset <= raw[number] - length:
            plan.whole.setdefault(number, []).append(entry)
            return
    elif extents:
        large = _Large(entry)
        plan.large.append(large)
        for number, offset, length in extents:
            if number >= len(raw) or not 0 <= offset <= raw[number] - length:
                break
            plan.pieces.setdefault(number, []).append((large, offset, place, length))
            place += length
    if place != entry.size:
        raise _bad(entry, "has content that is not in the frames")


def _count_pieces(plan: _Plan, numbers: Iterable[int]) -> None:
    for number in numbers:
        for large in {id(piece[0]): piece[0] for piece in plan.pieces.get(number, ())}.values():
            large.left += 1


def _bad(entry: Entry, why: str) -> CorruptError:
    return CorruptError(f"the release's index is unusable: /{printable(entry.path)} {why}; publish the release anew")


def _skeleton(index: Index, plan: _Plan, folders: Folders, done: frozenset[int]) -> frozenset[int]:
    """Make everything that needs no frame; return the frames of `done` that are still good."""
    us = (os.geteuid(), os.getegid())
    for entry in index.entries:
        kind = entry.type
        if kind is EntryType.DIRECTORY:
            with blamed(entry.path):
                _make_folder(entry, folders)
        elif kind is not EntryType.LINK and not entry.extents:
            with blamed(entry.path):
                above, name = split(entry.path)
                make_node(entry, name, folders.enter(above), us)
    for large in plan.large:
        with blamed(large.entry.path):
            above, name = split(large.entry.path)
            if not done or not _reusable(large.entry, name, folders.enter(above)):
                done -= {extent.frame for extent in large.entry.extents}
                handle = create(name, folders.enter(above), 0o600)
                try:
                    os.ftruncate(handle, large.entry.size)
                finally:
                    os.close(handle)
    return done


def _reusable(entry: Entry, name: bytes, folder: int) -> bool:
    """Whether the large file of an interrupted restore is there, as a file of its own."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == entry.size


def _make_folder(entry: Entry, folders: Folders) -> None:
    if entry.path != ROOT:
        above, name = split(entry.path)
        try:
            os.mkdir(name, 0o700, dir_fd=folders.enter(above))
            return
        except FileExistsError:
            pass
    # It is the top, or an interrupted restore was here: close it again and let nothing be inherited from it.
    handle = folders.enter(entry.path)
    os.fchmod(handle, 0o700)
    if any(os.fsencode(name) == _DEFAULT_ACL for name in os.listxattr(handle)):
        os.removexattr(handle, _DEFAULT_ACL)


def _links(index: Index, target: Path, folders: Folders) -> None:
    links = [entry for entry in index.entries if entry.type is EntryType.LINK]
    if not links:
        return
    with Folders(target) as others:
        for entry in links:
            with blamed(entry.path):
                _link(entry, folders.enter(parent(entry.path)), others)


def _link(entry: Entry, folder: int, others: Folders) -> None:
    above, first = split(entry.link)
    there, name = others.enter(above), split(entry.path)[1]
    replace_name(name, folder, lambda: os.link(first, name, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False))


def _finish_folders(index: Index, folders: Folders) -> None:
    us = (-1, -1)  # an interrupted restore may have given them away
    for entry in reversed(index.entries):
        if entry.is_directory:
            with blamed(entry.path):
                finish(folders.enter(entry.path), entry, us)


def _sync(handle: int, target: Path) -> None:
    try:
        sync_filesystem(handle)
    except OSError as error:  # the kernel may have dropped the pages: trying again would report success
        raise DiskError(f"the filesystem at {target} lost what was written to it ({error.strerror}); the disk is "
                        "failing: replace it") from error


# -- frames ----------------------------------------------------------------------------------------------------


class _Run:
    """The frames of one restore: workers take numbers, this thread makes what they finished durable."""

    def __init__(self, index: Index, plan: _Plan, fetcher: Frames, target: Path, numbers: list[int],
                 progress: Progress | None, on_frame: Callable[[int], None] | None) -> None:
        self._index, self._plan, self._fetcher, self._target = index, plan, fetcher, target
        self._progress, self._on_frame = progress, on_frame
        self._todo = iter(numbers)
        self._total = sum(index.frames[number].raw_length for number in numbers)
        self._finished: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._stop = False
        self._us = (os.geteuid(), os.getegid())
        self._masked = 0o7777 & ~_plain_modes()

    def frames(self, workers: int) -> None:
        """Restore all frames; raises the first thing that went wrong, when every worker has stopped.

        An interrupt waits for none of them: one may wait for a server, and the process is about to end.
        """
        threads = [threading.Thread(target=self._work, name=f"restore-{n}", daemon=True) for n in range(workers)]
        for thread in threads:
            thread.start()
        failure: BaseException | None = None
        left = threads
        try:
            failure = self._collect(workers)
        except KeyboardInterrupt:
            left = []
            raise
        finally:
            self._stop = True
            for thread in left:
                thread.join()
        if failure is not None:
            raise failure

    def _collect(self, working: int) -> BaseException | None:
        written, pending, unsynced = 0, list[int](), 0
        with Folders(self._target) as top:
            while working:
                said = self._finished.get()
                if isinstance(said, BaseException):
                    return said
                if said is None:
                    working -= 1
                    continue
                size = self._index.frames[said].raw_length
                pending.append(said)
                unsynced += size
                written += size
                if self._progress is not None:
                    self._progress("restore", written, self._total)
                if self._on_frame is not None and unsynced >= SYNC_BYTES:
                    self._tell(top.enter(ROOT), pending)
                    pending, unsynced = [], 0
            if self._on_frame is not None and pending:
                self._tell(top.enter(ROOT), pending)
        return None

    def _tell(self, handle: int, pending: list[int]) -> None:
        assert self._on_frame is not None
        _sync(handle, self._target)
        for number in pending:
            self._on_frame(number)

    # The following run in the workers.

    def _work(self) -> None:
        try:
            unpacker = zstandard.ZstdDecompressor()
            with Folders(self._target) as folders:
                while not self._stop:
                    with self._lock:
                        number = next(self._todo, None)
                    if number is None:
                        break
                    self._unpack(number, unpacker, folders)
                    self._finished.put(number)
            self._finished.put(None)
        except BaseException as error:  # it is raised again in the thread that waits
            self._finished.put(error)

    def _unpack(self, number: int, unpacker: zstandard.ZstdDecompressor, folders: Folders) -> None:
        frame = self._index.frames[number]
        packed = self._fetcher.frame(frame)
        try:
            if zstandard.frame_content_size(packed) != frame.raw_length:
                raise _bad_frame(number, "does not have the length that the index says")
            raw = memoryview(unpacker.decompress(packed, max_output_size=frame.raw_length, allow_extra_data=False))
        except zstandard.ZstdError as error:
            raise _bad_frame(number, f"does not unpack ({error})") from error
        for entry in self._plan.whole.get(number, ()):
            _, offset, length = entry.extents[0]
            try:
                self._make(entry, raw[offset:offset + length], folders)
            except OSError as error:
                raise disk_error(entry.path, error) from error
        for large, offset, place, length in self._plan.pieces.get(number, ()):
            with blamed(large.entry.path):
                self._put(large.entry, raw, offset, place, length, folders)
        for large in {id(piece[0]): piece[0] for piece in self._plan.pieces.get(number, ())}.values():
            with self._lock:
                large.left -= 1
                last = large.left == 0
            if last:
                with blamed(large.entry.path):
                    self._complete(large.entry, folders)

    def _make(self, entry: Entry, data: memoryview, folders: Folders) -> None:
        """Make a file whole: open, write, whatever of chown, chmod and setxattr it needs, utime, close."""
        above, _, name = entry.path.rpartition(b"/")
        mode = entry.mode
        owned = entry.uid == self._us[0] and entry.gid == self._us[1]
        handle = create(name, folders.enter(above or ROOT), mode & 0o777 if owned else 0o600)
        try:
            if entry.holes:
                for start, length in segments(entry, 0, entry.size):
                    write(handle, data[start:start + length], start)
                os.ftruncate(handle, entry.size)
            elif os.write(handle, data) != len(data):
                write(handle, data, 0)
            if not owned or mode & self._masked or entry.xattrs:
                finish(handle, entry, self._us)
            else:
                os.utime(handle, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(handle)

    def _put(self, entry: Entry, raw: memoryview, offset: int, place: int, length: int, folders: Folders) -> None:
        above, name = split(entry.path)
        handle = reopen(name, folders.enter(above))
        try:
            for start, run in segments(entry, place, length):
                inside = offset + start - place
                write(handle, raw[inside:inside + run], start)
        finally:
            os.close(handle)

    def _complete(self, entry: Entry, folders: Folders) -> None:
        above, name = split(entry.path)
        handle = reopen(name, folders.enter(above))
        try:
            finish(handle, entry, (-1, -1))
        finally:
            os.close(handle)


def _plain_modes() -> int:
    """Return the permission bits that open gives a file as asked, the umask being what it is."""
    with Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("Umask:"):
                return 0o777 & ~int(line.split()[1], 8)
    return 0


def _bad_frame(number: int, why: str) -> CorruptError:
    return CorruptError(f"frame {number} of the release {why}, although its digest is right; publish the release anew")
