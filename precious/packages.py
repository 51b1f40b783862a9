"""What the package database of a root says of its files (I/O, read-only): dpkg's. `precious.rpm` asks rpm."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
SUMS_KEPT = 256
"""Of how many packages the digests are remembered: those of a whole system would take as much memory as its paths."""
ALGORITHMS = {32: "md5", 64: "sha256"}
"""By the length of a digest in hexadecimal."""
_INFO, _STATUS = "var/lib/dpkg/info", "var/lib/dpkg/status"


@dataclass(frozen=True)
class Packages:
    """Paths that packages have, and what packages brought at some of them; all relative to the root."""

    root: Path
    owned: Mapping[bytes, str]
    """Path -> the package that has it, by its name in the database, such as libc6:amd64."""
    conffiles: Mapping[bytes, bytes]
    digests: Mapping[bytes, bytes] = field(default_factory=dict)
    """Path -> digest (hexadecimal; MD5 or SHA-256 by its length) of what a package brought, where dpkg does not say."""
    unpacked: Mapping[str, int] = field(default_factory=dict)
    """Package -> when it was unpacked, in ns since 1970, where dpkg's lists do not say it."""

    @property
    def known(self) -> bool:
        """Whether there is a database at all: without one nothing can be said of any path."""
        return bool(self.owned)

    def owner(self, path: bytes) -> str | None:
        """Return the package that has `path`, also by the name it had before / and /usr were merged."""
        return self.owned.get(path) or self.owned.get(path.removeprefix(b"usr/"))

    def owns(self, path: bytes) -> bool:
        """Tell whether a package has `path`, also by the name it had before / and /usr were merged."""
        return path in self.conffiles or self.owner(path) is not None

    @cached_property
    def _sums(self) -> Callable[[str], Mapping[bytes, bytes]]:
        """Gives path -> MD5 (raw) of what a package brought, configuration files apart; remembers the last few."""
        @lru_cache(maxsize=SUMS_KEPT)
        def of(package: str) -> Mapping[bytes, bytes]:
            found: dict[bytes, bytes] = {}
            for line in _read(self.root / _INFO / f"{package}.md5sums").splitlines():
                digest, _, path = line.partition(b"  ")
                with suppress(ValueError):
                    found[path] = bytes.fromhex(digest.decode("ascii", "replace"))
            return found
        return of

    @cached_property
    def _unpacked(self) -> dict[str, int]:
        return {}

    def unpacked_ns(self, package: str) -> int:
        """Return when a package was unpacked, in ns since 1970: what was written later was not by it; 0: not known."""
        if package in self.unpacked:
            return self.unpacked[package]
        if package not in self._unpacked:
            try:
                self._unpacked[package] = (self.root / _INFO / f"{package}.list").lstat().st_mtime_ns
            except OSError:
                self._unpacked[package] = 0
        return self._unpacked[package]

    def as_shipped(self, path: bytes) -> bool | None:
        """Tell whether the file at `path` has the content that its package brought; None when that is not known."""
        digest = self.conffiles.get(path)
        if digest is None and path in self.digests:
            digest = self.digests[path]
        if digest is None and (package := self.owner(path)) is not None:
            sums = self._sums(package)
            found = sums.get(path) or sums.get(path.removeprefix(b"usr/"))
            digest = found.hex().encode() if found is not None else None
        return None if digest is None else _digest(self.root, path, ALGORITHMS.get(len(digest), "md5")) == digest


def read(root: Path) -> Packages:
    """Read what dpkg knows below `root`; nothing is known where there is no dpkg."""
    owned: dict[bytes, str] = {}
    for listing in sorted((root / _INFO).glob("*.list")):
        owned.update(dict.fromkeys((line.lstrip(b"/") for line in listing.read_bytes().splitlines()), listing.stem))
    return Packages(root, owned, _conffiles(root))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


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


def _digest(root: Path, path: bytes, algorithm: str) -> bytes | None:
    try:
        # neither led elsewhere by a link nor held up by a FIFO in a file's place
        handle = os.open(os.path.join(os.fsencode(root), path), _PLAIN)
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            made = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
            return made.hexdigest().encode()
    except OSError:
        return None
