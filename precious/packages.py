"""What the package database of a root says of its files (I/O, read-only): dpkg's. An rpm database is not read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_INFO, _STATUS = "var/lib/dpkg/info", "var/lib/dpkg/status"


@dataclass(frozen=True)
class Packages:
    """Paths that packages have, and what packages brought at some of them; all relative to the root."""

    root: Path
    owned: frozenset[bytes]
    conffiles: Mapping[bytes, bytes]

    @property
    def known(self) -> bool:
        """Whether there is a database at all: without one nothing can be said of any path."""
        return bool(self.owned)

    def owns(self, path: bytes) -> bool:
        """Tell whether a package has `path`, also by the name it had before / and /usr were merged."""
        return path in self.owned or path in self.conffiles or path.removeprefix(b"usr/") in self.owned

    @cached_property
    def _sums(self) -> Mapping[bytes, bytes]:
        """Path -> MD5 (hexadecimal) of what packages brought, configuration files apart."""
        found: dict[bytes, bytes] = {}
        for listing in (self.root / _INFO).glob("*.md5sums"):
            for line in listing.read_bytes().splitlines():
                digest, _, path = line.partition(b"  ")
                found[path] = digest
        return found

    def as_shipped(self, path: bytes) -> bool | None:
        """Tell whether the file at `path` has the content that its package brought; None when that is not known."""
        digest = self.conffiles.get(path) or self._sums.get(path) or self._sums.get(path.removeprefix(b"usr/"))
        if digest is None:
            return None
        return _md5(self.root, path) == digest


def read(root: Path) -> Packages:
    """Read what dpkg knows below `root`; nothing is known where there is no dpkg."""
    owned: set[bytes] = set()
    for listing in (root / _INFO).glob("*.list"):
        owned.update(line.lstrip(b"/") for line in listing.read_bytes().splitlines())
    return Packages(root, frozenset(owned), _conffiles(root))


def _conffiles(root: Path) -> dict[bytes, bytes]:
    """Return configuration file -> MD5 (hexadecimal) as the package shipped it, from dpkg's status."""
    status = root / _STATUS
    sums: dict[bytes, bytes] = {}
    if not status.is_file():
        return sums
    listed = False
    for line in status.read_bytes().splitlines():
        if line.startswith(b"Conffiles:"):
            listed = True
        elif listed and line.startswith(b" /"):
            path, _, rest = line[2:].partition(b" ")
            sums[path] = rest.split(b" ")[0]
        else:
            listed = False
    return sums


def _md5(root: Path, path: bytes) -> bytes | None:
    try:
        # neither led elsewhere by a link nor held up by a FIFO in a file's place
        handle = os.open(os.path.join(os.fsencode(root), path), _PLAIN)
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest().encode()
    except OSError:
        return None
