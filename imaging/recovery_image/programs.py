"""The programs a recovery needs beside Python, found on the builder with their libraries. Reads files.

The list is short on purpose; whoever adds a program says why, and the ledger shows what it weighs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from imaging.recovery_image.closure import Library, closure, is_elf
from imaging.recovery_image.contents import Item, file, link
from imaging.recovery_image.elf_slim import slim
from plumbing.errors import NotFoundError
from plumbing.run import run


@dataclass(frozen=True)
class Program:
    """A program: its name, the Debian package that holds it, why it is carried, other names it goes by."""

    name: str
    package: str
    why: str
    links: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


PROGRAMS = (
    Program("busybox", "busybox", "modprobe, mount, ip, udhcpc, and the shell of the rescue menu"),
    Program("mkfs.ext4", "e2fsprogs", "makes the root filesystem anew", ("mke2fs",), ("/etc/mke2fs.conf",)),
    Program("e2fsck", "e2fsprogs", "checks /local before it is trusted", ("fsck.ext4",)),
    Program("mkfs.xfs", "xfsprogs", "makes a root of type xfs anew"),
    Program("mkfs.vfat", "dosfstools", "makes the EFI system partition on a bare disk"),
    Program("sfdisk", "fdisk", "writes the partition table of a bare disk"),
)
"""No blkid: recovery reads superblocks and /sys itself, and busybox has a small one for people."""

FOLDERS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")


def find(program: Program, root: Path = Path("/")) -> Path:
    """Return where the builder has a program; raises NotFoundError naming the package to install."""
    for folder in FOLDERS:
        path = root / folder / program.name
        if path.is_file() and os.access(path, os.X_OK) and is_elf(path):
            return path.resolve()
    raise NotFoundError(f"{program.name} is not on this machine, and recovery needs it ({program.why}); "
                        f"apt-get install {program.package}")


def gather(programs: Iterable[Program] = PROGRAMS) -> tuple[list[Item], dict[str, Library]]:
    """Return the programs as items below bin/, and the libraries they need by name."""
    items: list[Item] = []
    places: list[Path] = []
    for program in programs:
        path = find(program)
        places.append(path)
        part = f"program {program.name}"
        items.append(file(f"bin/{program.name}", slim(path), part=part, why=program.why, mode=0o755))
        items += [link(f"bin/{name}", program.name) for name in program.links]
        for name in program.files:
            if Path(name).is_file():
                items.append(file(name.lstrip("/"), Path(name).read_bytes(), part=part, why=f"{program.name} reads it"))
        if program.name == "busybox":
            items += applets(path, {item.path for item in items} | {f"bin/{other.name}" for other in programs}
                             | {f"bin/{name}" for other in programs for name in other.links})
    return items, closure(places)


def applets(busybox: Path, taken: Collection[str]) -> list[Item]:
    """Return a link bin/NAME -> busybox for every applet whose name no real program has."""
    names = run([busybox, "--list"]).text.split()
    return [link(f"bin/{name}", "busybox") for name in names if f"bin/{name}" not in taken and name != "busybox"]
