"""Inode flags (chattr) of what is kept (I/O, read-only): no tar holds them, so a person is told of each.

They are not set again by themselves: what was immutable would stop the package manager of a system it never met.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from imaging.entry import Entry, parent, printable
from imaging.folders import Folders

_GET_FLAGS = 0x80086601
"""FS_IOC_GETFLAGS of 64-bit Linux (include/uapi/linux/fs.h)."""
_LETTERS = {0x8: "S", 0x10: "i", 0x20: "a", 0x40: "d", 0x80: "A", 0x4000: "j", 0x10000: "D", 0x20000: "T"}
"""The flags that a person sets, by the letter that chattr knows; the filesystem's own ones are not among them."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def notes(root: Path, entries: Iterable[Entry]) -> Iterator[str]:
    """Yield a sentence for each file and folder below `root`, in tree order, that has flags."""
    with Folders(root) as folders:
        for entry in entries:
            letters = "".join(letter for bit, letter in _LETTERS.items() if _flags(folders, entry) & bit)
            if letters:
                yield (f"/{printable(entry.path)} has inode flags that the archive cannot hold: set them again with "
                       f"chattr +{letters}")


def _flags(folders: Folders, entry: Entry) -> int:
    if not entry.is_file and not entry.is_directory:
        return 0  # a device would be opened, and a link has none
    try:
        handle = os.open(entry.path.rpartition(b"/")[2], _READ, dir_fd=folders.enter(parent(entry.path)))
    except OSError:
        return 0  # gone meanwhile: reading it tells
    try:
        (found,) = struct.unpack("=I", fcntl.ioctl(handle, _GET_FLAGS, bytes(8))[:4])
        return int(found)
    except OSError:  # a filesystem without flags
        return 0
    finally:
        os.close(handle)
