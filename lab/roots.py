"""Real Debian roots for lab hosts and releases, made by mmdebstrap and cached by what they were made from.

I/O: starts mmdebstrap (which uses the archive that apt on this machine uses), writes the cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from plumbing import run
from plumbing.errors import CommandError, RefusedError

HOST_PACKAGES = (
    "systemd-sysv", "udev", "dbus", "iproute2", "openssh-server", "cron", "login", "passwd", "e2fsprogs",
    "linux-image-cloud-amd64",
)
"""What a host of the lab is made of; systemd-networkd is part of Debian's systemd package."""

LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
"""Paths dpkg leaves out: nothing a test looks at, a third of the files of a minimal root."""

INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "ext4", "xfs", "crc32c_generic")
"""What a lab machine needs to find its root; under TCG a whole Debian initramfs costs seconds to unpack."""

_ANONYMOUS = ('rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/resolv.conf" "$1/etc/hostname"; '
              ': > "$1/etc/machine-id"')
"""A root belongs to no host: what the packages' scripts and mmdebstrap took from the builder goes again."""
_SAME_FOR_DBUS = '; ln -sf /etc/machine-id "$1/var/lib/dbus/machine-id"'

PAIR_PACKAGES = ("systemd-sysv", "udev", "iproute2", "linux-image-cloud-amd64", "python3-minimal", "openssh-server")
"""What the roots are made of that an upgrade is measured with."""

_RELEASED_ONLY = 'for list in "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*; do ' \
                 '[ ! -f "$list" ] || sed -i -e "/-updates/d" -e "/-security/d" "$list"; done'
"""Runs before anything is downloaded: leaves mmdebstrap's list of archives with the suite itself."""

_INITRAMFS_CONF = "MODULES=list\nCOMPRESS=zstd\nBUSYBOX=no\nFSTYPE=ext4\n"
_RECIPE = 3
"""Part of every cache key: raise it when this module makes other roots from the same values."""


@dataclass(frozen=True)
class RootSpec:
    """Everything that decides what a root is made of.

    `updated`: with the suite's updates and security fixes of the day, or as it was at its last point release. No
    `initramfs_modules`: the initramfs is the one Debian makes by itself.
    """

    suite: str
    packages: tuple[str, ...] = HOST_PACKAGES
    left_out: tuple[str, ...] = LEFT_OUT
    arch: str = "amd64"
    initramfs_modules: tuple[str, ...] = INITRAMFS_MODULES
    updated: bool = True

    @property
    def key(self) -> str:
        """Name in the cache: the suite and a digest of every input."""
        values = asdict(self)
        if values.pop("updated") is False:
            values["hook"] = _RELEASED_ONLY
        inputs = json.dumps([_RECIPE, _anonymous(self), _INITRAMFS_CONF, values], sort_keys=True)
        return f"{self.suite}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"


OLD_ROOT = RootSpec("bookworm", PAIR_PACKAGES, left_out=(), initramfs_modules=(), updated=False)
NEW_ROOT = RootSpec("bookworm", PAIR_PACKAGES, left_out=(), initramfs_modules=())
"""The pair that upgrades are measured with: a point release of Debian 12, and the same with all updates since."""


def cache_base() -> Path:
    """Return $XDG_CACHE_HOME/reroot, or ~/.cache/reroot."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reroot"


def cache_folder() -> Path:
    """Return the folder for roots below `cache_base`, made when it is not there."""
    folder = cache_base() / "roots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def root_tar(spec: RootSpec, cache: Path | None = None) -> Path:
    """Return the root as a tar file, bootstrapped now or taken from the cache.

    Raises CommandError when mmdebstrap fails; the sentence names its log.
    """
    cache = cache or cache_folder()
    tar = cache / f"{spec.key}.tar"
    with _locked(cache / f"{spec.key}.lock"):
        if not tar.exists():
            _bootstrap(spec, tar)
    return tar


def root_tree(spec: RootSpec, cache: Path | None = None) -> Path:
    """Return the root as an unpacked folder; copy it before changing it. Needs root, for the owners of files."""
    if os.geteuid() != 0:
        raise RefusedError(f"unpacking the {spec.suite} root needs root, for its files have owners; use sudo")
    cache = cache or cache_folder()
    tree = cache / spec.key
    tar = root_tar(spec, cache)
    with _locked(cache / f"{spec.key}.lock"):
        if not tree.is_dir():
            fresh = Path(tempfile.mkdtemp(prefix=f".{spec.key}.", dir=cache))
            try:
                unpack(tar, fresh)
                fresh.chmod(0o755)
                fresh.rename(tree)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
    return tree


def unpack(tar: Path, target: Path) -> None:
    """Unpack a root tar with all its metadata into the folder `target`."""
    run.run(["tar", "--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls",
             "--preserve-permissions", "--file", tar, "--directory", target], timeout_s=600)


def _bootstrap(spec: RootSpec, tar: Path) -> None:
    log = tar.with_suffix(".log")
    scratch = Path(tempfile.mkdtemp(prefix=f".{spec.key}.", dir=tar.parent))
    try:
        part = scratch / "root.tar"
        argv = ["mmdebstrap", "--variant=minbase", f"--architectures={spec.arch}",
                f"--include={','.join(spec.packages)}", f"--logfile={log}",
                *(f"--dpkgopt=path-exclude={path}" for path in spec.left_out),
                *(() if spec.updated else (f"--setup-hook={_RELEASED_ONLY}",)),
                *(_initramfs_hooks(spec, scratch) if spec.initramfs_modules else ()),
                f"--customize-hook={_anonymous(spec)}", spec.suite, os.fspath(part)]
        done = run.run(argv, timeout_s=1800, check=False, env=_environment())
        if done.status != 0:
            raise CommandError(f"mmdebstrap could not make a {spec.suite} root: {_complaint(log, done)}; its log "
                               f"is {log}; check the network and apt's sources, then try: {run.replayable(argv)}")
        part.rename(tar)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _anonymous(spec: RootSpec) -> str:
    return _ANONYMOUS + (_SAME_FOR_DBUS if "dbus" in spec.packages else "")


def _initramfs_hooks(spec: RootSpec, scratch: Path) -> list[str]:
    # Put in place before the kernel is configured, so its initramfs is made once and small.
    conf, modules = scratch / "reroot-lab.conf", scratch / "reroot-lab.modules"
    conf.write_text(_INITRAMFS_CONF)
    modules.write_text("\n".join(spec.initramfs_modules) + "\n")
    return [
        "--essential-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\" \"$1/usr/share/initramfs-tools/modules.d\"",
        f"--essential-hook=upload {conf} /etc/initramfs-tools/conf.d/reroot-lab",
        f"--essential-hook=upload {modules} /usr/share/initramfs-tools/modules.d/reroot-lab",
    ]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items()
            if name in {"PATH", "HOME", "TMPDIR", "APT_CONFIG"} or name.lower().endswith("_proxy")}
    return {**kept, "LC_ALL": "C.UTF-8"}


def _complaint(log: Path, done: run.Completed) -> str:
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    if log.exists():
        lines = [*log.read_text(errors="replace").splitlines(), *lines]
    told = [line.strip() for line in lines if line.startswith(("E:", "W: Failed", "Err:"))]
    return told[-1] if told else (lines[-1].strip() if lines else f"status {done.status}, no message")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
