"""What of an archive returns to the new root, and what room it takes there (pure: entries in, numbers out)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from imaging.entry import ROOT, Entry, EntryType, parent
from imaging.inodes import segments
from precious.policy import Policy

BLOCK = 4096
"""A block of the root filesystem, in bytes; nothing on it takes less."""

INLINE_LINK = 59
"""The longest link text, in bytes, that ext4 keeps in the inode."""

INLINE_XATTRS = 96
"""How many bytes of attributes, names included, ext4 keeps in a 256-byte inode; more take a block."""


def without(entries: Iterable[Entry], left: Mapping[bytes, Entry]) -> Iterator[Entry]:
    """Make a hard link to an entry that is left out that entry itself; further ones join it."""
    firsts: dict[bytes, bytes] = {}
    for entry in entries:
        if entry.type is not EntryType.LINK or entry.link not in left:
            yield entry
        elif entry.link in firsts:
            yield replace(entry, link=firsts[entry.link])
        else:
            firsts[entry.link] = entry.path
            yield replace(left[entry.link], path=entry.path)


def reachable(entries: Iterable[Entry], policy: Policy) -> Iterator[Entry]:
    """Leave out folders that no rule keeps and that lead to nothing here: they are the image's business."""
    rows = list(entries)
    needed = {ROOT}
    for entry in rows:
        if not entry.is_directory or policy.rule_for(entry.path) is not None:
            way = entry.path
            while (way := parent(way)) not in needed:
                needed.add(way)
    return (entry for entry in rows if not entry.is_directory or entry.path in needed or
            policy.rule_for(entry.path) is not None)


def disk_bytes(entries: Iterable[Entry]) -> int:
    """Return the whole blocks that entries take on the disk, in bytes, directories and attributes included."""
    names: dict[bytes, int] = {}
    blocks = 0
    for entry in entries:
        if entry.is_directory:
            names.setdefault(entry.path, 0)
        if entry.path != ROOT:
            # a name in an ext4 directory: 8 bytes and the name, rounded up to 4
            length = len(entry.path.rpartition(b"/")[2])
            names[parent(entry.path)] = names.get(parent(entry.path), 0) + 8 + (length + 3) // 4 * 4
        blocks += _own_blocks(entry)
    # one block more than the names fill: the hash tree of a large directory leaves its leaves partly empty
    return (blocks + sum(1 + total // BLOCK for total in names.values())) * BLOCK


def _own_blocks(entry: Entry) -> int:
    blocks = sum(-(-(start + length) // BLOCK) - start // BLOCK for start, length in segments(entry, 0, entry.size))
    if entry.type is EntryType.SYMLINK and len(entry.link) > INLINE_LINK:
        blocks += 1
    if sum(16 + len(name) + len(value) for name, value in entry.xattrs) > INLINE_XATTRS:
        blocks += 1
    return blocks


def inodes(entries: Iterable[Entry]) -> int:
    """Return how many inodes entries take: one each, but for further names of the same one."""
    return sum(entry.type is not EntryType.LINK for entry in entries)
