"""One name of a tree, made with all its metadata, relative to its directory's descriptor. I/O: writes that name only.

Creating is exclusive and follows no symlink: what lies there already (from an interrupted restore, or put there by
somebody) is removed, never opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imaging.entry import ROOT, Entry, EntryType, printable
from plumbing.errors import DiskError

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NODES = {EntryType.CHAR: stat.S_IFCHR, EntryType.BLOCK: stat.S_IFBLK, EntryType.FIFO: stat.S_IFIFO}


@contextmanager
def blamed(path: bytes) -> Iterator[None]:
    """Turn the filesystem's complaint about `path` into a DiskError."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: bytes, error: OSError) -> DiskError:
    """Return the sentence for what went wrong at `path`."""
    where = f"/{printable(path)}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskError(f"the target's disk is full at {where}; give it a larger root partition")
    if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EISDIR}:
        return DiskError(f"the target already has something else at {where} ({error.strerror}); make its "
                         "filesystem anew")
    return DiskError(f"{where} cannot be written to the target ({error.strerror}); check the disk and its cable")


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return the path of the directory that holds `path`, and the name in it."""
    above, _, name = path.rpartition(b"/")
    return above or ROOT, name


def write(handle: int, data: memoryview, place: int) -> None:
    """Write all of `data` at `place`, however many calls that takes."""
    while data:
        count = os.pwrite(handle, data, place)
        data, place = data[count:], place + count


def replace_name(name: bytes, folder: int, make: Callable[[], None]) -> None:
    """Make a name, in place of what an interrupted restore left there."""
    try:
        make()
    except FileExistsError:
        os.unlink(name, dir_fd=folder)
        make()


def create(name: bytes, folder: int, mode: int) -> int:
    """Make a new file, open for writing, in place of whatever had the name."""
    try:
        return os.open(name, _CREATE, mode, dir_fd=folder)
    except FileExistsError:
        os.unlink(name, dir_fd=folder)
        return os.open(name, _CREATE, mode, dir_fd=folder)


def finish(handle: int, entry: Entry, us: tuple[int, int]) -> None:
    """Give an open inode its metadata.

    The order matters: chown takes away setuid and capabilities, chmod changes an ACL's mask.
    """
    if (entry.uid, entry.gid) != us:
        os.fchown(handle, entry.uid, entry.gid)
    os.fchmod(handle, entry.mode)
    for name, value in entry.xattrs:
        os.setxattr(handle, name, value)
    os.utime(handle, ns=(entry.mtime_ns, entry.mtime_ns))


def _by_path(folder: int, name: bytes) -> bytes:
    """Return a path to a name that can't be opened, for calls that take no dir_fd."""
    return b"/proc/self/fd/%d/%s" % (folder, name)


def reopen(name: bytes, folder: int) -> int:
    """Open a regular file that `create` made, for writing."""
    return os.open(name, _REOPEN, dir_fd=folder)


def make_node(entry: Entry, name: bytes, folder: int, us: tuple[int, int]) -> None:
    """Make an empty file, symlink, device or fifo with its metadata."""
    if entry.is_file:
        handle = create(name, folder, 0o600)
        try:
            finish(handle, entry, us)
        finally:
            os.close(handle)
        return
    if entry.type is EntryType.SYMLINK:
        replace_name(name, folder, lambda: os.symlink(entry.link, name, dir_fd=folder))
    else:
        replace_name(name, folder, lambda: os.mknod(name, _NODES[entry.type] | 0o600, entry.rdev, dir_fd=folder))
    if (entry.uid, entry.gid) != us:
        os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
    if entry.type is not EntryType.SYMLINK:
        os.chmod(_by_path(folder, name), entry.mode)  # noqa: PTH101 - a path of bytes; it was made just now, no symlink
    for attribute, value in entry.xattrs:
        os.setxattr(_by_path(folder, name), attribute, value, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)


def segments(entry: Entry, start: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what is no hole within a run of the file."""
    end = start + length
    for hole in entry.holes:
        if hole.offset + hole.length <= start:
            continue
        if hole.offset >= end:
            break
        if hole.offset > start:
            yield start, hole.offset - start
        start = max(start, hole.offset + hole.length)
    if start < end:
        yield start, end - start
