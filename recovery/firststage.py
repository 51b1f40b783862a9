"""What the firmware starts (I/O): GRUB in the boot sector for BIOS, a boot entry and a loader file for UEFI.

Both then read the menu in the boot area. Used by an installation and by the agent when it stages an order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from recovery import biosboot, efivars
from recovery.disks import Disk
from recovery.gpt import read_gpt


def install(disk: Disk, esp_partuuid: str, image: Mapping[str, Path], *, uefi: bool,
            say: Callable[[str], None]) -> bool:
    """Make the firmware start reroot's GRUB from `disk`; True when something changed.

    `image` maps the titles of a recovery image's parts to verified files. Raises RefusedError when the disk has no
    place for it (BIOS), DiskError when the firmware does not take a boot entry (UEFI).
    """
    if not uefi:
        return biosboot.install(disk.device, image["grub-boot.img"].read_bytes(), image["grub-core.img"].read_bytes())
    if not efivars.available():
        say("no UEFI variables here; the firmware starts EFI/BOOT/BOOTX64.EFI by itself")
        return False
    with disk.device.open("rb", buffering=0) as stream:
        fd = stream.fileno()
        table = read_gpt(lambda offset, length: os.pread(fd, length, offset), disk.size_bytes, disk.sector_bytes)
    assert table is not None
    before = efivars.read_order()
    efivars.make_first(next(entry for entry in table.entries if entry.guid == esp_partuuid))
    return efivars.read_order() != before
