"""Directories of a tree by descriptor, reached step by step and never through a symlink. I/O.

What is done to a target is done relative to such a descriptor and to a single name, so no content of the tree, hostile
or changed meanwhile, can lead outside it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path
from types import TracebackType

from imaging.entry import ROOT
from plumbing.errors import DiskError

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

HELD = 100
"""Levels at the top of a deep tree, and at the place where a walk is, whose directories stay open."""


class Folders:
    """A place in the tree below `top`, moved about; a context manager, used by one thread.

    It holds the directories from the top to where it is, so that a walk in tree order opens each only once; of those
    of a very deep tree the first HELD and the last HELD, for a process has 1024 descriptors, and a tree 2000 levels.
    """

    def __init__(self, top: Path) -> None:
        try:
            self._handles: list[int | None] = [os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        except OSError as error:
            raise DiskError(f"{top} cannot be entered ({error.strerror}); is the root filesystem mounted?") from error
        self._names: list[bytes] = []
        self._path = ROOT

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        while self._handles:
            self._leave()

    def enter(self, path: bytes) -> int:
        """Return a descriptor of the directory `path`, good until the next call; raises OSError."""
        if path == self._path and (here := self._handles[-1]) is not None:
            return here
        names = [] if path == ROOT else path.split(b"/")
        shared = 0
        for ours, wanted in zip(self._names, names, strict=False):
            if ours != wanted:
                break
            shared += 1
        while len(self._names) > shared or self._handles[-1] is None:
            self._leave()
        self._path = b""  # until every step has succeeded
        handle = self._handles[-1]
        for name in names[len(self._names):]:
            if name == b"..":
                raise NotADirectoryError("a path has .. in it")
            handle = os.open(name, FOLDER_FLAGS, dir_fd=handle)
            self._handles.append(handle)
            self._names.append(name)
            self._let_go()
        self._path = path
        return handle

    def _leave(self) -> None:
        """Go one level up; out of the top too."""
        handle = self._handles.pop()
        if handle is not None:
            os.close(handle)
        del self._names[len(self._handles) - 1 if self._handles else 0:]

    def _let_go(self) -> None:
        """Close the directory that is neither among the first nor the last any more; it is opened again if need be."""
        place = len(self._handles) - HELD - 1
        if place >= HELD and (handle := self._handles[place]) is not None:
            os.close(handle)
            self._handles[place] = None


def remove(top: Path) -> None:
    """Remove the folder `top` and all in it, however deep, through no link; raises OSError. None is none.

    shutil.rmtree would end at a thousand levels, with RecursionError.
    """
    try:
        kind = top.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(kind):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(top))
    with Folders(top) as folders:
        names: list[bytes] = []
        while True:
            folder, below = folders.enter(b"/".join(names) or ROOT), None
            with os.scandir(folder) as items:
                for item in items:
                    if item.is_dir(follow_symlinks=False):
                        below = os.fsencode(item.name)
                        break
                    os.unlink(item.name, dir_fd=folder)
            if below is not None:
                names.append(below)
            elif names:
                name = names.pop()
                os.rmdir(name, dir_fd=folders.enter(b"/".join(names) or ROOT))
            else:
                break
    top.rmdir()


def sync_filesystem(handle: int) -> None:
    """Write out everything of the filesystem that `handle` is on; raises OSError when any of it was lost.

    os.sync would do without telling about errors.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(handle) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
