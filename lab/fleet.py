"""Hosts of the lab with reroot on them (I/O): built, booted, enrolled as an administrator would, and looked at.

`Facts` are read from inside the machine, over ssh: what a before/after table compares.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab import disks, host, roots
from lab.control import ControlServer
from lab.host import BuiltHost, HostSpec
from lab.machine import Machine
from lab.qemu import Boot, Disk, Firmware, MachineSpec
from lab.session import Lab
from lab.ssh import lab_key
from plumbing import run

MEMORY_MIB = 1024
RELEASE, RECOVERY = "debian/13", "debian/1"
NAMES = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot")
DHCP_NETWORK = "[Match]\nName=en* eth*\n\n[Network]\nDHCP=ipv4\n"
LOGIN_S = 300.0

_HOST_KEYS = ("ecdsa", "ed25519", "rsa")
_QUESTIONS: Mapping[str, str] = {
    "system": ". /etc/os-release; echo $PRETTY_NAME",
    "kernel": "uname -r",
    "host name": "hostname",
    "machine-id": "cat /etc/machine-id",
    **{f"{kind} key": f"ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub | cut -d' ' -f2" for kind in _HOST_KEYS},
    "password hash": "getent shadow {user} | cut -d: -f2 | sha256sum | cut -c1-16",
    "crontab": "crontab -l -u {user} | sha256sum | cut -c1-16",
    "/local file": "sha256sum /local/{local_file} | cut -c1-16",
    "unlisted file": "if [ -e /{unlisted} ]; then echo there; "
                     "elif grep -qs '{unlisted}' /local/recover/precious/*/putback.json; then echo archived, reported; "
                     "else echo LOST; fi",
}


@dataclass(frozen=True)
class Facts:
    """Answers read inside a machine by question."""

    answers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, machine: Machine, spec: HostSpec) -> Facts:
        """Ask a running machine everything."""
        words = {"user": spec.user, "local_file": spec.local_file[0], "unlisted": spec.unlisted_file[0]}
        found = {name: machine.succeed(command.format(**words)).strip() for name, command in _QUESTIONS.items()}
        found["user logs in"] = machine.succeed("id -un", user=spec.user).strip()
        return cls(found)


KEPT = ("host name", "machine-id", *(f"{kind} key" for kind in _HOST_KEYS), "password hash", "crontab", "/local file",
        "user logs in")
"""The questions whose answers an upgrade must not change."""


RELEASE_ROOT = roots.RootSpec("trixie", (*roots.HOST_PACKAGES, "lvm2"),
                              initramfs_modules=(*roots.INITRAMFS_MODULES, "dm_mod"))
"""What the release is made of: a host's root, which may lie on a logical volume."""


def release_tree(lab: Lab) -> Path:
    """Return the release's root with what this site puts into its image: DHCP by default and the operator's key."""
    tree = lab.scratch / "site-root"
    if tree.exists():
        return tree
    run.run(["cp", "--archive", "--reflink=auto", roots.root_tree(RELEASE_ROOT), tree], timeout_s=600)
    (tree / "etc/systemd/network/80-dhcp.network").write_text(DHCP_NETWORK)
    run.run(["chroot", tree, "systemctl", "enable", "systemd-networkd.service"])
    keys = tree / "root/.ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(lab_key().with_suffix(".pub"), keys / "authorized_keys")
    (keys / "authorized_keys").chmod(0o600)
    return tree


class LabHost:
    """One machine, what it was built from, and its way into the site."""

    def __init__(self, lab: Lab, control: ControlServer, spec: HostSpec, *, accel: str = "tcg") -> None:
        self.lab, self.control, self.spec, self.accel = lab, control, spec, accel
        self.built: BuiltHost | None = None
        self.disk: Disk | None = None
        self.machine: Machine | None = None

    @property
    def on(self) -> Machine:
        """The machine, once it was added."""
        assert self.machine is not None
        return self.machine

    def build(self) -> None:
        """Make its disk: a living host with the agent installed and not yet enrolled."""
        self.built = host.build(self.spec, self.lab.scratch / f"{self.spec.name}.img")
        self._add(self.built.disk, Boot.DISK)

    def blank(self) -> None:
        """Give it an empty disk, so that it boots from the network.

        BIOS machines try the network first, as FAI and Cobbler sites set them. UEFI ones try the disk first: OVMF goes
        through three more network options, minutes each, before it comes back to the disk.
        """
        image = disks.blank(self.lab.scratch / f"{self.spec.name}.img", size_mib=self.spec.disk_mib)
        self._add(Disk(image, f"{self.spec.name}-disk0"), self._first())

    def broken(self) -> None:
        """Give it the disk of a living host whose beginnings are noise: partition table, ESP and root filesystem."""
        built = host.build(self.spec, self.lab.scratch / f"{self.spec.name}.img")
        with built.image.open("r+b") as disk:
            for offset in (0, built.plan.partition("esp").offset, built.plan.partition("root").offset):
                disk.seek(offset)
                disk.write(os.urandom(1 << 20))
        self._add(built.disk, self._first())

    def _first(self) -> Boot:
        return Boot.NET if self.spec.firmware is Firmware.BIOS else Boot.DISK

    def _add(self, disk: Disk, boot: Boot) -> None:
        self.disk = disk
        spec = MachineSpec(firmware=self.spec.firmware, boot=boot, memory_mib=MEMORY_MIB, accel=self.accel)
        self.machine = self.lab.machine(self.spec.name, disks=[disk], subnet=self.spec.subnet, host=self.spec.number,
                                        spec=spec)

    def entry(self) -> dict[str, object]:
        """Return its table for hosts.toml."""
        assert self.disk is not None
        return {"name": self.spec.name, "macs": [self.spec.mac], "address": f"{self.spec.address}/24",
                "firmware": self.spec.firmware.value, "class": ["lab"],
                "layout": {"disk": self.disk.serial, "partitions": self._partitions(),
                           **({"group": self.spec.group} if self.spec.group else {})}}

    def _partitions(self) -> list[dict[str, str]]:
        bios = [{"name": "bios", "size": "1MiB"}] if self.spec.firmware is Firmware.BIOS else []
        return [*bios, {"name": "esp", "size": "128MiB", "fs": "vfat"},
                {"name": "root", "size": f"{self.spec.root_mib}MiB", "fs": self.spec.root_fs},
                {"name": "local", "size": "rest", "fs": "ext4"}]

    def enrol(self) -> None:
        """Enrol the living host with a one-time token, on the host, as an administrator does."""
        token = self.control.enrolment_token(self.entry())
        self.on.write_file("/run/root.json", (self.control.folder / "catalogue/metadata/1.root.json").read_bytes())
        self.on.succeed(
            f"{AGENT} enrol --host {self.spec.name} --control {self.control.url} --root /run/root.json --token-file -",
            stdin=token.encode())
        self.on.succeed("systemctl restart reroot-agent.service")


AGENT = ("/usr/lib/reroot/lib/ld-linux-x86-64.so.2 --library-path /usr/lib/reroot/lib /usr/lib/reroot/bin/python3 "
         "-I -m fleet.agent")


def spec(number: int, *, firmware: Firmware, subnets: int, runtime: Path | None, root_fs: str = "ext4",
         group: str | None = None) -> HostSpec:
    """Return the `number`-th host of a lab (from 0), spread over the subnets."""
    return HostSpec(NAMES[number], subnet=1 + number % subnets, number=11 + number // subnets, firmware=firmware,
                    runtime=runtime, root_fs=root_fs, group=group,
                    unlisted_file=("etc/calibration.dat", b"nobody listed this file\n"))
