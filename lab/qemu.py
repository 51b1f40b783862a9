"""What a machine is made of, and the QEMU command line that makes it. Pure.

TCG unless KVM is asked for by name: a /dev/kvm that exists may still hang a guest. The choices that decide
the speed under TCG (processor, board) are measured in docs/lab.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from plumbing.errors import UsageError

OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
IPXE_BIOS_ROM = Path("/usr/lib/ipxe/qemu/pxe-virtio.rom")
BEST_TCG_CPU = "qemu64,-svm"
"""Without SSSE3 to AVX2, which libraries choose when they are there and TCG emulates slowly: BLAKE3 and SHA-256
run two to four times as fast as on `max`, and Debian boots no slower (docs/lab.md)."""


class Firmware(StrEnum):
    """How the machine starts."""

    BIOS = "bios"
    UEFI = "uefi"


class Boot(StrEnum):
    """Which is tried first; the other comes next. HTTP is NET without PXE: UEFI's own HTTP boot."""

    DISK = "disk"
    NET = "net"
    HTTP = "http"


class Slot(StrEnum):
    """Where a medium is put in."""

    CD = "cd"
    USB = "usb"


@dataclass(frozen=True)
class Disk:
    """A raw disk image as a virtio disk; `serial` (at most 20 characters) is what the guest knows it by.

    `faults` is a file of blkdebug rules (QEMU's docs/devel/blkdebug.txt): which reads and writes fail.
    """

    path: Path
    serial: str
    faults: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.serial) <= 20 or "," in self.serial:
            raise UsageError(f"a virtio disk can't have the serial {self.serial!r}; use 1 to 20 characters, no comma")


@dataclass(frozen=True)
class Medium:
    """An image in a CD drive or on a stick, read-only; the machine starts from it first."""

    path: Path
    slot: Slot


@dataclass(frozen=True)
class DirectKernel:
    """A kernel that QEMU loads itself, without firmware and bootloader in between."""

    kernel: Path
    initrd: Path
    append: str


@dataclass(frozen=True)
class MachineSpec:
    """The hardware. `memory_mib` in MiB; `accel` is tcg or kvm."""

    firmware: Firmware = Firmware.BIOS
    boot: Boot = Boot.DISK
    memory_mib: int = 1024
    cpus: int = 1
    """With two, TCG now and then lets one run an int3 that the other patched away: the kernel panics."""
    accel: str = "tcg"
    cpu: str | None = None
    board: str = "q35"
    kernel: DirectKernel | None = None
    medium: Medium | None = None
    reboots: bool = True
    """False: the machine ends where it would reboot."""
    watchdog: bool = False
    """An Intel 6300ESB, which resets the machine when it is not fed."""


@dataclass(frozen=True)
class Wiring:
    """Where one machine is plugged in."""

    name: str
    tap: str
    mac: str
    qmp: Path
    firmware_vars: Path
    """The machine's own copy of the UEFI variables, as a real board has them."""
    uuid: str


def command_line(spec: MachineSpec, disks: tuple[Disk, ...], wiring: Wiring) -> list[str]:
    """Return QEMU's argv for this machine; its serial port is QEMU's standard input and output."""
    if spec.accel not in {"tcg", "kvm"}:
        raise UsageError(f"there is no accelerator {spec.accel!r}; the lab knows tcg and kvm")
    if len({disk.serial for disk in disks}) != len(disks):
        raise UsageError(f"two disks of {wiring.name} have one serial; give each its own")
    return [
        "qemu-system-x86_64", "-name", wiring.name, "-uuid", wiring.uuid, "-nodefaults", "-no-user-config",
        "-display", "none", "-vga", "std",
        "-machine", spec.board,
        "-accel", "tcg,thread=multi,tb-size=256" if spec.accel == "tcg" else "kvm",
        "-cpu", spec.cpu or (BEST_TCG_CPU if spec.accel == "tcg" else "host"),
        "-smp", str(spec.cpus), "-m", f"{spec.memory_mib}M",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-qmp", f"unix:{wiring.qmp},server=on,wait=off",
        "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
        *_firmware(spec, wiring), *_medium(spec.medium), *_disks(spec, disks), *_network(spec, disks, wiring),
        *_kernel(spec.kernel),
        *(["-device", "i6300esb", "-action", "watchdog=reset"] if spec.watchdog else []),
        *([] if spec.reboots else ["-no-reboot"]),
    ]


def _firmware(spec: MachineSpec, wiring: Wiring) -> list[str]:
    if spec.firmware is Firmware.BIOS:
        return []
    # PXE comes before HTTP boot in OVMF's list, and these switches are its own (OvmfPkg/RUNTIME_CONFIG.md)
    http = [word for version in (4, 6)
            for word in ("-fw_cfg", f"name=opt/org.tianocore/IPv{version}PXESupport,string=n")]
    return ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_quoted(OVMF_CODE)}",
            "-drive", f"if=pflash,format=raw,unit=1,file={_quoted(wiring.firmware_vars)}",
            *(http if spec.boot is Boot.HTTP else [])]


def _medium(medium: Medium | None) -> list[str]:
    if medium is None:
        return []
    kind = "cdrom" if medium.slot is Slot.CD else "disk"
    device = ["-device", "ide-cd,drive=medium,bootindex=0"] if medium.slot is Slot.CD else [
        "-device", "qemu-xhci", "-device", "usb-storage,drive=medium,bootindex=0"]
    return ["-drive", f"if=none,id=medium,media={kind},format=raw,readonly=on,file={_quoted(medium.path)}", *device]


def _disks(spec: MachineSpec, disks: tuple[Disk, ...]) -> list[str]:
    words = []
    first = 1 if spec.boot is not Boot.DISK or spec.medium is not None else 0
    for number, disk in enumerate(disks):
        # A raw image holds every write a guest completed even after kill -9 of QEMU, for the machine's page
        # cache has it: flushes may be skipped.
        words += ["-drive", f"if=none,id=disk{number},format=raw,cache=unsafe,discard=unmap,"
                            f"file={_image(disk)}",
                  "-device", f"virtio-blk-pci,drive=disk{number},serial={disk.serial},bootindex={first + number}"]
    return words


def _network(spec: MachineSpec, disks: tuple[Disk, ...], wiring: Wiring) -> list[str]:
    if spec.boot is not Boot.DISK:
        index = ",bootindex=0"
    elif spec.kernel is not None:
        index = ""
    else:
        index = f",bootindex={len(disks) + (spec.medium is not None)}"
    # OVMF has a driver and a network stack of its own; a BIOS needs iPXE in the card's ROM. That ROM is marked for the
    # virtio 1.0 card (1af4:1041), and SeaBIOS passes over a ROM whose mark is not its card's.
    rom = IPXE_BIOS_ROM if spec.firmware is Firmware.BIOS else ""
    return ["-netdev", f"tap,id=net0,ifname={wiring.tap},script=no,downscript=no",
            "-device", f"virtio-net-pci,disable-legacy=on,netdev=net0,mac={wiring.mac},romfile={rom}{index}"]


def _kernel(kernel: DirectKernel | None) -> list[str]:
    if kernel is None:
        return []
    return ["-kernel", str(kernel.kernel), "-initrd", str(kernel.initrd), "-append", kernel.append]


def _image(disk: Disk) -> str:
    return _quoted(disk.path) if disk.faults is None else f"blkdebug:{_quoted(disk.faults)}:{_quoted(disk.path)}"


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")
