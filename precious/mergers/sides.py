"""What a merger is given and what it returns. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from imaging.entry import printable
from precious.mergers.world import World

_SHOWN = 200
"""How much of a line a person is shown, in bytes; the whole of it is in the archive."""


@dataclass(frozen=True)
class Link:
    """A symbolic link and its text."""

    text: bytes


Node = bytes | Link
"""A file, by its content, or a link."""

Nodes = Mapping[bytes, Node]
"""Path below the root -> what is there."""


def packed(node: Node) -> list[str]:
    """Return a node as JSON has it: ["file"|"link", base64]."""
    kind, data = ("link", node.text) if isinstance(node, Link) else ("file", node)
    return [kind, base64.b64encode(data).decode()]


def unpacked(raw: list[str]) -> Node:
    """Read what `packed` wrote; raises ValueError, TypeError or IndexError on anything else."""
    data = base64.b64decode(raw[1])
    return Link(data) if raw[0] == "link" else data


class Fate(StrEnum):
    """What a merger has to tell of a path or a line."""

    CONFLICT = "conflict"
    """Host and image both say something about the same thing, and one of them gave way."""
    DROPPED = "dropped"
    """Something of the host is not in the result."""
    NOTE = "note"


@dataclass(frozen=True)
class Told:
    """One thing to tell: `line` is what the host had, whole; `why` ends the sentence."""

    path: bytes
    fate: Fate
    line: bytes
    why: str

    def __str__(self) -> str:
        shown = printable(self.line[:_SHOWN]) + ("…" if len(self.line) > _SHOWN else "")
        return f"/{printable(self.path)}: {f'{shown!r} ' if self.line else ''}{self.why}"


@dataclass(frozen=True)
class Merged:
    """What belongs into the new root, None for what must not be there; what is not named stays the image's."""

    nodes: Mapping[bytes, Node | None]
    told: tuple[Told, ...] = ()


Merge = Callable[[Nodes, Nodes, Nodes, World], Merged]
"""(host, image, old release as far as it is known, new root) -> what belongs there."""

MergeFile = Callable[[bytes, bytes, bytes, bytes | None, World], tuple[bytes, list[Told]]]
"""(path, host, image, old release or None, new root) -> content, what to tell."""


def each(merge: MergeFile, *, outright: bool = True) -> Merge:
    """Return a merger that takes the host's files one by one; a link of the host stays a link.

    What the host has just as the old release brought it is no choice of the host's: there the image's wins `outright`,
    unless even then lines of the image are not for a host.
    """
    def merge_all(host: Nodes, image: Nodes, base: Nodes, world: World) -> Merged:
        nodes: dict[bytes, Node | None] = {}
        told: list[Told] = []
        for path, ours in sorted(host.items()):
            theirs, old = image.get(path, b""), base.get(path)
            if outright and ours == old and path in image:
                continue
            if isinstance(ours, Link) is not isinstance(theirs, Link) and path in image:
                told.append(Told(path, Fate.CONFLICT, b"", "is a link here or there; the host's was taken"))
            if isinstance(ours, Link):
                nodes[path] = ours
                continue
            nodes[path], more = merge(path, ours, b"" if isinstance(theirs, Link) else theirs,
                                      old if isinstance(old, bytes) else None, world)
            told += more
        return Merged(nodes, tuple(told))

    return merge_all
