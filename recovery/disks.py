"""Disks by what cannot move: I/O on /sys and block devices; `find_*` and `describe` are pure.

A partition is named by its GPT GUID and the serial of its disk, both of which must hold; a logical volume by the id
that LVM gave it and the serials of the disks that its group lies on. The serial comes from
sysfs (virtio, NVMe, SCSI page 0x80, WWID), no udev needed. Programs used: mount, umount, sync, mkfs.ext4,
mkfs.xfs, mkfs.vfat.
"""

from __future__ import annotations

import os
import re
import struct
import uuid as uuids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from plumbing.errors import CorruptError, DiskError, RefusedError
from plumbing.run import Completed, run
from recovery.gpt import read_gpt
from recovery.order import VOLUME_ID, Disks, PartitionRef

_FILESYSTEMS = Path("/proc/filesystems")
_VOLUME_NAME = re.compile(r"[A-Za-z0-9+_.-]{1,120}")
_NOT_DISKS = re.compile(r"(sr|fd|loop|ram|zram|dm-|md|mtdblock)\d")
MKFS_TIMEOUT_S = 1800.0
"""Longest that mkfs may take, in seconds; a large slow disk with its inode tables to write."""
SYNC_TIMEOUT_S = 1800.0
"""Longest that writing out what a filesystem has in memory may take, in seconds."""


@dataclass(frozen=True)
class Partition:
    """A partition, or logical volume, that is there now; `device` may have another name after the next boot.

    Of a volume `partuuid` is LVM- and its 64 characters, `name` that below /dev/mapper, `number` and `start_bytes` are
    0, `disk_device` is the first of its disks, and `disk_serial` has the serials of all of them, with + between.
    """

    device: Path
    number: int
    partuuid: str
    type_guid: str
    name: str
    start_bytes: int
    size_bytes: int
    disk_device: Path
    disk_serial: str | None

    @property
    def is_volume(self) -> bool:
        """Whether it is a logical volume."""
        return self.partuuid.startswith("LVM-")

    @property
    def source(self) -> str:
        """How fstab and the kernel of the host's own system name it."""
        return f"/dev/mapper/{self.name}" if self.is_volume else f"PARTUUID={self.partuuid}"

    @property
    def word(self) -> str:
        """How recovery's kernel command line names it."""
        return self.partuuid if self.is_volume else f"PARTUUID={self.partuuid}"


@dataclass(frozen=True)
class Disk:
    """A disk that is there now, with the volumes of which it is the first disk.

    `problem` is a sentence when its table cannot be read.
    """

    device: Path
    serial: str | None
    size_bytes: int
    sector_bytes: int
    partitions: tuple[Partition, ...]
    problem: str | None = None
    volumes: tuple[Partition, ...] = ()

    @property
    def places(self) -> tuple[Partition, ...]:
        """All that a filesystem may lie on."""
        return self.partitions + self.volumes


@dataclass(frozen=True)
class Filesystem:
    """What a filesystem says of itself; `uuid` as blkid prints it."""

    fstype: str
    uuid: str
    label: str


@dataclass(frozen=True)
class Found:
    """The partitions that an upgrade works on."""

    root: Partition
    local: Partition | None
    boot: Partition


def inventory(sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> tuple[Disk, ...]:
    """Return the disks of this machine with their GPT partitions and active logical volumes, by device name."""
    folders = sorted((sysfs / "block").iterdir()) if (sysfs / "block").is_dir() else []
    found = [
        _disk(folder, dev) for folder in folders
        if (folder / "device").exists() and not _NOT_DISKS.match(folder.name) and _text(folder / "hidden") != "1"
    ]
    below = {device.name: disk for disk in found
             for device in (disk.device, *(part.device for part in disk.partitions))}
    volumes = [volume for folder in folders if (volume := _volume(folder, dev, below)) is not None]
    return tuple(replace(disk, volumes=tuple(one for one in volumes if one.disk_device == disk.device))
                 for disk in found)


def _volume(folder: Path, dev: Path, below: Mapping[str, Disk]) -> Partition | None:
    """Return the logical volume that a device-mapper device is, None for anything else.

    One that lies on more than disks and partitions, such as a thin one, a snapshot's origin or one in a LUKS container,
    is none that is known here.
    """
    ident, name, slaves = _text(folder / "dm/uuid"), _text(folder / "dm/name"), folder / "slaves"
    names = sorted(slave.name for slave in slaves.iterdir()) if slaves.is_dir() else []
    if not VOLUME_ID.fullmatch(ident) or not _VOLUME_NAME.fullmatch(name):
        return None
    if not names or any(one not in below for one in names):
        return None
    under = sorted({below[one].device: below[one].serial for one in names}.items())
    serials = [serial for _, serial in under if serial is not None]
    return Partition(dev / folder.name, 0, ident, "", name, 0, int(_text(folder / "size") or 0) * 512, under[0][0],
                     "+".join(sorted(serials)) if len(serials) == len(under) else None)


def serial_of(folder: Path) -> str | None:
    """Return the serial of the disk whose sysfs folder is `folder`, None when it shows none."""
    for name in ("serial", "device/serial"):
        if text := _text(folder / name):
            return text
    try:  # SPC-4 7.8.15: byte 1 is the page code, bytes 2 and 3 the length of what follows
        page = (folder / "device/vpd_pg80").read_bytes()
    except OSError:
        page = b""
    if len(page) > 4 and page[1] == 0x80:
        length = int.from_bytes(page[2:4], "big")
        if text := _printable(page[4:4 + length]):
            return text
    return next((text for name in ("wwid", "device/wwid") if (text := _text(folder / name))), None)


def _text(path: Path) -> str:
    try:
        return _printable(path.read_bytes())
    except OSError:
        return ""


def _printable(raw: bytes) -> str:
    return "".join(chr(byte) for byte in raw if 0x20 <= byte < 0x7F).strip()


def _disk(folder: Path, dev: Path) -> Disk:
    device = dev / folder.name
    serial, size = serial_of(folder), int(_text(folder / "size") or 0) * 512
    sector = int(_text(folder / "queue/logical_block_size") or 512)
    try:
        with device.open("rb", buffering=0) as stream:
            table = read_gpt(lambda offset, length: os.pread(stream.fileno(), length, offset), size, sector)
    except OSError as error:
        return Disk(device, serial, size, sector, (), f"it cannot be read ({error.strerror})")
    except CorruptError as error:
        return Disk(device, serial, size, sector, (), error.sentence)
    if table is None:
        return Disk(device, serial, size, sector, ())
    nodes = {int(_text(part / "partition")): part for part in folder.iterdir() if (part / "partition").exists()}
    parts = []
    for entry in table.entries:
        node = nodes.get(entry.number)
        start = entry.first_sector * sector
        if node is None or int(_text(node / "start") or -1) * 512 != start:
            return Disk(device, serial, size, sector, (), f"the kernel does not see partition {entry.number} as the "
                        "table has it; reboot, or run `partprobe`")
        parts.append(Partition(dev / node.name, entry.number, entry.guid, entry.type_guid, entry.name, start,
                               entry.sectors * sector, device, serial))
    return Disk(device, serial, size, sector, tuple(parts))


def describe(disks: Sequence[Disk]) -> str:
    """List what is there, on one line, for a sentence."""
    if not disks:
        return "no disk at all (is its driver in the recovery image?)"
    lines = []
    for disk in disks:
        listed = ", ".join(f"{part.device.name}={part.partuuid}" for part in disk.places)
        parts = listed or disk.problem or "no GPT partitions"
        lines.append(f"{disk.device.name} (serial {disk.serial or 'none'}, {disk.size_bytes >> 20} MiB: {parts})")
    return "; ".join(lines)


def find_disk(disks: Sequence[Disk], serial: str) -> Disk:
    """Return the one disk with this serial; raises DiskError naming what is there when none or several have it."""
    found = [disk for disk in disks if disk.serial == serial]
    if len(found) != 1:
        count = "no disk has" if not found else f"{len(found)} disks have"
        raise DiskError(f"{count} the serial {serial!r} that the order names; here are {describe(disks)}: correct the "
                        "host's entry and issue the order again")
    return found[0]


def find_partition(disks: Sequence[Disk], ref: PartitionRef, purpose: str = "named") -> Partition:
    """Return the one partition with this GUID on the disk with this serial.

    Raises DiskError when it is absent, on a disk with another serial, or there twice (a cloned disk); the
    sentence says what is there. `purpose` is a word for the sentence: root, local, boot.
    """
    found = [part for disk in disks for part in disk.places if part.partuuid == ref.partuuid]
    if not found:
        raise DiskError(f"the {purpose} partition {ref.partuuid} is not on this machine; here are {describe(disks)}: "
                        "connect its disk, or correct the host's entry and issue the order again")
    if len(found) > 1:
        names = " and ".join(part.device.name for part in found)
        raise DiskError(f"the {purpose} partition {ref.partuuid} is there twice, as {names}; take the cloned disk out "
                        "or give its partitions new GUIDs with `sgdisk -G`")
    part = found[0]
    if part.disk_serial != ref.disk_serial:
        raise DiskError(f"the {purpose} partition {ref.partuuid} is on a disk with serial {part.disk_serial or 'none'} "
                        f"and the order says {ref.disk_serial or 'none'}; here are {describe(disks)}: correct the "
                        "host's entry and issue the order again")
    return part


def find_all(disks: Sequence[Disk], wanted: Disks) -> Found:
    """Return root, local and boot partition of an order; raises DiskError like `find_partition`."""
    return Found(find_partition(disks, wanted.root, "root"),
                 None if wanted.local is None else find_partition(disks, wanted.local, "local"),
                 find_partition(disks, wanted.boot, "boot"))


def identify(device: Path) -> Filesystem | None:
    """Return type, UUID and label of the ext, XFS, btrfs or FAT filesystem on `device`; None for anything else."""
    try:
        with device.open("rb", buffering=0) as stream:
            head = os.pread(stream.fileno(), 4096, 0)
            btrfs = os.pread(stream.fileno(), 4096, 0x10000)
    except OSError as error:
        raise DiskError(f"{device} cannot be read ({error.strerror}); look at the disk and its cable") from error
    return parse_superblock(head, btrfs)


def parse_superblock(head: bytes, at_64k: bytes = b"") -> Filesystem | None:
    """Pure part of `identify`: the first 4096 bytes of a filesystem, and 4096 more from 65536 (for btrfs)."""
    if head[0x438:0x43A] == b"\x53\xef":  # ext: superblock at 1024
        compatible, incompatible = struct.unpack_from("<II", head, 1024 + 0x5C)
        kind = "ext4" if incompatible & 0x40 else "ext3" if compatible & 4 else "ext2"  # extents; journal
        return Filesystem(kind, str(uuids.UUID(bytes=head[0x468:0x478])), _label(head[0x478:0x488]))
    if head.startswith(b"XFSB"):
        return Filesystem("xfs", str(uuids.UUID(bytes=head[32:48])), _label(head[108:120]))
    if at_64k[0x40:0x48] == b"_BHRfS_M":
        return Filesystem("btrfs", str(uuids.UUID(bytes=at_64k[0x20:0x30])), _label(at_64k[0x12B:0x22B]))
    if head[510:512] == b"\x55\xaa":
        for magic, serial in ((82, 67), (54, 39)):  # FAT32, then FAT12 and FAT16
            if head[magic:magic + 3] == b"FAT":
                number = f"{int.from_bytes(head[serial:serial + 4], 'little'):08X}"
                return Filesystem("vfat", f"{number[:4]}-{number[4:]}", _label(head[serial + 4:serial + 15]))
    return None


def _label(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip()


def check_filesystem(part: Partition, ref: PartitionRef, purpose: str) -> Filesystem:
    """Return what is on the partition; raises DiskError when it is not the filesystem type the order names."""
    there = identify(part.device)
    if there is None or there.fstype != ref.fstype:
        holds = there.fstype if there else "no filesystem known here"
        raise DiskError(f"the {purpose} partition {part.device} holds {holds} and the order says {ref.fstype}; correct "
                        "the host's entry and issue the order again")
    return there


def make_filesystem(device: Path, fstype: str, *, label: str | None = None, uuid: str | None = None,
                    inodes: int | None = None) -> None:
    """Make a new, empty filesystem on `device`; everything on it goes. `uuid` keeps what fstab and GRUB refer to.

    For vfat, `uuid` is the XXXX-XXXX volume id. `inodes` is how many an ext4 gets, None for mke2fs's own number.
    Raises RefusedError when the device is mounted.
    """
    refuse_mounted(device)
    if fstype == "ext4":
        argv: list[str] = ["mkfs.ext4", "-q", "-F"]
        argv += (["-L", label] if label else []) + (["-U", uuid] if uuid else [])
        argv += ["-N", str(inodes)] if inodes else []
    elif fstype == "xfs":
        # GRUB 2.06 and kernels from 5.10 on must read it, whatever a newer mkfs.xfs takes for its default
        argv = ["mkfs.xfs", "-q", "-f", "-i", "nrext64=0"] + (["-L", label] if label else [])
        argv += ["-m", f"uuid={uuid}"] if uuid else []
    elif fstype == "vfat":
        argv = ["mkfs.vfat"] + (["-n", label] if label else []) + (["-i", uuid.replace("-", "")] if uuid else [])
    else:
        raise RefusedError(f"recovery makes ext4, xfs and vfat filesystems, not {fstype}; choose one of these")
    run([*argv, device], timeout_s=MKFS_TIMEOUT_S)


def refuse_mounted(device: Path, mounts: Path = Path("/proc/mounts")) -> None:
    """Raise RefusedError when `device` or a partition of it is mounted."""
    suffix = r"(p\d+)?" if device.name[-1:].isdigit() else r"(\d+)?"  # nvme0n1p2 but vda2
    mine = re.compile(re.escape(str(device)) + suffix)
    for line in mounts.read_text(errors="surrogateescape").splitlines() if mounts.exists() else []:
        source, target = line.split(" ")[:2]
        if mine.fullmatch(source):
            raise RefusedError(f"{device} is in use: {source} is mounted at {target}; unmount it first")


def mount(device: Path, target: Path, fstype: str, *options: str) -> None:
    """Mount `device` at `target`, making the folder; raises DiskError."""
    target.mkdir(parents=True, exist_ok=True)
    # the kernel of an initramfs does not always find modprobe itself
    if fstype not in _FILESYSTEMS.read_text().split():
        run(["modprobe", fstype], check=False)
    chosen = ["-o", ",".join(options)] if options else []
    done = run(["mount", "-t", fstype, *chosen, device, target], check=False)
    if done.status != 0:
        raise DiskError(f"{device} ({fstype}) cannot be mounted at {target}: {_complaint(done)}; check the filesystem "
                        "with fsck")


def unmount(target: Path) -> None:
    """Unmount `target`; raises DiskError when something still uses it."""
    done = run(["umount", target], check=False)
    if done.status != 0:
        raise DiskError(f"{target} cannot be unmounted: {_complaint(done)}; end what still uses it")


def _complaint(done: Completed) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[0] if lines else f"status {done.status}"  # util-linux ends with a hint at dmesg


@contextmanager
def mounted(device: Path, target: Path, fstype: str, *options: str) -> Iterator[Path]:
    """Mount for the length of a `with` block."""
    mount(device, target, fstype, *options)
    try:
        yield target
    finally:
        unmount(target)


def sync_device(device: Path) -> None:
    """Make everything written to a block device durable; raises DiskError, never to be retried."""
    try:
        handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise DiskError(f"writing to {device} failed ({error.strerror}); look at the disk") from error


def sync_filesystem(path: Path) -> None:
    """Make all that was written to the filesystem of `path` durable (syncfs); raises DiskError, never to be retried."""
    done = run(["sync", "-f", path], check=False, timeout_s=SYNC_TIMEOUT_S)
    if done.status != 0:
        raise DiskError(f"writing to the filesystem of {path} failed: {_complaint(done)}; look at the disk")


def free_bytes(path: Path) -> int:
    """Return the bytes that root may still write to the filesystem holding `path`."""
    figures = os.statvfs(path)
    return figures.f_bfree * figures.f_frsize


def require_space(path: Path, needed_bytes: int, purpose: str) -> None:
    """Raise DiskError when fewer than `needed_bytes` are free at `path`; `purpose` is for the sentence."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise DiskError(f"{purpose} needs {needed_bytes >> 20} MiB on {path} and {free >> 20} MiB are free; make room "
                        "or use a larger disk")
