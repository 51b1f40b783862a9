"""/etc/fstab, line by line. Pure but for `read`: text in, text out; lines that are not ours stay, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEADER = "# Written by reroot: this release brought no fstab of its own and none was precious."
BEFORE = "etc/fstab.before-reroot"
"""Where an fstab is kept that named partitions which an installation has made anew."""


@dataclass(frozen=True)
class Mount:
    """A line of ours: a partition by its GUID, or a volume.

    `point` is one of `points`' names, the first where none is there yet.
    """

    source: str
    points: tuple[str, ...]
    fstype: str
    options: str
    order: int

    def line(self, point: str) -> str:
        """Return the line that mounts it at `point`."""
        return f"{self.source} {point} {self.fstype} {self.options} 0 {self.order}"


def read(root: Path) -> str:
    """Return the text of a mounted root's /etc/fstab; nothing where it is not a plain file."""
    path = root / "etc/fstab"
    return path.read_text("utf-8", "surrogateescape") if path.is_file() and not path.is_symlink() else ""


def points(text: str) -> frozenset[str]:
    """Return where the file mounts things."""
    return frozenset(point for line in text.splitlines() if (point := _point(line)) is not None)


def _point(line: str) -> str | None:
    words = line.split()
    if len(words) < 3 or words[0].startswith("#"):
        return None
    return words[1].rstrip("/") or "/"


def rewritten(text: str, mounts: Sequence[Mount]) -> str:
    """Return the file with a line for each of `mounts`, in place of those for the same points; all others stay."""
    lines, left = [], list(mounts)
    for line in text.splitlines():
        point = _point(line)
        mine = next((mount for mount in mounts if point in mount.points), None)
        if mine is None or point is None:
            lines.append(line)
        elif mine in left:
            left.remove(mine)
            lines.append(mine.line(point))
    return "\n".join([*lines, *(mount.line(mount.points[0]) for mount in left), ""])
