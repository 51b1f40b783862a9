"""GRUB's first stage for BIOS machines: pure patching of its two images, and writing them to a disk or image file.

Offsets are those of GRUB's include/grub/i386/pc/boot.h and offsets.h. What stands where on the disk, and why
grub-bios-setup is not used: docs/protocols/boot-area.md, docs/adr/0006-grub-first-stage.md.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from plumbing.errors import CorruptError, DiskError, RefusedError
from recovery.gpt import BIOS_BOOT_TYPE, GptEntry, read_gpt

SECTOR_BYTES = 512
_BPB = slice(0x03, 0x5A)
_KERNEL_SECTOR = 0x5C
_DRIVE_CHECK = slice(0x66, 0x68)
_TABLE = slice(0x1B8, 0x1FE)  # disk signature and the four entries
_BLOCKLIST = struct.Struct("<QHH")
_BLOCKLIST_AT = SECTOR_BYTES - _BLOCKLIST.size
_REST_SEGMENT = 0x820
"""Where diskboot.img loads what follows it: 0x8000 plus its own sector, in paragraphs."""


def boot_sector(old: bytes, boot_img: bytes, core_sector: int) -> bytes:
    """Return the disk's new first sector: `boot_img` loading `core_sector`, with the tables of `old` kept."""
    if len(boot_img) != SECTOR_BYTES or boot_img[510:] != b"\x55\xaa":
        raise CorruptError("grub-boot.img is not GRUB's 512-byte boot sector; build the recovery image again")
    if len(old) != SECTOR_BYTES:
        raise DiskError("the disk's first sector cannot be read whole; look at the disk")
    new = bytearray(boot_img)
    new[_BPB] = old[_BPB]
    new[_TABLE] = old[_TABLE]
    struct.pack_into("<Q", new, _KERNEL_SECTOR, core_sector)
    new[_DRIVE_CHECK] = b"\x90\x90"
    return bytes(new)


def core_image(core_img: bytes, start_sector: int) -> bytes:
    """Return `core_img` padded to sectors, its blocklist saying that the rest follows `start_sector`."""
    sectors = -(-len(core_img) // SECTOR_BYTES)
    if sectors < 2 or sectors > 0xFFFF:
        raise CorruptError(f"grub-core.img has {len(core_img)} bytes, which no GRUB core has; build the recovery image "
                           "again")
    image = bytearray(core_img.ljust(sectors * SECTOR_BYTES, b"\0"))
    _BLOCKLIST.pack_into(image, _BLOCKLIST_AT, start_sector + 1, sectors - 1, _REST_SEGMENT)
    return bytes(image)


def install(disk: Path, boot_img: bytes, core_img: bytes) -> bool:
    """Write the first stage to a block device or image file, durably; True when anything changed.

    Raises RefusedError when there is no BIOS boot partition large enough; then nothing was written.
    """
    try:
        handle = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError(f"{disk} cannot be opened ({error.strerror}); look at the disk") from error
    try:
        return _install(disk, handle, boot_img, core_img)
    except OSError as error:
        raise DiskError(f"GRUB cannot be written to {disk} ({error.strerror}); look at the disk") from error
    finally:
        os.close(handle)


def _install(disk: Path, handle: int, boot_img: bytes, core_img: bytes) -> bool:
    entry = _bios_boot(disk, handle)
    old = os.pread(handle, SECTOR_BYTES, 0)
    length = len(core_image(core_img, entry.first_sector))
    if length > entry.sectors * SECTOR_BYTES:
        raise RefusedError(f"the BIOS boot partition of {disk} has {entry.sectors * SECTOR_BYTES} bytes and GRUB needs "
                           f"{length}; make it larger (1 MiB is usual)")
    current = struct.unpack_from("<Q", old, _KERNEL_SECTOR)[0]
    halves = (entry.first_sector, entry.first_sector + entry.sectors // 2)
    core = core_image(core_img, current)
    kept = current in halves and os.pread(handle, length, current * SECTOR_BYTES) == core
    if kept:
        start = current
    else:  # into the half that sector 0 does not point to: a cut in between leaves the old GRUB whole
        fits = length <= entry.sectors // 2 * SECTOR_BYTES
        start = halves[1] if fits and halves[0] <= current < halves[1] else halves[0]
        _write(handle, start * SECTOR_BYTES, core_image(core_img, start))
    first = boot_sector(old, boot_img, start)
    if first != old:
        _write(handle, 0, first)
    return first != old or not kept


def _write(handle: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        wrote = os.pwrite(handle, view, offset)
        view, offset = view[wrote:], offset + wrote
    os.fsync(handle)


def _bios_boot(disk: Path, handle: int) -> GptEntry:
    size = os.lseek(handle, 0, os.SEEK_END)
    table = read_gpt(lambda offset, length: os.pread(handle, length, offset), size, SECTOR_BYTES)
    if table is None:
        raise RefusedError(f"{disk} has no GPT with 512-byte sectors, so GRUB has no place on it; start this machine "
                           "by UEFI or partition the disk anew")
    found = [entry for entry in table.entries if entry.type_guid == BIOS_BOOT_TYPE]
    if len(found) != 1:
        raise RefusedError(f"{disk} has {len(found)} BIOS boot partitions and one is needed; make one of 1 MiB with "
                           f"type {BIOS_BOOT_TYPE}")
    return found[0]
