"""/etc/fstab: which filesystems a host mounts. Pure.

Disks, shares and swap are the host's: its lines for them stay, byte for byte and in their order, those of /, /local and
the boot area among them, which an upgrade finds by the same UUID again. The image knows the disks of the machine it
was built on only, so its lines for disks are left out. Filesystems that the kernel makes of nothing (tmpfs, proc …) are
the operating system's business: there the image's line wins. What an installation makes of new partitions is written
after this (recovery.fstab).
"""

from __future__ import annotations

from precious.mergers.lines import join, plain, split, words
from precious.mergers.sides import Fate, Told
from precious.mergers.world import World

_VIRTUAL = frozenset((
    b"autofs", b"binfmt_misc", b"bpf", b"cgroup", b"cgroup2", b"configfs", b"debugfs", b"devpts", b"devtmpfs",
    b"efivarfs", b"fusectl", b"hugetlbfs", b"mqueue", b"proc", b"pstore", b"ramfs", b"securityfs", b"sysfs", b"tmpfs",
    b"tracefs"))
"""Filesystem types without a device (filesystems(5), /proc/filesystems: nodev), network filesystems apart."""


def _point(line: bytes) -> bytes | None:
    found = words(line)
    if len(found) < 3 or not found[1].startswith(b"/"):
        return None
    return found[1].rstrip(b"/") or b"/"


def _virtual(line: bytes) -> bool:
    found = words(line)
    return len(found) > 2 and found[2] in _VIRTUAL


def merge(path: bytes, host: bytes, image: bytes, base: bytes | None, world: World) -> tuple[bytes, list[Told]]:
    """Return the host's file with the image's lines for filesystems without a device."""
    told: list[Told] = []
    theirs: dict[bytes, dict[bytes, bytes]] = {}
    for line in split(image):
        if _virtual(line) and (point := _point(line)) is not None:
            theirs.setdefault(point, {}).setdefault(plain(line), line)
    known = set() if base is None else {plain(line) for line in split(base)}
    ours = split(host)
    have = {plain(line) for line in ours}
    mounted = {point for line in ours if (point := _point(line)) is not None}
    lines: list[bytes] = []
    used: set[bytes] = set()
    for line in ours:
        point, text = _point(line), plain(line)
        if point is None or not _virtual(line):
            lines.append(line)
            continue
        there = theirs.get(point, {})
        if point not in used:
            lines += [fresh for other, fresh in there.items() if other not in have]
            used.add(point)
        if text in there or (not there and text not in known):
            lines.append(line)
        elif there:
            told.append(Told(path, Fate.DROPPED if text in known else Fate.CONFLICT, line,
                             "gave way to the image's line for the same place"))
        else:
            told.append(Told(path, Fate.DROPPED, line, "was the old release's, and the new one has none for it"))
    lines += [line for point, rows in theirs.items() if point not in mounted for line in rows.values()]
    for line in split(image):
        point = _point(line)
        if point is not None and not _virtual(line) and point not in mounted:
            told.append(Told(path, Fate.NOTE, b"", f"the image mounts a disk of where it was built at "
                             f"{point[:200].decode('utf-8', 'replace')!r}; left out"))
    return join(lines), told
