"""What fits into an XFS that mkfs.xfs makes with its defaults. Pure: sizes in, bytes out.

The numbers are mkfs.xfs's (6.1, with reflink and finobt), held against real runs by a test.
"""

from __future__ import annotations

from imaging.footprint import Footprint

LEAST_BYTES = 300 << 20
"""Smaller ones mkfs.xfs refuses to make."""
INODE_BYTES = 512
SPARE_INODES = 1.125
"""Inodes are made in chunks as files come, some of each chunk unused."""
RESERVE = 0.95
"""The share that is used: a host that starts in a full root is no use."""
LOG_BYTES, MOST_LOG_BYTES = 64 << 20, 2 << 30
_LOG_RATIO = 2048
_FIXED_BYTES = 32 << 20
_RESERVED = 0.008
"""What the allocation groups keep back for their own trees, a share of the whole."""


def log_bytes(size: int) -> int:
    """Return how large a log it makes, in bytes."""
    return min(max(LOG_BYTES, size // _LOG_RATIO), MOST_LOG_BYTES)


def room_bytes(size: int, need: Footprint) -> int:
    """Return how many bytes of whole blocks such a filesystem on `size` bytes takes, with inodes enough for `need`."""
    if size < LEAST_BYTES:
        return 0
    free = size - log_bytes(size) - _FIXED_BYTES - int(size * _RESERVED)
    return int(free * RESERVE) - int(need.inodes * INODE_BYTES * SPARE_INODES)
