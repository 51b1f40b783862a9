"""Directories of a tree by descriptor, reached step by step and never through a symlink. I/O.

What is done to a target is done relative to such a descriptor and to a single name, so no content of the tree, hostile
or changed meanwhile, can lead outside it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import TracebackType

from imaging.entry import ROOT
from plumbing.errors import DiskError

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folders:
    """A place in the tree below `top`, moved about; a context manager, used by one thread.

    It holds the directories from the top to where it is, so that a walk in tree order opens each only once.
    """

    def __init__(self, top: Path) -> None:
        try:
            self._handles = [os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        except OSError as error:
            raise DiskError(f"{top} cannot be entered ({error.strerror}); is the root filesystem mounted?") from error
        self._names: list[bytes] = []
        self._path = ROOT

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles = []

    def enter(self, path: bytes) -> int:
        """Return a descriptor of the directory `path`, good until the next call; raises OSError."""
        if path == self._path:
            return self._handles[-1]
        names = [] if path == ROOT else path.split(b"/")
        shared = 0
        for ours, wanted in zip(self._names, names, strict=False):
            if ours != wanted:
                break
            shared += 1
        while len(self._names) > shared:
            os.close(self._handles.pop())
            self._names.pop()
        self._path = b""  # until every step has succeeded
        for name in names[shared:]:
            if name == b"..":
                raise NotADirectoryError("a path has .. in it")
            self._handles.append(os.open(name, FOLDER_FLAGS, dir_fd=self._handles[-1]))
            self._names.append(name)
        self._path = path
        return self._handles[-1]


def sync_filesystem(handle: int) -> None:
    """Write out everything of the filesystem that `handle` is on; raises OSError when any of it was lost.

    os.sync would do without telling about errors.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(handle) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
