"""The command line: boot order, serials, firmware, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.network import Subnet
from lab.qemu import Boot, DirectKernel, Disk, Firmware, MachineSpec, Wiring, command_line
from lab.roots import RootSpec
from plumbing.errors import UsageError

WIRING = Wiring("alpha", "tap0", "52:54:00:77:01:0a", Path("/run/q"), Path("/run/vars,1.fd"), "0-0")
DISK = Disk(Path("/d,1.img"), "alpha-disk0")


def line(spec: MachineSpec, *disks: Disk) -> str:
    return " ".join(command_line(spec, disks, WIRING))


def test_disk_before_net_and_net_before_disk() -> None:
    first = line(MachineSpec(), DISK)
    assert "virtio-blk-pci,drive=disk0,serial=alpha-disk0,bootindex=0" in first
    assert "romfile=/usr/lib/ipxe/qemu/pxe-virtio.rom,bootindex=1" in first
    second = line(MachineSpec(boot=Boot.NET), DISK)
    assert "serial=alpha-disk0,bootindex=1" in second
    assert "pxe-virtio.rom,bootindex=0" in second


def test_tcg_unless_kvm_is_asked_for() -> None:
    assert "-accel tcg,thread=multi" in line(MachineSpec())
    assert "kvm" not in line(MachineSpec())
    assert "-accel kvm -cpu host" in line(MachineSpec(accel="kvm"))
    with pytest.raises(UsageError, match="no accelerator 'xen'"):
        line(MachineSpec(accel="xen"))


def test_uefi_has_its_own_variables_and_commas_are_doubled() -> None:
    words = line(MachineSpec(firmware=Firmware.UEFI), DISK)
    assert "unit=1,file=/run/vars,,1.fd" in words
    assert "file=/d,,1.img" in words
    assert "romfile=," in words
    assert "pflash" not in line(MachineSpec(), DISK)


def test_a_kernel_of_its_own() -> None:
    words = line(MachineSpec(kernel=DirectKernel(Path("/k"), Path("/i"), "console=ttyS0"), reboots=False))
    assert "-kernel /k -initrd /i -append console=ttyS0" in words
    assert words.endswith("-no-reboot")


def test_a_disk_that_fails_and_a_watchdog() -> None:
    words = line(MachineSpec(watchdog=True), Disk(Path("/d,1.img"), "alpha-disk0", Path("/rules,1")))
    assert "file=blkdebug:/rules,,1:/d,,1.img" in words
    assert "-device i6300esb -action watchdog=reset" in words
    assert "i6300esb" not in line(MachineSpec(), DISK)


def test_serials_are_checked() -> None:
    for bad in ("", "x" * 21, "a,b"):
        with pytest.raises(UsageError, match="serial"):
            Disk(Path("/d"), bad)
    with pytest.raises(UsageError, match="one serial"):
        line(MachineSpec(), DISK, DISK)


def test_addresses() -> None:
    assert (Subnet(2).gateway, Subnet(2).address(10), Subnet(2).mac(10)) == (
        "10.77.2.1", "10.77.2.10", "52:54:00:77:02:0a")
    for number in (0, 255):
        with pytest.raises(UsageError):
            Subnet(number)
    with pytest.raises(UsageError):
        Subnet(1).address(1)


def test_a_roots_key_depends_on_every_input() -> None:
    keys = {RootSpec("bookworm").key, RootSpec("trixie").key, RootSpec("bookworm", packages=("udev",)).key,
            RootSpec("bookworm", left_out=()).key, RootSpec("bookworm", initramfs_modules=()).key,
            RootSpec("bookworm", arch="arm64").key}
    assert len(keys) == 6
    assert RootSpec("bookworm").key == RootSpec("bookworm").key
