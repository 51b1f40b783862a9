"""What makes a Debian root one particular host of the lab, with things on it that are worth keeping.

I/O: works on a copy of a cached root (chroot for useradd and friends, so it needs root), ends in a disk image.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from lab import disks, roots
from lab.disks import DiskPlan
from lab.network import Subnet
from lab.qemu import Disk, Firmware
from lab.ssh import lab_key
from plumbing import run
from plumbing.errors import NotFoundError
from recovery.phases.settle import enable_agent

RUNTIME = Path("usr/lib/reroot")
_KERNEL_WORDS = "console=tty0 console=ttyS0,115200"


@dataclass(frozen=True)
class HostSpec:
    """One host and what is precious on it."""

    name: str
    subnet: int = 1
    number: int = 10
    firmware: Firmware = Firmware.BIOS
    root: roots.RootSpec = field(default_factory=lambda: roots.RootSpec("bookworm"))
    disk_mib: int = 4096
    root_mib: int = 2048
    root_fs: str = "ext4"
    group: str | None = None
    """The volume group that an installation makes."""
    local: bool = True
    user: str = "carol"
    password: str = "saturday-afternoon"  # noqa: S105 - of a machine that lives for minutes in a closed network
    crontab: str = "30 4 * * 6 /usr/bin/true # carol's Saturday job\n"
    local_file: tuple[str, bytes] = ("projects/thesis.tex", b"\\documentclass{article} % two years of work\n" * 4096)
    """Path below /local and content."""
    unlisted_file: tuple[str, bytes] = ("opt/measure/calibration.dat", b"nobody listed this file\n")
    """Path below / and content: what an administrator forgot to name in any policy."""
    dress: Callable[[Path], None] | None = None
    """What else is done to its root tree before it becomes a disk."""
    runtime: Path | None = None
    """runtime.tar.zst of a recovery image: with it the agent is installed and enabled, and has yet to be enrolled."""

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return Subnet(self.subnet).address(self.number)

    @property
    def mac(self) -> str:
        """Its network card's address: the one that Lab.machine gives host `number`."""
        return Subnet(self.subnet).mac(self.number)


@dataclass(frozen=True)
class BuiltHost:
    """A host's disk, ready to boot, and what to compare with later."""

    spec: HostSpec
    image: Path
    plan: DiskPlan
    machine_id: str
    host_keys: dict[str, str]
    """File name of each public ssh host key -> its line."""

    @property
    def disk(self) -> Disk:
        """The disk to put into the lab's machine; serial NAME-disk0."""
        return Disk(self.image, f"{self.spec.name}-disk0"[:20])


def build(spec: HostSpec, image: Path, cache: Path | None = None) -> BuiltHost:
    """Make the disk image of a host. Raises RefusedError without root, CommandError when a program fails."""
    base = roots.root_tree(spec.root, cache)
    plan = disks.plan(size_mib=spec.disk_mib, root_mib=spec.root_mib, local=spec.local, root_fs=spec.root_fs)
    with tempfile.TemporaryDirectory(prefix="reroot-host-", dir=image.parent) as folder:
        tree, local = Path(folder, "root"), Path(folder, "local")
        run.run(["cp", "--archive", "--reflink=auto", base, tree], timeout_s=600)
        local.mkdir(mode=0o755)
        machine_id = uuid.uuid4().hex
        _name(tree, spec, machine_id)
        _network(tree, spec)
        _filesystems(tree, spec, plan)
        _boot(tree, plan)
        keys = _ssh(tree)
        _people(tree, spec)
        _files(tree, local, spec)
        if spec.runtime is not None:
            install_agent(tree, spec.runtime)
        if spec.dress is not None:
            spec.dress(tree)
        disks.write(plan, image, spec.firmware, root=tree, local=local if spec.local else None)
    return BuiltHost(spec, image, plan, machine_id, keys)


def copy_image(image: Path, target: Path) -> Path:
    """Copy a disk image with its holes and return the copy."""
    run.run(["cp", "--sparse=always", "--reflink=auto", image, target], timeout_s=600)
    return target


def install_agent(tree: Path, runtime: Path) -> None:
    """Put the host runtime and the agent's unit into a root tree: a host's, or one that becomes a release."""
    with runtime.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
        tar = stream.read()
    run.run(["tar", "--extract", "--numeric-owner", "--no-same-owner", "--no-overwrite-dir", "--directory", tree],
            stdin=tar)
    if not (tree / RUNTIME / "bin/python3").exists():
        raise NotFoundError(f"{runtime} holds no bin/python3; build it with `reroot recovery build`")
    enable_agent(tree)


def _put(tree: Path, path: str, text: str | bytes, mode: int = 0o644) -> None:
    place = tree / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.write_bytes(text.encode() if isinstance(text, str) else text)
    place.chmod(mode)


def _name(tree: Path, spec: HostSpec, machine_id: str) -> None:
    _put(tree, "etc/hostname", f"{spec.name}\n")
    _put(tree, "etc/hosts", f"127.0.0.1 localhost\n{spec.address} {spec.name}\n::1 localhost ip6-localhost\n")
    _put(tree, "etc/machine-id", f"{machine_id}\n", 0o444)


def _network(tree: Path, spec: HostSpec) -> None:
    gateway = Subnet(spec.subnet).gateway
    _put(tree, "etc/systemd/network/10-lan.network",
         f"[Match]\nMACAddress={spec.mac}\n\n[Network]\nAddress={spec.address}/24\nGateway={gateway}\n"
         "LinkLocalAddressing=no\nIPv6AcceptRA=no\n")
    _put(tree, "etc/resolv.conf", f"nameserver {gateway}\n")
    run.run(["chroot", tree, "systemctl", "enable", "systemd-networkd.service"])


def _filesystems(tree: Path, spec: HostSpec, plan: DiskPlan) -> None:
    how = "ext4 errors=remount-ro 0 1" if spec.root_fs == "ext4" else f"{spec.root_fs} defaults 0 0"
    lines = [f"PARTUUID={plan.partition('root').partuuid} / {how}"]
    if spec.firmware is Firmware.UEFI:
        lines.append(f"PARTUUID={plan.partition('esp').partuuid} /boot/efi vfat umask=0077 0 1")
        (tree / "boot/efi").mkdir(mode=0o700, exist_ok=True)
    (tree / "local").mkdir(mode=0o755, exist_ok=True)
    if spec.local:
        lines.append(f"PARTUUID={plan.partition('local').partuuid} /local ext4 defaults 0 2")
    _put(tree, "etc/fstab", "\n".join(lines) + "\n")


def _boot(tree: Path, plan: DiskPlan) -> None:
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise NotFoundError("the root has no kernel in /boot; put linux-image-cloud-amd64 into its packages")
    root = plan.partition("root")
    entries = "".join(
        f"menuentry 'Debian GNU/Linux, with Linux {kernel}' {{\n"
        f"  search --no-floppy --fs-uuid --set=root {root.fs_uuid}\n"
        f"  linux /boot/vmlinuz-{kernel} root=PARTUUID={root.partuuid} ro {_KERNEL_WORDS}\n"
        f"  initrd /boot/initrd.img-{kernel}\n}}\n" for kernel in reversed(kernels))
    _put(tree, "boot/grub/grub.cfg", f"set default=0\nset timeout=0\nserial --unit=0 --speed=115200\n{entries}", 0o600)


def _ssh(tree: Path) -> dict[str, str]:
    for old in (tree / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    run.run(["ssh-keygen", "-A", "-f", tree])
    keys = {}
    for public in sorted((tree / "etc/ssh").glob("ssh_host_*.pub")):
        keys[public.name] = " ".join(public.read_text().split()[:2])
    authorized = lab_key().with_suffix(".pub").read_text()
    (tree / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    _put(tree, "root/.ssh/authorized_keys", authorized, 0o600)
    return keys


def _people(tree: Path, spec: HostSpec) -> None:
    run.run(["chroot", tree, "useradd", "--create-home", "--shell", "/bin/bash", spec.user])
    run.run(["chroot", tree, "chpasswd"], stdin=f"{spec.user}:{spec.password}\n".encode())
    home = Path("home", spec.user)
    (tree / home / ".ssh").mkdir(mode=0o700)
    _put(tree, f"{home}/.ssh/authorized_keys", lab_key().with_suffix(".pub").read_text(), 0o600)
    run.run(["chroot", tree, "chown", "--recursive", f"{spec.user}:{spec.user}", f"/{home}/.ssh"])
    run.run(["chroot", tree, "crontab", "-u", spec.user, "-"], stdin=spec.crontab.encode())


def _files(tree: Path, local: Path, spec: HostSpec) -> None:
    path, content = spec.unlisted_file
    _put(tree, path, content)
    path, content = spec.local_file
    _put(local if spec.local else tree / "local", path, content)

