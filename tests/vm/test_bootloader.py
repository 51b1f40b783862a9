"""The boot area on machines with real firmware: what starts once starts once, what is set stays set.

The payload of every entry is a Debian kernel with a busybox initramfs that says which entry it is and switches
the machine off, so each boot of the machine is one line to look at.
"""

from __future__ import annotations

import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imaging.recovery_image import closure, contents, grub, initramfs
from lab import disks as lab_disks
from lab import roots
from lab.machine import Machine
from lab.qemu import Disk, Firmware, MachineSpec
from lab.session import Lab
from recovery import biosboot, bootloader, efivars, gpt, grubenv
from recovery.bootloader import BootSpec, RecoveryFiles, SystemBoot

pytestmark = pytest.mark.root
BOOT_S = 120.0
BUSYBOX = Path("/usr/bin/busybox")
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
echo "PAYLOAD <$($b cat /proc/cmdline)>"
[ -d /sys/firmware/efi ] && $b insmod /efivarfs.ko && $b mount -t efivarfs efivarfs /sys/firmware/efi/efivars
cd /sys/firmware/efi/efivars 2>/dev/null && for name in /write/*; do
  [ -f "$name" ] && $b cat "$name" > "${name##*/}" && echo "WROTE ${name##*/}"
done
for name in Boot*; do [ -f "$name" ] && echo "VAR $name $($b hexdump -v -e '1/1 "%02x"' "$name")"; done
echo PAYLOAD-END
$b poweroff -f
"""


@dataclass(frozen=True)
class Parts:
    """What the machines of this module are put together from."""

    vmlinuz: Path
    efivarfs: bytes
    core: bytes
    sector: bytes
    efi: Path


def payload(parts: Parts, path: Path, write: dict[str, bytes] | None = None) -> Path:
    """Make the initramfs; `write` are UEFI variables that it writes."""
    items = [contents.file("init", INIT.encode(), part="t", why="t", mode=0o755),
             contents.file("bin/busybox", BUSYBOX.read_bytes(), part="t", why="t", mode=0o755),
             contents.file("efivarfs.ko", parts.efivarfs, part="t", why="t"),
             *(contents.folder(name) for name in ("dev", "proc", "sys"))]
    for library in closure.closure([BUSYBOX]).values():
        where = ("lib64/" if library.name.startswith("ld-") else "lib/x86_64-linux-gnu/") + library.name
        items.append(contents.file(where, library.path.read_bytes(), part="t", why="t", mode=0o755))
    items += [contents.file(f"write/{name}", data, part="t", why="t") for name, data in (write or {}).items()]
    path.write_bytes(initramfs.archive(items))
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    found: dict[str, bytes] = {}
    with tarfile.open(roots.root_tar(roots.RootSpec("bookworm"))) as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]
            if member.isfile() and (name.startswith("vmlinuz-") or name == "efivarfs.ko"):
                stream = tar.extractfile(member)
                assert stream is not None
                found[name.split("-")[0]] = stream.read()
    (folder / "vmlinuz").write_bytes(found["vmlinuz"])
    (folder / "grubx64.efi").write_bytes(grub.core("x86_64-efi"))
    return Parts(folder / "vmlinuz", found["efivarfs.ko"], grub.core("i386-pc"), grub.boot_sector(),
                 folder / "grubx64.efi")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as opened:
        yield opened


class Host:
    """One machine, the disk it starts from, and that disk's ESP as a folder that is copied in before each boot."""

    def __init__(self, lab: Lab, name: str, firmware: Firmware, parts: Parts, folder: Path) -> None:
        self.parts, self.esp, self.image = parts, folder / "esp", folder / "disk.img"
        self.esp.mkdir()
        root = folder / "root"
        root.mkdir()
        (root / "vmlinuz").write_bytes(parts.vmlinuz.read_bytes())
        self.initrd = payload(parts, root / "initrd.img")
        (root / "etc/default").mkdir(parents=True)
        (root / "etc/default/grub").write_text('GRUB_CMDLINE_LINUX="console=ttyS0 payload=system"\n')
        self.plan = lab_disks.plan(size_mib=400, root_mib=120, esp_mib=128, local=False)
        lab_disks.write(self.plan, self.image, firmware, root=root)
        self.root_plan, self.esp_plan = self.plan.partition("root"), self.plan.partition("esp")
        assert self.root_plan.fs_uuid is not None
        system = bootloader.find_system(root, self.root_plan.partuuid, self.root_plan.fs_uuid)
        assert system == SystemBoot("/vmlinuz", "/initrd.img", ("console=ttyS0", "payload=system"))
        self.spec = BootSpec(
            title="alpha'; reboot; echo '$root", root=f"PARTUUID={self.root_plan.partuuid}",
            root_fs_uuid=self.root_plan.fs_uuid, local="PARTUUID=11111111-2222-3333-4444-555555555555",
            control="http://[fd00::1]:8080", system=system, timeout_s=0,
            recovery_arguments=("console=ttyS0", "payload=recovery"))
        self.machine: Machine = lab.machine(name, disks=[Disk(self.image, name)],
                                            spec=MachineSpec(firmware=firmware, memory_mib=512))

    def install(self, initrd: Path | None = None) -> None:
        files = RecoveryFiles(self.parts.vmlinuz, initrd or self.initrd, self.parts.efi)
        bootloader.install(self.esp, files, self.spec, when_unset="system")

    def put(self) -> None:
        """Copy the ESP's folder into the image."""
        for path in sorted(self.esp.rglob("*")):
            if path.is_file():
                lab_disks.esp_write(self.image, self.esp_plan, str(path.relative_to(self.esp)), path.read_bytes())

    def put_env(self) -> None:
        env = "reroot/grubenv"
        lab_disks.esp_write(self.image, self.esp_plan, env, (self.esp / env).read_bytes())

    def fetch_env(self) -> None:
        """Copy back the one file of the ESP that GRUB writes, as GRUB left it."""
        env = "reroot/grubenv"
        (self.esp / env).write_bytes(lab_disks.esp_read(self.image, self.esp_plan, env))

    def boot(self) -> tuple[str, str]:
        """Switch on, wait until the payload has switched off; return its command line and what it said."""
        self.machine.start()
        line = self.machine.wait_for_console(r"PAYLOAD <(.*)>", BOOT_S)[1]
        end = self.machine.wait_for_console("PAYLOAD-END", BOOT_S)
        said = end.string[end.string.rindex("PAYLOAD <"):end.end()]
        self.machine.wait_for_power_off(BOOT_S)
        self.fetch_env()
        return line, said

    def entry(self) -> str:
        """Boot and return which entry it was."""
        found = re.search(r"payload=(\w+)", self.boot()[0])
        assert found is not None
        return found[1]


@pytest.mark.parametrize("firmware", list(Firmware))
def test_once_is_once_and_saved_is_saved(lab: Lab, parts: Parts, firmware: Firmware, tmp_path: Path) -> None:
    host = Host(lab, f"once{firmware}", firmware, parts, tmp_path)
    host.install()
    host.put()
    if firmware is Firmware.BIOS:
        before = host.image.read_bytes()[0x1B8:512]
        assert biosboot.install(host.image, parts.sector, parts.core)
        assert not biosboot.install(host.image, parts.sector, parts.core)
        with host.image.open("rb") as stream:
            assert stream.read(512)[0x1B8:] == before
    bootloader.boot_once(host.esp, "recovery")
    host.put_env()

    line, _ = host.boot()
    assert "payload=recovery" in line
    assert "reroot.local=PARTUUID=11111111-2222-3333-4444-555555555555 reroot.control=http://[fd00::1]:8080" in line
    assert bootloader.state(host.esp) == bootloader.BootState("system", None)

    line, _ = host.boot()
    assert f"root=PARTUUID={host.root_plan.partuuid} ro console=ttyS0 payload=system" in line

    bootloader.set_default(host.esp, "recovery")
    host.put_env()
    assert [host.entry(), host.entry()] == ["recovery", "recovery"]

    if firmware is Firmware.UEFI:
        return  # what follows is GRUB's own doing, the same under both
    (host.esp / "reroot/grubenv").write_bytes(b"\0" * 1024)  # as a power cut could leave it
    host.put_env()
    assert host.entry() == "recovery"

    bootloader.set_default(host.esp, "system")
    host.put_env()
    assert host.entry() == "system"


def test_a_system_that_cannot_be_loaded_falls_back_to_recovery(lab: Lab, parts: Parts, tmp_path: Path) -> None:
    host = Host(lab, "fallback", Firmware.BIOS, parts, tmp_path)
    host.spec = replace(host.spec, system=SystemBoot("/no-such-kernel", None))
    host.install()
    host.put()
    biosboot.install(host.image, parts.sector, parts.core)
    assert host.entry() == "recovery"


def test_a_root_s_own_menu_cannot_touch_ours(lab: Lab, parts: Parts, tmp_path: Path) -> None:
    host = Host(lab, "ownmenu", Firmware.BIOS, parts, tmp_path)
    root = tmp_path / "root"
    (root / "vmlinuz").rename(root / "kernel")
    (root / "boot/grub").mkdir(parents=True)
    (root / "boot/grub/grub.cfg").write_text(f"""\
if [ -s $prefix/grubenv ]; then load_env; fi
insmod no_such_module
set default="${{saved_entry}}"
menuentry one {{ true; }}
menuentry two --id two {{
  set saved_entry=one
  save_env saved_entry
  search --fs-uuid --set=root {host.root_plan.fs_uuid}
  linux /kernel console=ttyS0 payload=own
  initrd /initrd.img
}}
set timeout=0
""")
    grubenv.write(root / "boot/grub/grubenv", {"saved_entry": "two"})
    lab_disks.make_ext4(host.image, host.root_plan, root)
    assert host.root_plan.fs_uuid is not None
    system = bootloader.find_system(root, host.root_plan.partuuid, host.root_plan.fs_uuid)
    assert system.config == "/boot/grub/grub.cfg"
    host.spec = replace(host.spec, system=system)
    host.install()
    host.put()
    biosboot.install(host.image, parts.sector, parts.core)
    assert host.entry() == "own"
    assert bootloader.state(host.esp) == bootloader.BootState("system", None)


def test_the_firmware_starts_ours_though_its_order_named_another(lab: Lab, parts: Parts, tmp_path: Path) -> None:
    host = Host(lab, "efivars", Firmware.UEFI, parts, tmp_path)
    grub_cfg = "linux /vmlinuz console=ttyS0 payload=foreign\ninitrd /initrd.img\nboot\n"
    root = tmp_path / "root"
    (root / "boot/grub").mkdir(parents=True)
    (root / "boot/grub/grub.cfg").write_text(grub_cfg)
    lab_disks.make_ext4(host.image, host.root_plan, root)
    foreign = lab_disks.esp_read(host.image, host.esp_plan, "EFI/BOOT/BOOTX64.EFI")
    (host.esp / "EFI/BOOT").mkdir(parents=True)
    (host.esp / "EFI/BOOT/BOOTX64.EFI").write_bytes(foreign)
    host.install()
    assert (host.esp / "EFI/BOOT/BOOTX64.EFI.before-reroot").read_bytes() == foreign
    (host.esp / "EFI/BOOT/BOOTX64.EFI").write_bytes(foreign)  # this firmware shall find another's loader there
    host.put()

    line, said = host.boot()
    assert "payload=foreign" in line
    variables = tmp_path / "efivars"
    variables.mkdir()
    for name, data in re.findall(r"^VAR (\S+) ([0-9a-f]+)$", said, re.MULTILINE):
        (variables / name).write_bytes(bytes.fromhex(data))
    before = {path.name: path.read_bytes() for path in variables.iterdir()}
    assert efivars.read_order(variables)
    with host.image.open("rb") as stream:
        def read(at: int, length: int) -> bytes:
            stream.seek(at)
            return stream.read(length)

        table = gpt.read_gpt(read, host.plan.size)
    assert table is not None
    number = efivars.make_first(next(e for e in table.entries if e.type_guid == gpt.ESP_TYPE), variables)
    after = {path.name: path.read_bytes() for path in variables.iterdir()}
    changed = {name: data for name, data in after.items() if before.get(name) != data}
    assert set(changed) == {f"Boot{number:04X}-{efivars.GLOBAL}", f"BootOrder-{efivars.GLOBAL}"}

    payload(parts, root / "initrd.img", changed)
    lab_disks.make_ext4(host.image, host.root_plan, root)
    line, said = host.boot()
    assert "payload=foreign" in line
    assert said.count("WROTE") == len(changed)

    line, said = host.boot()
    assert "payload=system" in line
    order = re.search(r"^VAR BootOrder\S+ 07000000([0-9a-f]{4})", said, re.MULTILINE)
    assert order is not None
    assert struct.unpack("<H", bytes.fromhex(order[1]))[0] == number
