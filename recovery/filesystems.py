"""The filesystems that recovery can make a root of, and what differs between them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from imaging.footprint import Footprint
from plumbing.errors import DiskError, RefusedError
from recovery import ext4, xfs


@dataclass(frozen=True)
class Kind:
    """One type of filesystem.

    `room` tells how many bytes one on so many bytes takes; `options` and `check` are the fourth and sixth words of a
    root's line in fstab.
    """

    room: Callable[[int, Footprint], int]
    options: str
    check: int


ROOTS: Mapping[str, Kind] = {
    "ext4": Kind(ext4.room_bytes, "errors=remount-ro", 1),
    "xfs": Kind(xfs.room_bytes, "defaults", 0),  # it shuts down by itself at an error, and has nothing to check at boot
}


def require_makeable(fstype: str) -> None:
    """Raise RefusedError for a root of a type that recovery cannot make; to be asked before the wipe."""
    if fstype not in ROOTS:
        raise RefusedError(f"recovery makes roots of type {' or '.join(ROOTS)}, not {fstype}; nothing was touched: "
                           "order an install of this host with one of these")


def require_room(fstype: str, size: int, need: Footprint, what: str) -> None:
    """Raise DiskError when `need` does not fit into a partition of `size` bytes; `what` is for the sentence."""
    room = ROOTS[fstype].room(size, need)
    if room < need.size:
        raise DiskError(f"{what} takes {need.size >> 20} MiB in {need.inodes} inodes, and an {fstype} filesystem of "
                        f"{size >> 20} MiB has room for {max(0, room) >> 20}; nothing was touched: use a larger "
                        "partition, or a smaller release")


def inodes_to_make(fstype: str, size: int, need: Footprint) -> int | None:
    """Return the number that mkfs must be told, None when it makes enough by itself."""
    return ext4.inodes_to_make(size, need) if fstype == "ext4" else None
