"""Disks made of image files, with the sysfs folders that a kernel would show for them. Real sfdisk, no root."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from plumbing.run import run
from recovery.disks import Disk, inventory
from recovery.gpt import Gpt, read_gpt

ESP, BIOS, LINUX = (
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "21686148-6449-6E6F-744E-656564454649",
    "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
)


def guid(n: int) -> str:
    return f"0000000{n}-1111-4222-8333-444444444444"


def script(first: int = 0) -> str:
    """Partitions bios 1 MiB, esp 40 MiB, root 20 MiB with GUIDs numbered from `first`."""
    sizes = (("1MiB", BIOS), ("40MiB", ESP), ("20MiB", LINUX))
    lines = [f"size={size}, type={kind}, uuid={guid(first + n)}" for n, (size, kind) in enumerate(sizes)]
    return "label: gpt\n" + "\n".join(lines) + "\n"


def table(image: Path) -> Gpt | None:
    data = image.read_bytes()
    return read_gpt(lambda at, length: data[at:at + length], len(data))


class Bench:
    """A folder that stands for /sys and /dev of a machine."""

    def __init__(self, folder: Path) -> None:
        self.sysfs, self.dev = folder / "sys", folder / "dev"
        (self.sysfs / "block").mkdir(parents=True)
        self.dev.mkdir()

    def disk(self, name: str, serial: str | None, *, size_mib: int = 64, table: str | None = None) -> Path:
        """Add a virtio disk."""
        image = self.dev / name
        with image.open("wb") as stream:
            stream.truncate(size_mib << 20)
        if table is not None:
            run(["sfdisk", "-q", image], stdin=table.encode())
        folder = self.sysfs / "block" / name
        (folder / "device").mkdir(parents=True)
        (folder / "queue").mkdir()
        (folder / "queue/logical_block_size").write_text("512\n")
        (folder / "size").write_text(f"{size_mib << 11}\n")
        if serial is not None:
            (folder / "serial").write_text(f"{serial}\n")
        self.reread(name)
        return image

    def reread(self, name: str) -> None:
        """What the kernel does after a table was written: partitions in sysfs, nodes in /dev."""
        folder = self.sysfs / "block" / name
        for old in folder.glob(f"{name}*"):
            shutil.rmtree(old)
        found = table(self.dev / name)
        for entry in found.entries if found else ():
            part = folder / f"{name}{entry.number}"
            part.mkdir()
            (part / "partition").write_text(f"{entry.number}\n")
            (part / "start").write_text(f"{entry.first_sector}\n")
            node = self.dev / part.name
            if not node.exists() or node.stat().st_size != entry.sectors * 512:
                node.unlink(missing_ok=True)
                node.touch()
                os.truncate(node, entry.sectors * 512)

    def look(self) -> tuple[Disk, ...]:
        for folder in (self.sysfs / "block").glob("[!d]*"):
            self.reread(folder.name)
        return inventory(self.sysfs, self.dev)
