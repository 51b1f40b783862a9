"""Files that nobody listed (I/O, read-only): no rule keeps them, no package owns them as they are.

Looked for where people put things (the policy's [unlisted] look). They are archived and named in the report,
never put back unasked, so that an upgrade cannot lose what somebody forgot to list.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from precious.policy import Policy


def _owned(root: Path) -> set[bytes]:
    """Return every path that dpkg's file lists name, without the leading slash."""
    owned: set[bytes] = set()
    for listing in (root / "var/lib/dpkg/info").glob("*.list"):
        owned.update(line.lstrip(b"/") for line in listing.read_bytes().splitlines())
    return owned


def _conffiles(root: Path) -> dict[bytes, bytes]:
    """Return configuration file -> MD5 (hexadecimal) as the package shipped it, from dpkg's status."""
    status = root / "var/lib/dpkg/status"
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


def _as_shipped(path: Path, md5: bytes) -> bool:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest().encode() == md5


def walk(root: bytes, below: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield files and symlinks under root/below on one filesystem, never through a link."""
    top = os.path.join(root, below)
    try:
        start = os.lstat(top)
    except OSError:
        return
    if not stat.S_ISDIR(start.st_mode):
        yield below, start
        return
    folders = [below]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as names:
            for item in sorted(names, key=lambda entry: entry.name):
                info = item.stat(follow_symlinks=False)
                path = os.path.join(folder, item.name)
                if stat.S_ISDIR(info.st_mode):
                    if info.st_dev == start.st_dev:
                        folders.append(path)
                elif stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                    yield path, info


def _starts(policy: Policy) -> list[bytes]:
    """Return the folders that the look globs begin with, none inside another."""
    tops = {os.fsencode(glob.split("*")[0].split("?")[0].rpartition("/")[0].lstrip("/"))
            for glob in policy.unlisted.look}
    return sorted(top for top in tops if not any(top != other and (top + b"/").startswith(other + b"/")
                                                 for other in tops))


def find(root: Path, policy: Policy) -> list[tuple[bytes, int]]:
    """Return (path, size in bytes) of every unlisted file below `root`, sorted by path."""
    owned, shipped = _owned(root), _conffiles(root)
    found: dict[bytes, int] = {}
    for top in _starts(policy):
        for path, info in walk(os.fsencode(root), top):
            if policy.rule_for(path) is not None or not policy.looks_at(path):
                continue
            if path in shipped:
                if stat.S_ISREG(info.st_mode) and _as_shipped(root / os.fsdecode(path), shipped[path]):
                    continue
            elif path in owned:
                continue
            found[path] = info.st_size  # an empty file or a link means something too: cron.deny, sites-enabled
    return sorted(found.items())
