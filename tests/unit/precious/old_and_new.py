"""Small roots and disks for the tests of the precious room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loopdevice import attached

from imaging.index import Index
from imaging.scan import scan
from plumbing.run import run
from precious.policy import Policy, load
from recovery import disks


def write(root: Path, path: str | bytes, data: bytes = b"", mode: int = 0o644) -> Path:
    """Make a file and the folders that lead to it."""
    place = root / os.fsdecode(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    place.chmod(mode)
    return place


def index_of(tree: Path) -> Index:
    """What a release of `tree` would list."""
    return Index(tuple(scan(tree)), ())


def rules(*texts: str) -> Policy:
    """A policy of one layer with a rule for each text of TOML."""
    return load([("test", "\n".join(f"[[rule]]\n{text}" for text in texts))])


@dataclass(frozen=True)
class Disk:
    """A filesystem on a loop device, and the file that is its disk."""

    image: Path
    root: Path

    def spoil(self, content: bytes, at: int = 0) -> None:
        """Change a byte of the one run of bytes on the disk that begins with `content`; no cache hears of it."""
        os.sync()
        data = self.image.read_bytes()
        assert data.count(content) == 1
        with self.image.open("r+b") as stream:
            stream.seek(data.index(content) + at)
            byte = stream.read(1)
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([byte[0] ^ 0xFF]))


@contextmanager
def disk(folder: Path, size: int = 24 << 20) -> Iterator[Disk]:
    """Make an ext4 filesystem below `folder` and mount it for the length of a block."""
    folder.mkdir(parents=True)
    image, root = folder / "image", folder / "root"
    root.mkdir()
    with image.open("wb") as stream:
        stream.truncate(size)
    run(["mkfs.ext4", "-q", "-F", "-b", "4096", image])
    with attached(image) as device, disks.mounted(device, root, "ext4"):
        yield Disk(image, root)
