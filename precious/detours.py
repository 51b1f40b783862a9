"""Keep patterns whose way leads through a link (I/O, read-only): keep /srv/**, and /srv is a link to /data/srv.

Nothing is walked or put back through a link, so such a pattern keeps nothing. The link itself is kept, for an image
that has none there; and what the pattern would have kept on the far side must be kept by its real name, or the host is
refused before its root is wiped. What lies on another filesystem is not wiped, so there a note is enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from imaging.entry import ROOT, printable
from plumbing.errors import RefusedError
from precious.links import resolve as lead
from precious.policy import Policy
from precious.unlisted import walk

_ELSEWHERE = b"local"
"""Never wiped, whatever the old root's fstab says."""


@dataclass(frozen=True)
class Detour:
    """A pattern of the rule at `origin`, the link on its way and where that leads: a path in the root, or None."""

    glob: str
    origin: str
    link: bytes
    text: bytes
    real: bytes | None


def check(root: Path, policy: Policy, note: Callable[[str], None]) -> frozenset[bytes]:
    """Return the links that keep patterns of `policy` lead through, each told to `note` with its pattern.

    Raises RefusedError when that would lose a file of the filesystem at `root`: no rule keeps it by its real path.
    """
    links = set()
    points = _mount_points(root)
    for detour in find(root, policy):
        links.add(detour.link)
        way = (f"{detour.origin} keeps {detour.glob}, and /{printable(detour.link)} is a link to "
               f"{printable(detour.text)}")
        real = detour.real
        if real is None or not _on_this_filesystem(root, real, points):
            note(f"{way}, which is not on this filesystem: the link is kept, what it leads to stays where it is")
            continue
        lost = _lost(root, policy, detour.link, real)
        if lost is not None:
            raise RefusedError(f"{way}: /{printable(lost)} would not be kept. Nothing is kept through a link; name the "
                               f"real path /{printable(real)} in the precious policy")
        note(f"{way}: the link is kept, and what the pattern names is kept where rules name its real path")
    return frozenset(links)


def find(root: Path, policy: Policy) -> Iterator[Detour]:
    """Yield the patterns of `policy` whose part before the first wildcard leads through a link of `root`."""
    for rule in policy.rules:
        for glob in rule.keep:
            parts = glob.lstrip("/").split("/")
            plain = list(takewhile(lambda part: "*" not in part and "?" not in part, parts))
            names = [os.fsencode(part) for part in plain[:len(parts) - 1]]  # the last name is what is kept, link or not
            for count in range(1, len(names) + 1):
                link = b"/".join(names[:count])
                text = _link_text(root, link)
                if text is not None:
                    yield Detour(glob, rule.where, link, text, resolve(root, link))
                    break


def resolve(root: Path, path: bytes) -> bytes | None:
    """Return where `path` leads if `root` were /: a path without links, though perhaps of nothing; None for a loop."""
    found = lead(path, lambda link: _link_text(root, link))
    return ROOT if found == b"" else found


def _link_text(root: Path, path: bytes) -> bytes | None:
    try:
        return os.readlink(os.path.join(os.fsencode(root), path))  # noqa: PTH115 - a path of bytes
    except OSError:  # no link, or nothing at all
        return None


def _mount_points(root: Path) -> frozenset[bytes]:
    """Return what the root's own fstab mounts elsewhere than at /: while this is read, only the root is mounted."""
    table = root / "etc/fstab"
    lines = table.read_bytes().splitlines() if table.is_file() and not table.is_symlink() else []
    points = {words[1].strip(b"/") for words in (line.split() for line in lines)
              if len(words) > 2 and not words[0].startswith(b"#") and words[1].startswith(b"/")}
    return frozenset({_ELSEWHERE, *points} - {b""})


def _on_this_filesystem(root: Path, real: bytes, points: frozenset[bytes]) -> bool:
    if any((real + b"/").startswith(point + b"/") for point in points):
        return False
    try:
        return os.lstat(os.path.join(os.fsencode(root), real)).st_dev == root.stat().st_dev
    except OSError:
        return False


def _lost(root: Path, policy: Policy, link: bytes, real: bytes) -> bytes | None:
    """Return the first file below `real` that rules may keep by its path through `link`, and not surely by its own."""
    below = b"" if real == ROOT else real
    for path, _ in walk(os.fsencode(root), below):
        beyond = path[len(below):].lstrip(b"/")
        if policy.rule_for(b"/".join(filter(None, [link, beyond]))) is not None and (
                policy.rule_for(path, unknown=False) is None):
            return path
    return None
