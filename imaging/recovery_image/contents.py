"""One thing to be put into an image, and renderings of a list of them. Writing a folder is I/O, the rest pure."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plumbing.errors import CorruptError


@dataclass(frozen=True)
class Item:
    """One file, folder, link or device node of an image, owned by root.

    `path` has no leading slash; `mode` includes the file type bits. `part` and `why` are for the ledger:
    what it is counted under, and the reason it is carried.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)
    part: str = ""
    why: str = ""

    @property
    def is_link(self) -> bool:
        """Whether `data` is the target of a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether `data` is the content of a regular file."""
        return stat.S_ISREG(self.mode)


def file(path: str, data: bytes, *, part: str, why: str, mode: int = 0o644) -> Item:
    """Return a regular file."""
    return Item(path, stat.S_IFREG | mode, data, part=part, why=why)


def folder(path: str, mode: int = 0o755) -> Item:
    """Return a folder; folders weigh nothing and need no reason."""
    return Item(path, stat.S_IFDIR | mode)


def link(path: str, target: str) -> Item:
    """Return a symbolic link."""
    return Item(path, stat.S_IFLNK | 0o777, target.encode())


def device(path: str, major: int, minor: int, mode: int = 0o600) -> Item:
    """Return a character device node."""
    return Item(path, stat.S_IFCHR | mode, device=(major, minor))


def in_order(items: Iterable[Item]) -> list[Item]:
    """Sort items by path with every missing parent folder added, each before what it holds.

    Raises CorruptError when two different items claim one path, or a path leaves the image.
    """
    known: dict[str, Item] = {}
    for item in items:
        words = item.path.split("/")
        if not item.path or "" in words or ".." in words or "." in words:
            raise CorruptError(f"{item.path!r} is not a path inside an image; report this as a defect")
        before = known.setdefault(item.path, item)
        if (before.mode, before.data, before.device) != (item.mode, item.data, item.device):
            raise CorruptError(f"two different things want to be /{item.path} in the image: {before.why or 'a folder'}"
                               f", and {item.why or 'a folder'}; remove one")
    for path in list(known):
        parent = path.rpartition("/")[0]
        while parent:
            known.setdefault(parent, folder(parent))
            parent = parent.rpartition("/")[0]
    return [known[path] for path in sorted(known, key=lambda path: path.split("/"))]


def as_tar(items: Iterable[Item]) -> bytes:
    """Return a tar of the items: same items, same bytes (owner 0, time 0, sorted)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for item in in_order(items):
            info = tarfile.TarInfo(item.path)
            info.mode = stat.S_IMODE(item.mode)
            if item.is_link:
                info.type, info.linkname = tarfile.SYMTYPE, item.data.decode()
                archive.addfile(info)
            elif item.is_file:
                info.size = len(item.data)
                archive.addfile(info, io.BytesIO(item.data))
            elif stat.S_ISDIR(item.mode):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                raise CorruptError(f"{item.path} is a device; a tar of the host runtime carries none")
    return stream.getvalue()


def write_folder(items: Iterable[Item], target: Path) -> None:
    """Lay the files, folders and links out under `target`; a scratch copy, so nothing is synced."""
    for item in in_order(items):
        place = target / item.path
        if item.is_link:
            place.symlink_to(item.data.decode())
        elif item.is_file:
            place.write_bytes(item.data)
            place.chmod(stat.S_IMODE(item.mode))
        elif stat.S_ISDIR(item.mode):
            place.mkdir(exist_ok=True, parents=True)
