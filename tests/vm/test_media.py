"""Every way in to the rescue menu, on real firmware: CD, stick, ESP, UEFI HTTP boot; none of them touches a disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

from conftest import Begin, Tell

from lab import disks, fleet
from lab.demo import Wish
from lab.disks import DiskPlan
from lab.machine import Machine
from lab.qemu import Boot, Disk, Firmware, MachineSpec, Medium, Slot

MENU_S = 300.0


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_media_reach_the_menu_and_touch_nothing(begin: Begin, tell: Tell, tmp_path: Path) -> None:
    demo = begin(Wish(emergency=True, quick=True))  # the server has DHCP and TFTP on
    control, lab = demo.control, demo.lab
    iso, program = tmp_path / "recovery.iso", control.folder / "boot/recovery.efi"
    control.command("recovery", "iso", fleet.RECOVERY, "-o", iso)
    control.command("recovery", "uki", fleet.RECOVERY, "-o", program)
    plan = disks.plan(size_mib=256, root_mib=64, esp_mib=96)
    image = _disk(plan, tmp_path, program)
    machine = lab.machine("stranger", disks=[Disk(image, "stranger-0")])
    control.enrolment_token({"name": "stranger", "macs": [machine.mac], "address": f"{machine.address}/24"})
    before, told = _digest(image), []
    ways = {
        "CD, BIOS": MachineSpec(medium=Medium(iso, Slot.CD)),
        "stick, BIOS": MachineSpec(medium=Medium(iso, Slot.USB)),
        "CD, UEFI": MachineSpec(firmware=Firmware.UEFI, medium=Medium(iso, Slot.CD)),
        "stick, UEFI": MachineSpec(firmware=Firmware.UEFI, medium=Medium(iso, Slot.USB)),
        "unified image on the ESP": MachineSpec(firmware=Firmware.UEFI),
        "unified image by UEFI HTTP boot": MachineSpec(firmware=Firmware.UEFI, boot=Boot.HTTP),
    }
    for way, spec in ways.items():
        machine.start(spec)
        machine.wait_for_console("init: reroot recovery, ", MENU_S)
        first_s = machine.elapsed_s()
        machine.wait_for_console("there is no order for this machine; nothing was touched", MENU_S)
        machine.wait_for_console("choose ", MENU_S)
        told.append(f"{way}: first line after {first_s:.1f} s, menu after {machine.elapsed_s():.1f} s")
        tell(told[-1])
        if spec.firmware is Firmware.BIOS and spec.medium is not None and spec.medium.slot is Slot.CD:
            _look_at_the_disks(machine)
        machine.power_cut()
        assert _digest(image) == before, way
    log = (lab.logs / "control.log").read_text()
    assert f"/boot/http/{machine.mac.replace(':', '-')}/recovery.efi" in log


def _look_at_the_disks(machine: Machine) -> None:
    """Check and mount everything, and try to write to it."""
    machine.send_console("3\n")
    for name in ("vda3", "vda4"):  # root and /local; the first two are GRUB's and the ESP
        machine.wait_for_console(rf"/dev/{name} \(ext4, .*\): clean, mounted read-only at /mnt/{name}", MENU_S)
    machine.wait_for_console("choose ", MENU_S)
    machine.send_console("4\n")
    machine.wait_for_console("rescue# ", MENU_S)
    assert machine.console_command("cat /mnt/vda3/precious") == (0, "what must not be touched")
    status, said = machine.console_command("touch /mnt/vda3/new 2>&1")
    assert status != 0 and "Read-only" in said


def _disk(plan: DiskPlan, tmp_path: Path, program: Path) -> Path:
    """Make a disk with a root, a /local, and the unified image on its ESP."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "precious").write_text("what must not be touched")
    image = tmp_path / "stranger.img"
    disks.write(plan, image, Firmware.UEFI, root=tree)
    disks.esp_write(image, plan.partition("esp"), "EFI/BOOT/BOOTX64.EFI", program.read_bytes())
    return image
