"""Which part of a disk image holds the root filesystem. Pure.

Partition types are those of the UAPI Group's Discoverable Partitions Specification; what a partition holds is what
blkid found in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from plumbing.errors import CorruptError, UsageError

ROOT_TYPES = frozenset({
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",  # x86-64
    "44479540-f297-41b2-9af7-d131d5f0458a",  # x86
    "b921b045-1df0-41c3-af44-4c6f280d3fae",  # arm64
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3",  # arm
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224",  # riscv64
    "c31c45e6-3f39-412e-80fb-4809c4980599",  # ppc64le
    "5eead9a9-fe09-4a1e-a1d7-520d00531306",  # s390x
})
"""GPT types that say: this is the root filesystem of that architecture."""
LINUX_TYPES = frozenset({"0fc63daf-8483-4772-8e79-3d69d8477de4", "83"})
"""The GPT and the MBR type of any Linux filesystem."""
EXTENDED_TYPES = frozenset({"5", "f", "85"})
"""MBR partitions that only hold others."""

MOUNT_OPTIONS: dict[str, tuple[str, ...]] = {
    # A journal is never replayed: that would write, and the image is not ours.
    "ext2": (), "ext3": ("noload",), "ext4": ("noload",), "xfs": ("norecovery", "nouuid"),
    "btrfs": ("rescue=nologreplay",), "squashfs": (), "erofs": (),
}
"""The filesystems that can hold a root, and what mount needs besides `ro` to leave the image as it is."""


@dataclass(frozen=True)
class Area:
    """A partition, or with number 0 the whole image; in bytes. `kind` is its type, `filesystem` blkid's word or ""."""

    number: int
    kind: str
    offset: int
    size: int
    filesystem: str = ""
    label: str = ""

    def __str__(self) -> str:
        holds = self.filesystem or "nothing known"
        return f"{self.number} ({holds}{f', {self.label!r}' if self.label else ''}, {self.size / 1e6:.0f} MB)"


def parse_table(text: str) -> list[Area]:
    """Read what `sfdisk --json` printed; raises CorruptError when that is something else."""
    try:
        table = cast("dict[str, object]", json.loads(text)["partitiontable"])
        sector = int(cast("int", table.get("sectorsize", 512)))
        found = []
        for row in cast("list[dict[str, object]]", table.get("partitions", [])):
            number = re.search(r"(\d+)$", str(row["node"]))
            kind = str(row["type"]).lower()
            if number is None:
                raise ValueError("a partition without a number")
            if kind not in EXTENDED_TYPES:
                found.append(Area(int(number[1]), kind, cast("int", row["start"]) * sector,
                                  cast("int", row["size"]) * sector))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError("the image's partition table cannot be understood; look at it with sfdisk -d") from error
    return found


def parse_probe(text: str) -> tuple[str, str]:
    """Read what `blkid -p -o export` printed: (filesystem, label), each empty when it said nothing of it."""
    pairs = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    return pairs.get("TYPE", ""), pairs.get("LABEL", "")


def choose_area(areas: Sequence[Area], wanted: int | None, image: str) -> Area:
    """Return the area that holds the root: number `wanted`, else the only one that can be meant.

    That is the only partition of a root type, or the only one of a Linux type, or the only one with a filesystem
    that can hold a root, each time among those that have one. Raises UsageError that lists what there is.
    """
    there = ", ".join(map(str, areas)) or "nothing"
    if wanted is not None:
        named = next((area for area in areas if area.number == wanted and area.number), None)
        if named is None:
            raise UsageError(f"{image} has no partition {wanted}; there is {there}")
        if named.filesystem not in MOUNT_OPTIONS:
            raise UsageError(f"partition {wanted} of {image} holds {named.filesystem or 'no filesystem'}, and a root "
                             f"is read from {', '.join(MOUNT_OPTIONS)}; there is {there}")
        return named
    usable = [area for area in areas if area.filesystem in MOUNT_OPTIONS]
    for kinds in (ROOT_TYPES, LINUX_TYPES, None):
        fitting = [area for area in usable if kinds is None or area.kind in kinds]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UsageError(f"{image} has several partitions that may be the root; say --partition N of {there}")
    raise UsageError(f"{image} has no filesystem that a root is read from ({', '.join(MOUNT_OPTIONS)}); "
                     f"there is {there}")


def needs_replay(superblock: bytes) -> bool:
    """Whether an ext filesystem was not unmounted cleanly, from the 1024 bytes of its superblock.

    ext4 wiki, "Super Block": s_magic at 0x38, s_feature_incompat at 0x60 with EXT4_FEATURE_INCOMPAT_RECOVER = 4.
    """
    return (len(superblock) >= 0x64 and superblock[0x38:0x3A] == b"\x53\xef"
            and bool(int.from_bytes(superblock[0x60:0x64], "little") & 4))
