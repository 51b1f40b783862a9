"""What an install makes of a blank disk: `plan` is pure and shown before it runs; `apply` runs it.

GUIDs, and LVM's ids, follow from the order's id and the partition's name, so planning again after a power cut gives the
same plan and `apply` finds what it did already. Programs used: sfdisk, mkfs.ext4, mkfs.xfs, mkfs.vfat.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from plumbing.errors import DiskError, RefusedError
from plumbing.run import run
from recovery import lvm
from recovery.disks import Disk, Partition, inventory, make_filesystem, refuse_mounted, sync_device
from recovery.gpt import BIOS_BOOT_TYPE, ESP_TYPE, LINUX_TYPE, LVM_TYPE, ROOT_X86_64_TYPE
from recovery.lvm_format import EXTENT_BYTES, extents, head, ident
from recovery.order import Disks, Layout, LayoutPartition, PartitionName, PartitionRef

ALIGN_BYTES = 1 << 20
LEAST_ROOT_BYTES = 64 << 20
NAMESPACE = uuid.UUID("6f1d5f0e-5b0b-5d53-9f0b-8f1d6a2c7e11")
"""What partition GUIDs are derived from, together with the order's id and the partition's name."""

PlannedName = PartitionName | Literal["lvm"]

TYPES: dict[PlannedName, str] = {
    "bios": BIOS_BOOT_TYPE, "esp": ESP_TYPE, "root": ROOT_X86_64_TYPE, "local": LINUX_TYPE, "lvm": LVM_TYPE,
}
LABELS: dict[PlannedName, str] = {"bios": "reroot-bios", "esp": "REROOT-ESP", "root": "reroot-root",
                                  "local": "reroot-local", "lvm": "reroot-lvm"}
VOLUMES = ("root", "local")
"""What lies in the volume group of a layout that names one."""
UNFINISHED = "-new"
"""Ends the name of the partition that holds the root until all filesystems are made and synced: a power cut before then
makes them again."""


@dataclass(frozen=True)
class PlannedPartition:
    """One partition to be: where, of what type, under which GUIDs; `fs_uuid` as mkfs takes it.

    Or a volume of the group, whose `partuuid` is its LVM-id; number, type and start mean nothing then.
    """

    number: int
    name: PlannedName
    type_guid: str
    partuuid: str
    start_bytes: int
    size_bytes: int
    fs: str | None
    fs_uuid: str | None


@dataclass(frozen=True)
class LayoutPlan:
    """A whole disk to be; everything on it now goes."""

    device: Path
    disk_serial: str
    disk_guid: str
    disk_bytes: int
    sector_bytes: int
    partitions: tuple[PlannedPartition, ...]
    group: str | None = None
    volumes: tuple[PlannedPartition, ...] = ()

    @property
    def places(self) -> tuple[PlannedPartition, ...]:
        """Partitions and volumes."""
        return self.partitions + self.volumes

    @property
    def holder(self) -> PlannedPartition:
        """The partition that the root is, or that its volume lies on."""
        return next(part for part in self.partitions if part.name == ("root" if self.group is None else "lvm"))

    def partition(self, name: PartitionName) -> PlannedPartition | None:
        """Return the partition or volume of that name, if the layout has one."""
        return next((part for part in self.places if part.name == name), None)

    @property
    def disks(self) -> Disks:
        """The same in the words of an upgrade order, for all that comes after."""
        refs = {part.name: PartitionRef(part.partuuid, self.disk_serial, part.fs or "") for part in self.places}
        return Disks(refs["root"], refs.get("local"), refs["esp"])


def plan(layout: Layout, disk: Disk, order_id: str) -> LayoutPlan:
    """Return what `layout` makes of `disk`; raises DiskError when it does not fit or is another disk."""
    if disk.serial != layout.disk_serial:
        raise DiskError(f"{disk.device} has the serial {disk.serial or 'none'}, the order names {layout.disk_serial}; "
                        "nothing was touched: correct the host's entry and issue the order again")
    inside = () if layout.group is None else tuple(part for part in layout.partitions if part.name in VOLUMES)
    outside = [part for part in layout.partitions if part not in inside]
    usable = disk.size_bytes // ALIGN_BYTES * ALIGN_BYTES - 2 * ALIGN_BYTES  # a table at each end
    fixed = sum(part.size_bytes or 0 for part in layout.partitions)
    rest = usable - fixed
    if rest < 0 or (any(part.size_bytes is None for part in layout.partitions) and rest < LEAST_ROOT_BYTES):
        raise DiskError(f"the layout needs {(fixed + LEAST_ROOT_BYTES) >> 20} MiB and {disk.device} has "
                        f"{disk.size_bytes >> 20} MiB; use a larger disk or smaller sizes")
    start, parts = ALIGN_BYTES, list[PlannedPartition]()
    for wanted in outside:
        size = rest if wanted.size_bytes is None else wanted.size_bytes
        parts.append(_planned(order_id, len(parts) + 1, wanted.name, start, size, wanted.fs))
        start += size
    if layout.group is not None:
        parts.append(_planned(order_id, len(parts) + 1, "lvm", start, usable + ALIGN_BYTES - start, None))
    return LayoutPlan(disk.device, layout.disk_serial, _guid(order_id, "disk"), disk.size_bytes, disk.sector_bytes,
                      tuple(parts), layout.group, _volumes(layout, order_id, inside, parts[-1].size_bytes))


def _planned(order_id: str, number: int, name: PlannedName, start: int, size: int, fs: str | None) -> PlannedPartition:
    fs_guid = _guid(order_id, f"fs-{name}")
    fs_uuid = {None: None, "vfat": f"{fs_guid[:4]}-{fs_guid[4:8]}".upper()}.get(fs, fs_guid)
    return PlannedPartition(number, name, TYPES[name], _guid(order_id, name), start, size, fs, fs_uuid)


def _volumes(layout: Layout, order_id: str, inside: Sequence[LayoutPartition],
             size: int) -> tuple[PlannedPartition, ...]:
    """Cut a partition of `size` bytes into whole extents; what is `rest` gets what the others leave."""
    counts = [None if part.size_bytes is None else -(-part.size_bytes // EXTENT_BYTES) for part in inside]
    rest = extents(size) - sum(count or 0 for count in counts)
    if inside and (rest < 0 or (None in counts and rest * EXTENT_BYTES < LEAST_ROOT_BYTES)):
        raise DiskError(f"the volumes of group {layout.group} do not fit into {size >> 20} MiB; use a larger disk or "
                        "smaller sizes")
    return tuple(
        replace(_planned(order_id, 0, part.name, 0, (rest if count is None else count) * EXTENT_BYTES, part.fs),
                partuuid=f"LVM-{ident(order_id, 'group')}{ident(order_id, part.name)}")
        for part, count in zip(inside, counts, strict=True))


def _guid(order_id: str, name: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{order_id}/{name}"))


def show(wanted: LayoutPlan, disk: Disk) -> str:
    """Return the plan for people: what goes, what comes."""
    gone = ", ".join(f"{part.device.name} {part.size_bytes >> 20} MiB" for part in disk.partitions)
    lines = [f"{wanted.device} (serial {wanted.disk_serial}, {wanted.disk_bytes >> 20} MiB): every byte on it goes"
             f" ({gone or disk.problem or 'no partitions now'})"]
    lines += [f"  {part.number} {part.name:<5} {part.size_bytes >> 20:>9} MiB  {part.fs or '-':<4}  {part.partuuid}"
              for part in wanted.partitions]
    lines += [f"    {part.name:<5} {part.size_bytes >> 20:>9} MiB  {part.fs or '-':<4}  volume of {wanted.group}"
              for part in wanted.volumes]
    return "\n".join(lines)


def sfdisk_script(wanted: LayoutPlan) -> str:
    """Return the input for sfdisk: every start, size, type and GUID given, nothing left to its defaults.

    The name of the partition that holds the root says that its filesystems are not made yet; `apply` takes that away at
    the end.
    """
    sector = wanted.sector_bytes
    lines = ["label: gpt", f"label-id: {wanted.disk_guid}", "unit: sectors"]
    lines += [f"start={part.start_bytes // sector}, size={part.size_bytes // sector}, type={part.type_guid}, "
              f'uuid={part.partuuid}, name="{LABELS[part.name]}{UNFINISHED if part == wanted.holder else ""}"'
              for part in wanted.partitions]
    return "\n".join(lines) + "\n"


def is_made(wanted: LayoutPlan, disk: Disk) -> bool:
    """Whether the disk has exactly the planned partitions already."""
    there = {(part.number, part.partuuid, part.start_bytes, part.size_bytes) for part in disk.partitions}
    return there == {(p.number, p.partuuid, p.start_bytes, p.size_bytes) for p in wanted.partitions}


def is_finished(wanted: LayoutPlan, disk: Disk) -> bool:
    """Whether `apply` came to its end: the partitions are there and so are all their filesystems."""
    return is_made(wanted, disk) and not any(part.name.endswith(UNFINISHED) for part in disk.partitions)


def apply(
    wanted: LayoutPlan, *, look: Callable[[], tuple[Disk, ...]] = inventory,
    say: Callable[[str], None] = lambda _: None, root_inodes: int | None = None,
) -> tuple[Partition, ...]:
    """Partition the disk and make its filesystems, unless the same plan was carried out to its end already.

    `look` returns the disks as they are now; `say` gets one line per step; `root_inodes` is make_filesystem's
    `inodes` for the root. Returns the partitions, in order.
    Raises RefusedError when the disk is in use, DiskError when the result is not the plan.
    """
    disk = _disk(wanted, look())
    if is_finished(wanted, disk):
        say(f"{wanted.device}: partitions and filesystems are as planned already")
        return disk.places
    refuse_mounted(wanted.device)
    if not is_made(wanted, disk):
        say(f"{wanted.device}: writing the partition table")
        lvm.deactivate(disk)
        run(["sfdisk", "--wipe", "always", "--wipe-partitions", "always", "--quiet", wanted.device],
            stdin=sfdisk_script(wanted).encode())
        disk = _disk(wanted, look())
        if not is_made(wanted, disk):
            raise DiskError(f"{wanted.device} does not have the planned partitions after sfdisk; here is "
                            f"{disk.problem or 'another table'}: reboot and try again")
    if wanted.group is not None:
        disk = _make_group(wanted, disk, look, say)
    there = {part.partuuid: part for part in disk.places}
    for planned in wanted.places:
        part = there[planned.partuuid]
        if planned.fs is not None:
            say(f"{part.device}: making a {planned.fs} filesystem for {planned.name}")
            label = LABELS[planned.name][:{"vfat": 11, "xfs": 12}.get(planned.fs, 16)]
            make_filesystem(part.device, planned.fs, label=label, uuid=planned.fs_uuid,
                            inodes=root_inodes if planned.name == "root" else None)
    for part in disk.places:
        sync_device(part.device)
    holder = wanted.holder
    run(["sfdisk", "--quiet", "--part-label", wanted.device, str(holder.number), LABELS[holder.name]])
    return _disk(wanted, look()).places


def _make_group(wanted: LayoutPlan, disk: Disk, look: Callable[[], tuple[Disk, ...]],
                say: Callable[[str], None]) -> Disk:
    """Make the volume group, and its volumes ready; returns the disk with them."""
    assert wanted.group is not None
    say(f"{wanted.device}: making the volume group {wanted.group}")
    lvm.deactivate(disk)
    under = next(part for part in disk.partitions if part.partuuid == wanted.holder.partuuid)
    lvm.make(under.device, head(
        wanted.group, wanted.volumes[0].partuuid[4:36], ident(wanted.holder.partuuid), under.size_bytes,
        [(volume.name, volume.partuuid[36:], volume.size_bytes // EXTENT_BYTES) for volume in wanted.volumes]))
    lvm.activate([_disk(wanted, look())], say)
    made = _disk(wanted, look())
    if {volume.partuuid for volume in made.volumes} != {volume.partuuid for volume in wanted.volumes}:
        raise DiskError(f"the volumes of {wanted.group} on {under.device} do not show up; reboot and try again")
    return made


def _disk(wanted: LayoutPlan, disks: tuple[Disk, ...]) -> Disk:
    found = [disk for disk in disks if disk.serial == wanted.disk_serial]
    if len(found) != 1 or found[0].device != wanted.device:
        raise RefusedError(f"{wanted.device} is no longer the one disk with serial {wanted.disk_serial}; nothing more "
                           "was touched: look at the cables and start again")
    return found[0]

