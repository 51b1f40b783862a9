"""A host's disk image: partition table, filesystems, first bootloader; it boots by itself.

`plan` is pure; `write` does I/O, all of it into one sparse raw file: no loop device, no mount, but for an XFS.
Filesystems are made at their offsets inside the image (mke2fs -E offset, mkfs.vfat --offset), the ESP is filled by
mtools.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from lab import grub
from lab.qemu import Firmware
from plumbing import run
from plumbing.errors import NotFoundError, UsageError
from recovery.disks import make_filesystem, mounted
from recovery.gpt import BIOS_BOOT_TYPE, ESP_TYPE, LINUX_TYPE, ROOT_X86_64_TYPE

SECTOR = 512
MIB = 1 << 20

_EXT4_FEATURES = "^metadata_csum_seed,^orphan_file"
"""Newer mke2fs turns on what the GRUB of Debian 12 can't read."""


@dataclass(frozen=True)
class Partition:
    """One partition; offset and size in bytes. `fs_uuid` as blkid shows it, None without a filesystem."""

    name: str
    type: str
    offset: int
    size: int
    partuuid: str
    fstype: str | None
    fs_uuid: str | None


@dataclass(frozen=True)
class DiskPlan:
    """Where everything lies on a disk of `size` bytes."""

    size: int
    disk_uuid: str
    partitions: tuple[Partition, ...]

    def partition(self, name: str) -> Partition:
        """Return the partition with this name (bios, esp, root, local)."""
        for found in self.partitions:
            if found.name == name:
                return found
        raise NotFoundError(f"the disk plan has no partition {name}; it has "
                            f"{', '.join(each.name for each in self.partitions)}")

    def has(self, name: str) -> bool:
        """Tell whether there is a partition with this name."""
        return any(each.name == name for each in self.partitions)


def plan(*, size_mib: int = 4096, root_mib: int = 2048, esp_mib: int = 128, local: bool = True,
         root_fs: str = "ext4") -> DiskPlan:
    """Lay out bios-boot (1 MiB), ESP, root and, with `local`, /local in the rest; sizes in MiB."""
    rest = size_mib - 2 - esp_mib - root_mib - 1
    if root_mib < 64 or esp_mib < 34 or rest < (32 if local else 0):
        raise UsageError(f"a disk of {size_mib} MiB has no room for an ESP of {esp_mib} MiB (at least 34), a root of "
                         f"{root_mib} MiB (at least 64) and /local; make the disk larger")
    wanted = [("bios", BIOS_BOOT_TYPE, 1, None), ("esp", ESP_TYPE, esp_mib, "vfat"),
              ("root", ROOT_X86_64_TYPE, root_mib, root_fs)]
    if local:
        wanted.append(("local", LINUX_TYPE, rest, "ext4"))
    offset, made = MIB, []
    for name, kind, mib, fstype in wanted:
        made.append(Partition(name, kind, offset, mib * MIB, str(uuid.uuid4()), fstype, _fs_uuid(fstype)))
        offset += mib * MIB
    return DiskPlan(size_mib * MIB, str(uuid.uuid4()), tuple(made))


def _fs_uuid(fstype: str | None) -> str | None:
    if fstype is None:
        return None
    made = str(uuid.uuid4())
    return f"{made[:4]}-{made[4:8]}".upper() if fstype == "vfat" else made


def write(plan: DiskPlan, image: Path, firmware: Firmware, *, root: Path, local: Path | None = None) -> None:
    """Write the disk image: `root` and `local` are the folders that become these filesystems."""
    with image.open("wb") as stream:
        stream.truncate(plan.size)
    run.run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", image], stdin=_table(plan).encode())
    make_root = make_xfs if plan.partition("root").fstype == "xfs" else make_ext4
    make_root(image, plan.partition("root"), root)
    if plan.has("local"):
        make_ext4(image, plan.partition("local"), local)
    make_vfat(image, plan.partition("esp"))
    if firmware is Firmware.BIOS:
        _install_bios(plan, image)
    else:
        _install_uefi(plan, image)


def blank(image: Path, *, size_mib: int = 4096) -> Path:
    """Make an empty disk."""
    with image.open("wb") as stream:
        stream.truncate(size_mib * MIB)
    return image


def make_ext4(image: Path, where: Partition, tree: Path | None) -> None:
    """Make an ext4 filesystem inside the image, filled from a folder if there is one."""
    source = [] if tree is None else ["-d", os.fspath(tree)]
    run.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", _EXT4_FEATURES, "-L", where.name, "-U", str(where.fs_uuid),
             "-E", f"offset={where.offset},root_owner=0:0", *source, image, f"{where.size // 1024}k"], timeout_s=600)


def make_xfs(image: Path, where: Partition, tree: Path) -> None:
    """Make an XFS filesystem inside the image, filled from a folder through a mount."""
    apart = image.with_suffix(".xfs")
    with apart.open("wb") as stream:
        stream.truncate(where.size)
    try:
        make_filesystem(apart, "xfs", label=where.name, uuid=where.fs_uuid)
        with mounted(apart, image.with_suffix(".mnt"), "xfs", "loop") as top:
            run.run(["cp", "--archive", f"{tree}/.", top], timeout_s=600)
        run.run(["dd", f"if={apart}", f"of={image}", "bs=1M", f"seek={where.offset // MIB}", "conv=notrunc,sparse",
                 "status=none"], timeout_s=600)
    finally:
        apart.unlink()


def make_vfat(image: Path, where: Partition) -> None:
    """Make an empty FAT32 filesystem inside the image."""
    # Clusters of one sector and a geometry of our own: mkfs.vfat derives both from the whole image's size, and a
    # small partition then gets too few clusters for FAT32, which firmware and mtools read as FAT16.
    run.run(["mkfs.vfat", "-F", "32", "-s", "1", "-g", "16/32", "-n", where.name.upper(),
             "-i", str(where.fs_uuid).replace("-", ""), f"--offset={where.offset // SECTOR}",
             image, str(where.size // 1024)])


def esp_write(image: Path, where: Partition, path: str, data: bytes) -> None:
    """Write one file of the ESP inside an image; its folders are made."""
    volume = f"{image}@@{where.offset}"
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts)):
        run.run(["mmd", "-i", volume, "-D", "s", "::" + "/".join(parts[:depth])], check=False)
    run.run(["mcopy", "-i", volume, "-D", "o", "-", "::" + "/".join(parts)], stdin=data)


def esp_read(image: Path, where: Partition, path: str) -> bytes:
    """Return one file of the ESP inside an image that no machine is using."""
    return run.run(["mcopy", "-i", f"{image}@@{where.offset}", f"::{path.strip('/')}", "-"]).stdout


def early_config(plan: DiskPlan) -> str:
    """Return what GRUB runs first: find the host's root, read its grub.cfg."""
    return (f"search.fs_uuid {plan.partition('root').fs_uuid} root\n"
            "set prefix=($root)/boot/grub\n")


def _install_bios(plan: DiskPlan, image: Path) -> None:
    where = plan.partition("bios")
    core = grub.make_core("i386-pc", "/boot/grub", early_config(plan), grub.BIOS_MODULES)
    if len(core) > where.size:
        raise UsageError(f"GRUB's core image has {len(core)} bytes, more than the BIOS boot partition")
    start = where.offset // SECTOR
    with image.open("r+b") as stream:
        sector = stream.read(SECTOR)
        stream.seek(0)
        stream.write(grub.place_bios(sector, grub.boot_sector(), start))
        stream.seek(where.offset)
        stream.write(grub.core_blocks(core, start))


def _install_uefi(plan: DiskPlan, image: Path) -> None:
    core = grub.make_core("x86_64-efi", "/boot/grub", early_config(plan), grub.EFI_MODULES)
    esp = plan.partition("esp")
    # A board with empty variables knows no boot entry: as with Debian's force-efi-extra-removable, both names.
    esp_write(image, esp, "EFI/debian/grubx64.efi", core)
    esp_write(image, esp, "EFI/BOOT/BOOTX64.EFI", core)


def _table(plan: DiskPlan) -> str:
    lines = ["label: gpt", f"label-id: {plan.disk_uuid}", "unit: sectors", ""]
    lines += [f"start={each.offset // SECTOR}, size={each.size // SECTOR}, type={each.type}, uuid={each.partuuid}, "
              f"name={each.name}" for each in plan.partitions]
    return "\n".join(lines) + "\n"
