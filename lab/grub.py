"""The first bootloader of a lab host: GRUB placed as Debian's grub-install places it.

`place_bios` and `core_blocks` are pure bytes work; `make_core` runs grub-mkimage. grub-bios-setup is not used,
for it wants block devices: what it does on GPT is to write the first sector of core.img into boot.img, and
the list of the other sectors into core.img's first.

recovery.biosboot and imaging.recovery_image.grub know the same offsets. This is written a second time on purpose: a
lab host's first GRUB must be another one than reroot's, as on a host that Debian installed, or a mistake in reroot's
would make its own test pass.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plumbing import run
from plumbing.errors import CorruptError, NotFoundError

GRUB = Path("/usr/lib/grub")
SECTOR = 512
_KERNEL_SECTOR_AT = 0x5C
_DRIVE_CHECK_AT = 0x66
_PARTITION_AREA_AT = 0x1B8
"""From here on the sector belongs to the partition table (disk signature, four entries, 0x55AA)."""
_CORE_SEGMENT = 0x820
"""Where the second sector of core.img is loaded: 0x8200, in paragraphs (grub/i386/pc/boot.h)."""

BIOS_MODULES = ("biosdisk", "part_gpt", "ext2", "xfs", "fat", "normal", "search", "search_fs_uuid", "configfile",
                "linux",
                "serial", "terminal", "echo", "test", "loadenv", "reboot", "minicmd")
EFI_MODULES = ("part_gpt", "ext2", "xfs", "fat", "normal", "search", "search_fs_uuid", "configfile", "linux", "serial",
               "terminal", "echo", "test", "loadenv", "reboot", "minicmd", "efi_gop", "all_video")


def make_core(platform: str, prefix: str, early_config: str, modules: Sequence[str]) -> bytes:
    """Return a GRUB core image for i386-pc or x86_64-efi that reads PREFIX/grub.cfg.

    `early_config` runs first, to find the device that holds `prefix`.
    """
    folder = GRUB / platform
    if not folder.is_dir():
        package = "grub-pc-bin" if platform == "i386-pc" else "grub-efi-amd64-bin"
        raise NotFoundError(f"GRUB for {platform} is not in {GRUB}; install the package {package}")
    with tempfile.TemporaryDirectory(prefix="reroot-grub-") as scratch:
        config, image = Path(scratch, "early.cfg"), Path(scratch, "core.img")
        config.write_text(early_config)
        run.run(["grub-mkimage", "-O", platform, "-d", folder, "-p", prefix, "-c", config, "-o", image, *modules])
        return image.read_bytes()


def boot_sector() -> bytes:
    """Return GRUB's boot.img as the package ships it."""
    return (GRUB / "i386-pc" / "boot.img").read_bytes()


def place_bios(old_sector: bytes, boot: bytes, core_at: int) -> bytes:
    """Return the disk's new first sector: GRUB's code, the old partition area; `core_at` in sectors."""
    if len(old_sector) != SECTOR or len(boot) != SECTOR:
        raise CorruptError(f"a boot sector has {SECTOR} bytes; got {len(old_sector)} and {len(boot)}")
    sector = bytearray(boot)
    struct.pack_into("<Q", sector, _KERNEL_SECTOR_AT, core_at)
    # The jump skips a check of the BIOS's drive number that some BIOSes need; grub-install takes it out on hard disks.
    sector[_DRIVE_CHECK_AT:_DRIVE_CHECK_AT + 2] = b"\x90\x90"
    sector[_PARTITION_AREA_AT:] = old_sector[_PARTITION_AREA_AT:]
    return bytes(sector)


def core_blocks(core: bytes, core_at: int) -> bytes:
    """Return core.img for contiguous storage at sector `core_at`: its first sector lists the others."""
    if len(core) < 2 * SECTOR:
        raise CorruptError(f"a GRUB core image of {len(core)} bytes is too short; was it made by grub-mkimage?")
    rest = -(-len(core) // SECTOR) - 1
    image = bytearray(core)
    struct.pack_into("<QHH", image, SECTOR - 12, core_at + 1, rest, _CORE_SEGMENT)
    return bytes(image)
