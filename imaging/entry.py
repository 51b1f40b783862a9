"""What one name in a root tree is: a value with everything an inode holds. Pure.

A tree is a sequence of entries in depth-first order with the names of each directory sorted as bytes, so a
directory comes before what is in it. The tree's own top directory is the first entry, and its path is `.`;
every other path is relative to it and never begins with `./`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

ROOT = b"."
"""The path of the tree's top directory."""

DIGEST_BYTES = 32
"""Length of a BLAKE3 digest, in bytes."""

Progress = Callable[[str, int, int], None]
"""(what, done, total), both in bytes; total is 0 while it is not known."""


class EntryType(StrEnum):
    """The kinds of inode a release can hold; the value is the letter the index uses."""

    DIRECTORY = "d"
    FILE = "f"
    SYMLINK = "l"
    LINK = "h"
    """A further name of an earlier entry's inode: a hard link."""
    CHAR = "c"
    BLOCK = "b"
    FIFO = "p"


class Extent(NamedTuple):
    """A run of a file's content: `length` bytes at `offset` of the unpacked frame number `frame`."""

    frame: int
    offset: int
    length: int


class Hole(NamedTuple):
    """A run of a file that had no blocks: it reads as zeros. Both in bytes of the file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One name and its inode.

    `mode` is the permission bits (0o7777), `mtime_ns` nanoseconds since 1970, `size` the content's bytes (0
    unless a file), `link` a symlink's text or the path of the entry that a hard link joins, `rdev` a device's
    number as os.makedev packs it, `xattrs` (name, value) pairs sorted by name with ACLs and capabilities
    among them, `digest` the BLAKE3 of the content (empty unless a file). `extents` cover the content from its
    first byte to its last, in order and holes included (as zeros); `holes` say which parts of it need no
    blocks. An entry that a scan has just found has no digest and no extents yet. A hard link repeats its
    inode's mode, owner and time and leaves the rest to the entry it joins.
    """

    path: bytes
    type: EntryType
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    link: bytes = b""
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    digest: bytes = b""
    extents: tuple[Extent, ...] = ()
    holes: tuple[Hole, ...] = ()

    @property
    def is_directory(self) -> bool:
        """Whether other entries may lie below this one."""
        return self.type is EntryType.DIRECTORY

    @property
    def is_file(self) -> bool:
        """Whether this entry owns content."""
        return self.type is EntryType.FILE


def parent(path: bytes) -> bytes:
    """Return the path of the directory that holds `path`."""
    return path.rpartition(b"/")[0] or ROOT


def printable(path: bytes) -> str:
    """Return a path as a person can read it in one line, whatever bytes it has."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]
