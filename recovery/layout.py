"""What an install makes of a blank disk: `plan` is pure and shown before it runs; `apply` runs it.

GUIDs follow from the order's id and the partition's name, so planning again after a power cut gives the same plan
and `apply` finds what it did already. Programs used: sfdisk, mkfs.ext4, mkfs.xfs, mkfs.vfat.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plumbing.errors import DiskError, RefusedError
from plumbing.run import run
from recovery.disks import Disk, Partition, inventory, make_filesystem, refuse_mounted, sync_device
from recovery.gpt import BIOS_BOOT_TYPE, ESP_TYPE, LINUX_TYPE, ROOT_X86_64_TYPE
from recovery.order import Disks, Layout, PartitionName, PartitionRef

ALIGN_BYTES = 1 << 20
LEAST_ROOT_BYTES = 64 << 20
NAMESPACE = uuid.UUID("6f1d5f0e-5b0b-5d53-9f0b-8f1d6a2c7e11")
"""What partition GUIDs are derived from, together with the order's id and the partition's name."""

TYPES: dict[PartitionName, str] = {
    "bios": BIOS_BOOT_TYPE, "esp": ESP_TYPE, "root": ROOT_X86_64_TYPE, "local": LINUX_TYPE,
}
LABELS: dict[PartitionName, str] = {"bios": "reroot-bios", "esp": "REROOT-ESP", "root": "reroot-root",
                                    "local": "reroot-local"}
UNFINISHED = "-new"
"""Ends the root partition's name until all filesystems are made and synced: a power cut before makes them again."""


@dataclass(frozen=True)
class PlannedPartition:
    """One partition to be: where, of what type, under which GUIDs; `fs_uuid` as mkfs takes it."""

    number: int
    name: PartitionName
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

    def partition(self, name: PartitionName) -> PlannedPartition | None:
        """Return the partition of that name, if the layout has one."""
        return next((part for part in self.partitions if part.name == name), None)

    @property
    def disks(self) -> Disks:
        """The same in the words of an upgrade order, for all that comes after."""
        refs = {part.name: PartitionRef(part.partuuid, self.disk_serial, part.fs or "") for part in self.partitions}
        return Disks(refs["root"], refs.get("local"), refs["esp"])


def plan(layout: Layout, disk: Disk, order_id: str) -> LayoutPlan:
    """Return what `layout` makes of `disk`; raises DiskError when it does not fit or is another disk."""
    if disk.serial != layout.disk_serial:
        raise DiskError(f"{disk.device} has the serial {disk.serial or 'none'}, the order names {layout.disk_serial}; "
                        "nothing was touched: correct the host's entry and issue the order again")
    usable = disk.size_bytes // ALIGN_BYTES * ALIGN_BYTES - 2 * ALIGN_BYTES  # a table at each end
    fixed = sum(part.size_bytes or 0 for part in layout.partitions)
    rest = usable - fixed
    if rest < 0 or (any(part.size_bytes is None for part in layout.partitions) and rest < LEAST_ROOT_BYTES):
        raise DiskError(f"the layout needs {(fixed + LEAST_ROOT_BYTES) >> 20} MiB and {disk.device} has "
                        f"{disk.size_bytes >> 20} MiB; use a larger disk or smaller sizes")
    start, parts = ALIGN_BYTES, []
    for number, wanted in enumerate(layout.partitions, 1):
        size = rest if wanted.size_bytes is None else wanted.size_bytes
        fs_guid = _guid(order_id, f"fs-{wanted.name}")
        fs_uuid = {None: None, "vfat": f"{fs_guid[:4]}-{fs_guid[4:8]}".upper()}.get(wanted.fs, fs_guid)
        parts.append(PlannedPartition(number, wanted.name, TYPES[wanted.name], _guid(order_id, wanted.name), start,
                                      size, wanted.fs, fs_uuid))
        start += size
    return LayoutPlan(disk.device, layout.disk_serial, _guid(order_id, "disk"), disk.size_bytes, disk.sector_bytes,
                      tuple(parts))


def _guid(order_id: str, name: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{order_id}/{name}"))


def show(wanted: LayoutPlan, disk: Disk) -> str:
    """Return the plan for people: what goes, what comes."""
    gone = ", ".join(f"{part.device.name} {part.size_bytes >> 20} MiB" for part in disk.partitions)
    lines = [f"{wanted.device} (serial {wanted.disk_serial}, {wanted.disk_bytes >> 20} MiB): every byte on it goes"
             f" ({gone or disk.problem or 'no partitions now'})"]
    lines += [f"  {part.number} {part.name:<5} {part.size_bytes >> 20:>9} MiB  {part.fs or '-':<4}  {part.partuuid}"
              for part in wanted.partitions]
    return "\n".join(lines)


def sfdisk_script(wanted: LayoutPlan) -> str:
    """Return the input for sfdisk: every start, size, type and GUID given, nothing left to its defaults.

    The root partition's name says that its filesystems are not made yet; `apply` takes that away at the end.
    """
    sector = wanted.sector_bytes
    lines = ["label: gpt", f"label-id: {wanted.disk_guid}", "unit: sectors"]
    lines += [f"start={part.start_bytes // sector}, size={part.size_bytes // sector}, type={part.type_guid}, "
              f'uuid={part.partuuid}, name="{LABELS[part.name]}{UNFINISHED if part.name == "root" else ""}"'
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
        return disk.partitions
    refuse_mounted(wanted.device)
    if not is_made(wanted, disk):
        say(f"{wanted.device}: writing the partition table")
        run(["sfdisk", "--wipe", "always", "--wipe-partitions", "always", "--quiet", wanted.device],
            stdin=sfdisk_script(wanted).encode())
        disk = _disk(wanted, look())
        if not is_made(wanted, disk):
            raise DiskError(f"{wanted.device} does not have the planned partitions after sfdisk; here is "
                            f"{disk.problem or 'another table'}: reboot and try again")
    for planned, part in zip(wanted.partitions, sorted(disk.partitions, key=lambda p: p.number), strict=True):
        if planned.fs is not None:
            say(f"{part.device}: making a {planned.fs} filesystem for {planned.name}")
            label = LABELS[planned.name][:{"vfat": 11, "xfs": 12}.get(planned.fs, 16)]
            make_filesystem(part.device, planned.fs, label=label, uuid=planned.fs_uuid,
                            inodes=root_inodes if planned.name == "root" else None)
    root = next(planned for planned in wanted.partitions if planned.name == "root")
    for part in disk.partitions:
        sync_device(part.device)
    run(["sfdisk", "--quiet", "--part-label", wanted.device, str(root.number), LABELS["root"]])
    return _disk(wanted, look()).partitions


def _disk(wanted: LayoutPlan, disks: tuple[Disk, ...]) -> Disk:
    found = [disk for disk in disks if disk.serial == wanted.disk_serial]
    if len(found) != 1 or found[0].device != wanted.device:
        raise RefusedError(f"{wanted.device} is no longer the one disk with serial {wanted.disk_serial}; nothing more "
                           "was touched: look at the cables and start again")
    return found[0]

