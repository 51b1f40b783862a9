"""What fits into an ext4 that mke2fs makes with its defaults. Pure: sizes in, bytes or the -N that is needed out.

The numbers are mke2fs's (mke2fs.conf as Debian ships it, lib/ext2fs/mkjournal.c), held against real runs by a test.
"""

from __future__ import annotations

from imaging.footprint import Footprint

INODE_BYTES = 256
SPARE_INODES = 1.25
"""How many inodes there must be for each that is needed: the new system has to live."""
RESERVE = 0.95
"""The share of the blocks that is used: mke2fs reserves 5 % for root, and a host that starts in it is full."""
METADATA = 0.975
"""The share that is left by bitmaps, group descriptors and the room to grow them."""

_MIB = 1 << 20
_RATIOS = ((512 * _MIB, 4096), (4 << 40, 16384), (16 << 40, 32768))
_JOURNALS = ((128 * _MIB, 4), (1024 * _MIB, 16), (2048 * _MIB, 32), (16384 * _MIB, 64), (32768 * _MIB, 128),
             (65536 * _MIB, 256), (131072 * _MIB, 512))


def default_inodes(size: int) -> int:
    """Return about how many inodes mke2fs makes by itself on `size` bytes, rather too few than too many."""
    return size // next((ratio for below, ratio in _RATIOS if size < below), 65536) * 99 // 100


def journal_bytes(size: int) -> int:
    """Return how large a journal it makes, in bytes."""
    return next((mib for below, mib in _JOURNALS if size < below), 1024) * _MIB


def inodes_to_make(size: int, need: Footprint) -> int | None:
    """Return the number for -N when the default would not do, else None."""
    wanted = int(need.inodes * SPARE_INODES)
    return wanted if wanted > default_inodes(size) else None


def room_bytes(size: int, need: Footprint) -> int:
    """Return how many bytes of whole blocks such a filesystem on `size` bytes takes, with inodes enough for `need`."""
    inodes = max(default_inodes(size), inodes_to_make(size, need) or 0)
    return int(size * METADATA * RESERVE) - inodes * INODE_BYTES - journal_bytes(size)
