"""Walking a root tree into entries, and reading its files. I/O: reads a filesystem, writes nothing.

Every step goes through the descriptor of the directory above it and follows no symlink, so a tree that
somebody changes meanwhile can't lead outside itself. The host uses this too, to collect what is precious.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from imaging.entry import ROOT, Entry, EntryType, Hole, parent, printable
from imaging.excludes import Exclude, What, matcher
from plumbing.errors import BusyError, DiskError

Note = Callable[[str], None]
"""Takes one sentence about something that was left out."""

_TYPES = {
    stat.S_IFDIR: EntryType.DIRECTORY, stat.S_IFREG: EntryType.FILE, stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFCHR: EntryType.CHAR, stat.S_IFBLK: EntryType.BLOCK, stat.S_IFIFO: EntryType.FIFO,
}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_XATTRS = {errno.ENOTSUP, errno.ENODATA, errno.EPERM}


class FileChangedError(BusyError):
    """A file changed while it was read; its entry has to be looked at again."""

    def __init__(self, path: bytes) -> None:
        super().__init__(f"/{printable(path)} keeps changing while it is read; stop what writes it or exclude it")


class VanishedError(FileChangedError):
    """A file is not there any more, nor anything of its name."""


def scan(
    tree: Path, *, excludes: Sequence[Exclude] = (), one_file_system: bool = False, note: Note | None = None,
    descend: Callable[[bytes], bool] | None = None,
) -> Iterator[Entry]:
    """Yield the entries below `tree`, itself first, depth first, names sorted as bytes.

    With `one_file_system` a directory on which another filesystem is mounted is yielded, empty, as is one for
    whose path `descend` is false. `note` is told of everything left out that no exclude asked for. Entries have no
    digest and no extents yet.
    Raises DiskError when something cannot be read.
    """
    for entry, _ in walk(tree, excludes=excludes, one_file_system=one_file_system, note=note, descend=descend):
        yield entry


def walk(
    tree: Path, *, excludes: Sequence[Exclude] = (), one_file_system: bool = False, note: Note | None = None,
    descend: Callable[[bytes], bool] | None = None, forgive: bool = False,
) -> Iterator[tuple[Entry, os.stat_result]]:
    """Yield what `scan` yields, each entry with its inode's status. With `forgive` a name that cannot be looked at, as
    another user's FUSE mount, is noted and left out.
    """
    tell = note or (lambda _sentence: None)
    what_of = matcher(excludes)
    top = _open_top(tree)
    inodes: dict[tuple[int, int], bytes] = {}
    stack: list[tuple[int, bytes, Iterator[bytes]]] = []
    try:
        status = os.fstat(top)
        device = status.st_dev
        stack.append((top, b"", iter(_names(top, ROOT))))
        yield _entry(ROOT, status, _top_xattrs(top)), status
        while stack:
            folder, prefix, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            path = prefix + name
            what = what_of(path)
            if what is What.TREE:
                continue
            try:
                found = _look(folder, name, path, inodes, tell)
            except DiskError as error:
                if not forgive:
                    raise
                tell(error.sentence)
                continue
            if found is None or (what is What.FILES and not found[0].is_directory):
                continue
            entry, status = found
            if what is What.CONTENT and entry.is_file:
                entry = replace(entry, size=0, holes=())
            if status.st_nlink > 1 and not entry.is_directory:
                inodes.setdefault((status.st_dev, status.st_ino), path)
            yield entry, status
            if entry.is_directory:
                if one_file_system and status.st_dev != device:
                    tell(f"/{printable(path)} is another filesystem; its content is left out")
                    continue
                if descend is not None and not descend(path):
                    continue
                below = _descend(folder, name, path, tell)
                if below is not None:
                    stack.append((below, path + b"/", iter(_names(below, path))))
    finally:
        for folder, _, _ in stack:
            os.close(folder)


def _open_top(tree: Path) -> int:
    try:
        return os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError(f"{tree} cannot be read as a root tree ({error.strerror}); name a directory") from error


def _top_xattrs(top: int) -> tuple[tuple[bytes, bytes], ...]:
    try:
        return _xattrs(b"/proc/self/fd/%d/." % top, ROOT)
    except FileNotFoundError as error:  # must stop here: further down it would mean that every file vanished
        raise DiskError("/proc is not mounted, and extended attributes are read through it; mount it") from error
    except OSError as error:
        raise _unreadable(ROOT, error) from error


def _names(folder: int, path: bytes) -> list[bytes]:
    try:
        return sorted(os.fsencode(name) for name in os.listdir(folder))
    except OSError as error:
        raise _unreadable(path, error) from error


def _descend(folder: int, name: bytes, path: bytes, tell: Note) -> int | None:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        tell(f"/{printable(path)} vanished while its tree was walked; its content is left out")
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _look(
    folder: int, name: bytes, path: bytes, inodes: dict[tuple[int, int], bytes], tell: Note,
) -> tuple[Entry, os.stat_result] | None:
    """Return the entry for one name, or None when there is nothing that a release could hold."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_IFMT(status.st_mode) not in _TYPES:
            tell(f"/{printable(path)} is a socket; it is left out")
            return None
        first = inodes.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
        if first is not None and not stat.S_ISDIR(status.st_mode):
            return _link(path, first, status), status
        xattrs = _xattrs(b"/proc/self/fd/%d/%s" % (folder, name), path)
        link = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else b""
        holes = _holes_of(folder, name, status) if stat.S_ISREG(status.st_mode) else ()
        return _entry(path, status, xattrs, link, holes), status
    except FileNotFoundError:
        tell(f"/{printable(path)} vanished while its tree was walked; it is left out")
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _entry(
    path: bytes, status: os.stat_result, xattrs: tuple[tuple[bytes, bytes], ...], link: bytes = b"",
    holes: tuple[Hole, ...] = (),
) -> Entry:
    kind = _TYPES[stat.S_IFMT(status.st_mode)]
    return Entry(
        path, kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns,
        size=status.st_size if kind is EntryType.FILE else 0, link=link, xattrs=xattrs, holes=holes,
        rdev=status.st_rdev if kind in {EntryType.CHAR, EntryType.BLOCK} else 0,
    )


def _link(path: bytes, first: bytes, status: os.stat_result) -> Entry:
    return Entry(path, EntryType.LINK, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid,
                 status.st_mtime_ns, link=first)


def _xattrs(path: bytes, shown: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Read all extended attributes; one that this user may not read does not exist for this user."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return ()
        raise
    pairs = []
    for name in names:
        try:
            pairs.append((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)))
        except OSError as error:
            if error.errno not in _NO_XATTRS:
                raise _unreadable(shown, error) from error
    return tuple(sorted(pairs))


def _holes_of(folder: int, name: bytes, status: os.stat_result) -> tuple[Hole, ...]:
    if status.st_blocks * 512 >= status.st_size:
        return ()
    handle = _open_file(folder, name)
    try:
        return tuple(_holes(handle, status.st_size))
    finally:
        os.close(handle)


def _holes(handle: int, size: int) -> Iterator[Hole]:
    position, start = 0, size
    while position < size:
        try:
            start = os.lseek(handle, position, os.SEEK_HOLE)
            if start >= size:
                return
            position = os.lseek(handle, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno not in {errno.ENXIO, errno.EINVAL}:
                raise
            if error.errno == errno.ENXIO and start < size:
                yield Hole(start, size - start)
            return
        yield Hole(start, min(position, size) - start)


def _open_file(folder: int, name: bytes) -> int:
    try:  # reading must not touch the tree's access times, where that is allowed
        return os.open(name, _FILE | os.O_NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, _FILE, dir_fd=folder)


def _unreadable(path: bytes, error: OSError) -> DiskError:
    return DiskError(f"/{printable(path)} cannot be read ({error.strerror}); repair it, or exclude it")


class TreeReader:
    """Reads the files of a tree that `scan` walked; a context manager. Used by one thread."""

    def __init__(self, tree: Path) -> None:
        self._top = _open_top(tree)
        self._folder_path = ROOT
        self._folder = os.dup(self._top)

    def __enter__(self) -> TreeReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._folder)
        os.close(self._top)

    def pieces(self, entry: Entry, piece_bytes: int = 4 << 20, first: int = 0, last: int | None = None
               ) -> Iterator[bytes]:
        """Yield the content of the file `entry` in pieces of `piece_bytes` (the last may be shorter).

        With `first` and `last` only the bytes from the one up to the other, which is not among them.
        Raises FileChangedError, possibly after the last piece, when the file is not what `entry` says or did not
        hold still; what was yielded must be thrown away then.
        """
        if entry.size == 0:
            return
        try:
            handle = _open_file(self._enter(parent(entry.path)), entry.path.rpartition(b"/")[2])
        except OSError as error:
            raise self._lost(entry, error) from error
        try:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode) or (before.st_size, before.st_mtime_ns) != (
                    entry.size, entry.mtime_ns):
                raise FileChangedError(entry.path)
            os.lseek(handle, first, os.SEEK_SET)
            left = (entry.size if last is None else last) - first
            while left:
                piece = _read(handle, min(left, piece_bytes))
                if not piece:
                    raise FileChangedError(entry.path)
                left -= len(piece)
                yield piece
            if _pulse(os.fstat(handle)) != _pulse(before):
                raise FileChangedError(entry.path)
        except OSError as error:
            raise _unreadable(entry.path, error) from error
        finally:
            os.close(handle)

    def again(self, entry: Entry) -> Entry:
        """Look at `entry` anew, after a FileChangedError; raises it again when it is of another type now.

        Raises VanishedError when it is gone.
        A hard link comes back as the inode it names: a file, symlink, device or fifo of its own.
        """
        try:
            folder = self._enter(parent(entry.path))
            found = _look(folder, entry.path.rpartition(b"/")[2], entry.path, {}, lambda _sentence: None)
        except OSError as error:
            raise VanishedError(entry.path) if error.errno == errno.ENOENT else self._lost(entry, error) from error
        if found is None:
            raise VanishedError(entry.path)
        kinds = {entry.type} if entry.type is not EntryType.LINK else {*EntryType} - {EntryType.DIRECTORY}
        if found[0].type not in kinds:
            raise FileChangedError(entry.path)
        return found[0]

    def _enter(self, path: bytes) -> int:
        """Return a descriptor of the directory `path`, reached without following a symlink."""
        if path != self._folder_path:
            handle = os.dup(self._top)
            for name in path.split(b"/") if path != ROOT else ():
                above = handle
                try:
                    handle = os.open(name, _FOLDER, dir_fd=above)
                finally:
                    os.close(above)
            os.close(self._folder)
            self._folder, self._folder_path = handle, path
        return self._folder

    @staticmethod
    def _lost(entry: Entry, error: OSError) -> FileChangedError | DiskError:
        if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}:
            return FileChangedError(entry.path)
        return _unreadable(entry.path, error)


def _pulse(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(handle: int, length: int) -> bytes:
    """Read `length` bytes, fewer only at the end of the file."""
    piece = os.read(handle, length)
    if len(piece) == length or not piece:
        return piece
    parts = [piece]
    left = length - len(piece)
    while left and (piece := os.read(handle, left)):
        parts.append(piece)
        left -= len(piece)
    return b"".join(parts)
