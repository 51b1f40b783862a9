"""How much of a filesystem a tree takes: whole blocks and inodes, not the bytes in its files. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imaging.entry import Entry, EntryType, parent

BLOCK_BYTES = 4096
FAST_LINK_BYTES = 60
"""A symlink's text that is shorter lies in its inode."""
INLINE_XATTR_BYTES = 64
"""Extended attributes that fit beside an inode of 256 bytes, names and headers left to the margin."""
DIRENT_BYTES, DIRENT_ALIGN = 8, 4
FULLNESS = 2
"""A large directory is an indexed tree whose blocks may be only half full."""


@dataclass(frozen=True)
class Footprint:
    """What a tree takes: `size` in bytes of whole blocks, and how many inodes."""

    size: int
    inodes: int

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.size + other.size, self.inodes + other.inodes)


def footprint(entries: Iterable[Entry]) -> Footprint:
    """Return what a tree takes on a filesystem with blocks of BLOCK_BYTES; a hard link takes nothing but its name."""
    blocks = inodes = 0
    names: dict[bytes, int] = {}
    for entry in entries:
        folder, name = parent(entry.path), entry.path.rpartition(b"/")[2]
        names[folder] = names.get(folder, 0) + DIRENT_BYTES + -(-len(name) // DIRENT_ALIGN) * DIRENT_ALIGN
        if entry.is_directory:
            names.setdefault(entry.path, 0)
        if entry.type is not EntryType.LINK:
            inodes += 1
            blocks += _blocks(entry)
    blocks += sum(max(1, _up(size * FULLNESS)) for size in names.values())
    return Footprint(blocks * BLOCK_BYTES, inodes)


def _blocks(entry: Entry) -> int:
    """Return the blocks of one inode's content and attributes; a hole saves those that lie in it whole."""
    saved = sum(max(0, (hole.offset + hole.length) // BLOCK_BYTES - _up(hole.offset)) for hole in entry.holes)
    text = 1 if entry.type is EntryType.SYMLINK and len(entry.link) >= FAST_LINK_BYTES else 0
    attributes = sum(len(name) + len(value) for name, value in entry.xattrs)
    return _up(entry.size) - saved + text + (1 if attributes > INLINE_XATTR_BYTES else 0)


def _up(size: int) -> int:
    return -(-size // BLOCK_BYTES)
