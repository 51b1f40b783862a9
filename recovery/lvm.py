"""Plain logical volumes (I/O: disks, device-mapper): made ready for use, let go of, made anew by an installation.

Which are ready is in /sys, where `recovery.disks` reads them. Making one ready writes nothing to its disks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from plumbing.errors import CorruptError, DiskError
from recovery import devmapper
from recovery.devmapper import Target
from recovery.disks import Disk
from recovery.lvm_format import HEAD_BYTES, SECTOR, Group, Physical, Volume, read
from recovery.order import VOLUME_ID

Say = Callable[[str], None]


def is_volume(ident: str) -> bool:
    """Whether `ident` names a logical volume and not a partition."""
    return VOLUME_ID.fullmatch(ident) is not None


def activate(disks: Sequence[Disk], say: Say) -> None:
    """Make the plain volumes of every group ready that is whole; what cannot be is left out, and told."""
    ready = {volume.partuuid for disk in disks for volume in disk.volumes}
    for group, devices in _groups(disks, say):
        for volume in group.volumes:
            ident = f"LVM-{group.ident}{volume.ident}"
            if ident not in ready:
                try:
                    devmapper.create(mapped_name(group.name, volume.name), ident, table(group, volume, devices))
                except DiskError as error:
                    say(error.sentence)


def deactivate(disk: Disk) -> None:
    """Let go of all volumes on a disk, so that it can be partitioned; raises DiskError when one is in use."""
    for volume in disk.volumes:
        devmapper.remove(volume.name)


def make(partition: Path, head: bytes) -> None:
    """Make a partition a physical volume, by its first bytes as lvm_format.head has them, durably."""
    handle = os.open(partition, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(handle, head, 0)
        os.fsync(handle)
    except OSError as error:
        raise DiskError(f"writing to {partition} failed ({error.strerror}); look at the disk") from error
    finally:
        os.close(handle)


def mapped_name(group: str, volume: str) -> str:
    """Return the name below /dev/mapper. Pure."""
    return f"{group.replace('-', '--')}-{volume.replace('-', '--')}"


def table(group: Group, volume: Volume, devices: Mapping[str, str]) -> list[Target]:
    """Return how the kernel makes a volume; `devices` are MAJOR:MINOR of each physical volume. Pure."""
    targets = []
    extent = group.extent_bytes // SECTOR
    for segment in volume.segments:
        places = [f"{devices[ident]} {group.starts[ident] // SECTOR + first * extent}"
                  for ident, first in segment.stripes]
        kind, words = "linear", places[0]
        if len(places) > 1:
            kind, words = "striped", f"{len(places)} {segment.chunk_bytes // SECTOR} {' '.join(places)}"
        targets.append(Target(segment.start * extent, segment.count * extent, kind, words))
    return targets


def _groups(disks: Sequence[Disk], say: Say) -> Iterator[tuple[Group, Mapping[str, str]]]:
    """Yield the newest metadata of each whole group, with the device numbers of its physical volumes."""
    devices: dict[str, list[Path]] = {}
    newest: dict[str, Group] = {}
    for device, found in _physical(disks, say):
        devices.setdefault(found.ident, []).append(device)
        group = found.group
        if group is not None and (group.ident not in newest or group.version > newest[group.ident].version):
            newest[group.ident] = group
    names = [group.name for group in newest.values()]
    for group in newest.values():
        places = [devices.get(ident, []) for ident in group.starts]
        if any(len(place) != 1 for place in places) or names.count(group.name) > 1:
            say(f"the volume group {group.name} is left out: a disk of it is missing, or there twice")
            continue
        yield group, {ident: _number(place[0]) for ident, place in zip(group.starts, places, strict=True)}


def _physical(disks: Sequence[Disk], say: Say) -> Iterator[tuple[Path, Physical]]:
    for disk in disks:
        for device in [part.device for part in disk.partitions] or [disk.device]:
            try:
                with device.open("rb", buffering=0) as stream:
                    found = read(os.pread(stream.fileno(), HEAD_BYTES, 0))
            except (OSError, CorruptError) as error:
                say(f"{device} is left out as a part of a volume group: {error}")
                continue
            if found is not None:
                yield device, found


def _number(device: Path) -> str:
    number = device.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"
