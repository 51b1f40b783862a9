"""The distribution's kernel: from an unpacked tree, or from its package. Reads files; runs apt-get and dpkg-deb."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from plumbing.durable import make_folder
from plumbing.errors import CommandError, NotFoundError
from plumbing.run import run

METAPACKAGE = "linux-image-cloud-amd64"
"""Debian's kernel for virtual machines: small, quick to start, virtio and ext4 included."""


@dataclass(frozen=True)
class Kernel:
    """One kernel: its release (uname -r), boot image, folder of modules, and where it came from."""

    release: str
    image: Path
    modules: Path
    origin: str

    def config(self) -> dict[str, str]:
        """Return CONFIG_NAME -> value (y, m, text) of the kernel's configuration, {} where it lies not beside it."""
        path = self.image.with_name(f"config-{self.release}")
        if not path.is_file():
            return {}
        pairs = (line.partition("=") for line in path.read_text("utf-8", "replace").splitlines())
        return {name: value for name, equals, value in pairs if equals and name.startswith("CONFIG_")}


def from_root(root: Path) -> Kernel:
    """Find the newest kernel of a tree that holds /boot/vmlinuz-* and /lib/modules.

    Raises NotFoundError when there is no pair of an image and its modules.
    """
    images = sorted((root / "boot").glob("vmlinuz-*"), key=_natural, reverse=True)
    for image in images:
        release = image.name.removeprefix("vmlinuz-")
        for place in ("usr/lib/modules", "lib/modules"):
            if (root / place / release).is_dir():
                return Kernel(release, image, root / place / release, str(root))
    raise NotFoundError(f"{root} has no /boot/vmlinuz-VERSION with /lib/modules/VERSION; name the root of a system "
                        "or of an unpacked kernel package")


def from_package(cache: Path, package: str = METAPACKAGE) -> Kernel:
    """Download and unpack the kernel that `package` stands for, unless `cache` holds that version already.

    Raises CommandError when apt cannot reach an archive, NotFoundError when it knows no such package.
    """
    name, version = resolve(package)
    unpacked = cache / f"{name}_{version.replace(':', '%3a')}"
    if not unpacked.is_dir():
        make_folder(cache)
        with tempfile.TemporaryDirectory(prefix=".kernel-", dir=cache) as scratch:
            run(["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{name}={version}"],
                cwd=Path(scratch), timeout_s=900)
            archive = next(Path(scratch).glob("*.deb"), None)
            if archive is None:
                raise CommandError(f"apt-get download {name} left no package; try it by hand")
            tree = Path(scratch) / "tree"
            run(["dpkg-deb", "-x", archive, tree], timeout_s=900)
            shutil.move(tree, unpacked)
    found = from_root(unpacked)
    return Kernel(found.release, found.image, found.modules, f"{name} {version}")


def resolve(package: str) -> tuple[str, str]:
    """Return the real kernel package and version behind a metapackage, as apt knows them now."""
    name = package
    for _ in range(4):  # linux-image-amd64 -> linux-image-6.1.0-N-amd64; never deeper than that
        shown = run(["apt-cache", "show", "--no-all-versions", name], check=False)
        fields = dict(line.split(": ", 1) for line in shown.text.partition("\n\n")[0].splitlines() if ": " in line)
        if shown.status != 0 or "Version" not in fields:
            raise NotFoundError(f"apt knows no package {name}; run apt-get update, or give --kernel-root DIR")
        below = re.search(r"\blinux-image-\d[\w.+-]*", fields.get("Depends", ""))
        if re.match(r"linux-image-\d", name) or below is None:
            return name, fields["Version"]
        name = below.group()
    raise NotFoundError(f"{package} leads from one metapackage to the next; name the kernel package itself")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort 6.1.0-9 before 6.1.0-56: digits as numbers."""
    return [(int(word), "") if word.isdigit() else (0, word) for word in re.split(r"(\d+)", path.name)]
