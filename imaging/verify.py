"""A restored tree against its index, as the disk holds it. I/O: reads the target, changes nothing.

Everything is synced first and each file's pages are dropped from the cache before it is read, so what is compared came
back from the disk. Names that no entry has are reported too: a tree is right only when nothing is missing and nothing
is more.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue

from blake3 import blake3

from imaging.entry import ROOT, Entry, EntryType, Progress, parent, printable
from imaging.folders import Folders, sync_filesystem
from imaging.index import Index
from plumbing.errors import DiskError

WORKERS = 2
EXPECTED_EXTRAS = (b"lost+found",)
"""mkfs makes it, and no release has it."""
CHUNK = 1 << 20
"""How much of a file is read at a time, in bytes."""
BATCH = 128
"""How many entries a worker takes at a time: enough to stay within a few directories."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TYPES = {
    EntryType.DIRECTORY: stat.S_IFDIR, EntryType.FILE: stat.S_IFREG, EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.CHAR: stat.S_IFCHR, EntryType.BLOCK: stat.S_IFBLK, EntryType.FIFO: stat.S_IFIFO,
}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(frozen=True)
class Mismatch:
    """One way in which the target is not what the index says; `what` is a short fixed word."""

    path: bytes
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"/{printable(self.path)}: {self.what} is {self.found}, not {self.expected}"


def verify(
    index: Index, target: Path, progress: Progress | None = None, *, workers: int = WORKERS,
    extras: Collection[bytes] = EXPECTED_EXTRAS,
) -> list[Mismatch]:
    """Compare every entry of `index` with what `target` holds; an empty list means that they are the same.

    `progress` counts bytes of content. `extras`: paths that may be there without an entry, with all below them.
    Raises DiskError when what was written did not reach the disk or the target can't be entered; a file that can't
    be read is a mismatch.
    """
    write_out(target)
    check = _Check(index, target, frozenset(extras))
    threads = [threading.Thread(target=check.work, name=f"verify-{n}", daemon=True) for n in range(max(1, workers))]
    for thread in threads:
        thread.start()
    working, done, total = len(threads), 0, index.content_bytes
    failure: BaseException | None = None
    while working:
        said = check.said.get()
        if isinstance(said, int):
            done += said
            if progress is not None:
                progress("verify", done, total)
        else:
            working -= 1
            failure = failure or said
    for thread in threads:
        thread.join()
    if failure is not None:
        raise failure
    return sorted(check.found, key=lambda mismatch: (mismatch.path, mismatch.what))


def write_out(target: Path) -> None:
    """Write out the filesystem at `target`, so that `compare` reads the disk; raises DiskError when any was lost."""
    with Folders(target) as top:
        try:
            sync_filesystem(top.enter(ROOT))
        except OSError as error:
            raise DiskError(f"the filesystem at {target} lost what was written to it ({error.strerror}); the disk is "
                            "failing: replace it") from error


def compare(
    entry: Entry, folders: Folders, others: Folders, told: Callable[[int], None] | None = None,
) -> Iterator[Mismatch]:
    """Yield every way in which the name of `entry` is not what it says; what a directory holds is not looked at.

    `folders` and `others` have the same top, which `write_out` has synced; `others` finds what a hard link joins.
    `told` is given the bytes of each piece that was read.
    """
    return _blamed(entry, _differences(entry, folders, others, told))


class _Check:
    """The entries of one verification; workers take them in batches."""

    def __init__(self, index: Index, target: Path, extras: frozenset[bytes]) -> None:
        self._target = target
        self._extras = extras
        self._entries = iter(index.entries)
        self._lock = threading.Lock()
        self._names: dict[bytes, set[bytes]] = {}
        for entry in index.entries[1:]:
            above, _, name = entry.path.rpartition(b"/")
            self._names.setdefault(above or ROOT, set()).add(name)
        self.found: list[Mismatch] = []
        self.said: SimpleQueue[int | BaseException | None] = SimpleQueue()

    def work(self) -> None:
        """Check batches until there are none left; the last thing said is None or what went wrong."""
        try:
            with Folders(self._target) as folders, Folders(self._target) as others:
                while True:
                    with self._lock:
                        batch = list(islice(self._entries, BATCH))
                    if not batch:
                        break
                    for entry in batch:
                        self.found.extend(self._entry(entry, folders, others))
                    self.said.put(sum(entry.size for entry in batch))
            self.said.put(None)
        except BaseException as error:  # it is raised again in the thread that waits
            self.said.put(error)

    def _entry(self, entry: Entry, folders: Folders, others: Folders) -> Iterator[Mismatch]:
        return _blamed(entry, chain(_differences(entry, folders, others), self._extra_names(entry, folders)))

    def _extra_names(self, entry: Entry, folders: Folders) -> Iterator[Mismatch]:
        if not entry.is_directory:
            return
        there = {os.fsencode(name) for name in os.listdir(folders.enter(entry.path))}
        for name in there - self._names.get(entry.path, set()):
            path = name if entry.path == ROOT else entry.path + b"/" + name
            if path not in self._extras:
                yield Mismatch(path, "presence", "absent", "there")


def _blamed(entry: Entry, found: Iterator[Mismatch]) -> Iterator[Mismatch]:
    """Turn the filesystem's complaint about an entry into a mismatch, the last one of it."""
    try:
        yield from found
    except OSError as error:
        if error.errno in _GONE:
            yield Mismatch(entry.path, "presence", "there", f"missing or something else ({error.strerror})")
        else:
            yield Mismatch(entry.path, "reading", "possible", f"failing ({error.strerror})")


def _differences(
    entry: Entry, folders: Folders, others: Folders, told: Callable[[int], None] | None = None,
) -> Iterator[Mismatch]:
    if entry.is_directory:
        handle = folders.enter(entry.path)
        yield from _inode(entry, os.fstat(handle))
        yield from _xattrs(entry, handle)
        return
    above, _, name = entry.path.rpartition(b"/")
    folder = folders.enter(above or ROOT)
    if entry.is_file:
        yield from _file(entry, name, folder, told)
    elif entry.type is EntryType.LINK:
        yield from _link(entry, name, folder, others)
    else:
        yield from _node(entry, name, folder)


def _file(entry: Entry, name: bytes, folder: int, told: Callable[[int], None] | None) -> Iterator[Mismatch]:
    handle = _open(name, folder)
    try:
        status = os.fstat(handle)
        yield from _inode(entry, status)
        yield from _xattrs(entry, handle)
        if not stat.S_ISREG(status.st_mode):
            return
        if status.st_size != entry.size:
            yield Mismatch(entry.path, "size", str(entry.size), str(status.st_size))
            return
        digest = _digest(handle, entry.size, told)
        if digest != entry.digest:
            yield Mismatch(entry.path, "content", entry.digest.hex(), digest.hex())
    finally:
        os.close(handle)


def _open(name: bytes, folder: int) -> int:
    try:  # or reading would write every file's access time
        return os.open(name, _READ | os.O_NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, _READ, dir_fd=folder)


def _digest(handle: int, size: int, told: Callable[[int], None] | None) -> bytes:
    """Return the BLAKE3 of what the disk has; clean pages are dropped, and all are clean after the sync."""
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    if size < CHUNK:
        data = os.read(handle, size) if size else b""
        if told is not None:
            told(len(data))
        return blake3(data).digest()
    hasher, buffer = blake3(), memoryview(bytearray(CHUNK))
    while count := os.readv(handle, [buffer]):
        hasher.update(buffer[:count])
        if told is not None:
            told(count)
    return hasher.digest()


def _link(entry: Entry, name: bytes, folder: int, others: Folders) -> Iterator[Mismatch]:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    first = os.stat(entry.link.rpartition(b"/")[2], dir_fd=others.enter(parent(entry.link)), follow_symlinks=False)
    if (status.st_dev, status.st_ino) != (first.st_dev, first.st_ino):
        yield Mismatch(entry.path, "link", f"the inode of /{printable(entry.link)}", "another")


def _node(entry: Entry, name: bytes, folder: int) -> Iterator[Mismatch]:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    yield from _inode(entry, status)
    yield from _xattrs(entry, b"/proc/self/fd/%d/%s" % (folder, name))
    if entry.type is EntryType.SYMLINK and stat.S_ISLNK(status.st_mode):
        text = os.readlink(name, dir_fd=folder)
        if text != entry.link:
            yield Mismatch(entry.path, "link", printable(entry.link), printable(text))
    elif entry.rdev != status.st_rdev:
        yield Mismatch(entry.path, "device", _device(entry.rdev), _device(status.st_rdev))


def _device(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _inode(entry: Entry, status: os.stat_result) -> Iterator[Mismatch]:
    mode = _TYPES[entry.type] | (status.st_mode & 0o7777 if entry.type is EntryType.SYMLINK else entry.mode)
    if stat.S_IFMT(status.st_mode) != stat.S_IFMT(mode):
        yield Mismatch(entry.path, "type", stat.filemode(mode)[0], stat.filemode(status.st_mode)[0])
    elif status.st_mode != mode:
        yield Mismatch(entry.path, "mode", stat.filemode(mode), stat.filemode(status.st_mode))
    if status.st_uid != entry.uid or status.st_gid != entry.gid:
        yield Mismatch(entry.path, "owner", f"{entry.uid}:{entry.gid}", f"{status.st_uid}:{status.st_gid}")
    if status.st_mtime_ns != entry.mtime_ns:
        yield Mismatch(entry.path, "time", f"{entry.mtime_ns} ns", f"{status.st_mtime_ns} ns")


def _xattrs(entry: Entry, inode: int | bytes) -> Iterator[Mismatch]:
    """Compare extended attributes (ACLs and capabilities are among them) of a descriptor or a path."""
    follow = isinstance(inode, int)
    try:
        names = os.listxattr(inode, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        names = []
    if not names and not entry.xattrs:
        return
    found = {os.fsencode(name): os.getxattr(inode, name, follow_symlinks=follow) for name in names}
    expected = dict(entry.xattrs)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            yield Mismatch(entry.path, f"attribute {printable(name)}", _shown(expected.get(name)),
                           _shown(found.get(name)))


def _shown(value: bytes | None) -> str:
    return "absent" if value is None else "0x" + value.hex()
