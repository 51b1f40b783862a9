"""Changing a tree by paths that a stranger wrote, without ever leaving it. I/O: writes below one directory.

A path is walked from the tree's top by descriptors. A symlink on the way is followed as it would be after chroot: an
absolute one begins at the top again and `..` stops there. Nobody else changes the tree meanwhile (it lies in a scratch
folder of our own), so what was looked at is what is changed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from imaging.entry import printable
from plumbing.errors import CorruptError

MAX_LINKS = 40
"""Symlinks followed on the way to one name; as many as Linux follows."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Inside:
    """The tree at `top`; a context manager."""

    def __init__(self, top: Path) -> None:
        self.top = os.open(top, _FOLDER)
        self._path: tuple[bytes, ...] = ()
        self._handle = os.dup(self.top)
        self._asked: tuple[bytes, ...] | None = None
        self.made: set[tuple[bytes, ...]] = set()
        """Directories that were made because something was to lie in them."""

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._handle)
        os.close(self.top)

    def folder(self, path: tuple[bytes, ...], *, make: bool) -> tuple[int, tuple[bytes, ...]] | None:
        """Return a descriptor of the directory that `path` leads to, valid until the next call, and its real path.

        With `make` directories that are missing are made, mode 0755, and what is in their way is an error; without,
        None is returned then. Raises CorruptError when symlinks lead round in circles.
        """
        if path == self._asked:
            return self._handle, self._path
        todo, real, handles, links = list(reversed(path)), list[bytes](), [os.dup(self.top)], 0
        try:
            while todo:
                name = todo.pop()
                if name in {b"", b"."}:
                    continue
                if name == b"..":
                    if real:
                        real.pop()
                        os.close(handles.pop())
                    continue
                text = self._link(name, handles[-1])
                if text is not None:
                    links += 1
                    if links > MAX_LINKS:
                        raise CorruptError(f"the way to /{printable(b'/'.join(path))} goes through symlinks in circles "
                                           "in the image; make it anew")
                    if text.startswith(b"/"):
                        real.clear()
                        while len(handles) > 1:
                            os.close(handles.pop())
                    todo += reversed(text.split(b"/"))
                    continue
                real.append(name)
                below = self._step(name, handles[-1], tuple(real), make=make)
                if below is None:
                    return None
                handles.append(below)
            os.close(self._handle)
            self._handle, self._path, self._asked = handles.pop(), tuple(real), path
        finally:
            for handle in handles:
                os.close(handle)
        return self._handle, self._path

    @staticmethod
    def _link(name: bytes, folder: int) -> bytes | None:
        try:
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                return os.readlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        return None

    def _step(self, name: bytes, folder: int, path: tuple[bytes, ...], *, make: bool) -> int | None:
        try:
            return os.open(name, _FOLDER, dir_fd=folder)
        except NotADirectoryError as error:
            if not make:
                return None
            raise CorruptError(f"/{printable(b'/'.join(path))} is a file, and the image has things below it; "
                               "make it anew") from error
        except FileNotFoundError:
            if not make:
                return None
        os.mkdir(name, 0o755, dir_fd=folder)
        self.made.add(path)
        return os.open(name, _FOLDER, dir_fd=folder)

    def remove(
        self, folder: int, at: tuple[bytes, ...], name: bytes, keep: Callable[[tuple[bytes, ...]], bool],
    ) -> None:
        """Remove `name` and everything below it except what `keep` wants (and the directories that lead there).

        `folder` is open at the real path `at`; a name that is not there is removed already.
        """
        self._asked = None  # a directory that is remembered may be gone now
        # (descriptor of the directory, its path, names still to do): no recursion, a stranger decides how deep it goes
        stack: list[tuple[int, tuple[bytes, ...], list[bytes]]] = [(os.dup(folder), at, [name])]
        try:
            while stack:
                handle, where, names = stack[-1]
                if not names:
                    stack.pop()
                    os.close(handle)
                    if stack and not keep(where):
                        try:
                            os.rmdir(where[-1], dir_fd=stack[-1][0])
                        except OSError as error:
                            if error.errno != errno.ENOTEMPTY:  # something below is kept
                                raise
                    continue
                one = names.pop()
                path = (*where, one)
                try:
                    is_folder = stat.S_ISDIR(os.stat(one, dir_fd=handle, follow_symlinks=False).st_mode)
                except FileNotFoundError:
                    continue
                if is_folder:
                    below = os.open(one, _FOLDER, dir_fd=handle)
                    stack.append((below, path, [os.fsencode(found) for found in os.listdir(below)]))
                elif not keep(path):
                    os.unlink(one, dir_fd=handle)
        finally:
            for handle, _, _ in stack:
                os.close(handle)
