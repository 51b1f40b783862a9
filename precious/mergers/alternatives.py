"""Alternatives that somebody chose by hand: update-alternatives(1). Pure.

In var/lib/dpkg/alternatives a file per group says "auto" or "manual", its link, its slaves (name and link), and after
an empty line its choices: path, priority, a path for each slave, which may be empty. The choice itself is the link
etc/alternatives/GROUP. A choice made by hand is kept when its target is in the new root, else it is listed; what is
automatic, or was chosen by hand by the old release already, is the image's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from precious.mergers.lines import split
from precious.mergers.sides import Fate, Link, Merged, Node, Nodes, Told
from precious.mergers.world import World

FILES, LINKS = b"var/lib/dpkg/alternatives/", b"etc/alternatives/"


@dataclass(frozen=True)
class Group:
    """A group's file: `choices` maps path -> (priority, one path for each of `slaves`)."""

    manual: bool
    link: bytes
    slaves: tuple[tuple[bytes, bytes], ...]
    choices: dict[bytes, tuple[bytes, tuple[bytes, ...]]]

    def write(self) -> bytes:
        """Return the file."""
        rows = [b"manual" if self.manual else b"auto", self.link]
        for slave in self.slaves:
            rows += slave
        rows.append(b"")
        for path, (priority, slaves) in self.choices.items():
            rows += [path, priority, *slaves]
        return b"\n".join([*rows, b"", b""])


def parse(data: bytes) -> Group | None:
    """Return what a group's file says, None for what is none."""
    rows = split(data)
    if len(rows) < 3 or rows[0] not in {b"auto", b"manual"} or not rows[1] or b"\0" in data:
        return None
    try:
        end = rows.index(b"", 2)
    except ValueError:
        return None
    if (end - 2) % 2:
        return None
    slaves = tuple(zip(rows[2:end:2], rows[3:end:2], strict=True))
    choices, at, width = dict[bytes, tuple[bytes, tuple[bytes, ...]]](), end + 1, 2 + len(slaves)
    while at < len(rows) and rows[at]:
        block = rows[at:at + width]
        if len(block) < width or not block[1].lstrip(b"-").isdigit():
            return None
        choices[block[0]] = block[1], tuple(block[2:])
        at += width
    return Group(rows[0] == b"manual", rows[1], slaves, choices)


def merge(host: Nodes, image: Nodes, base: Nodes, world: World) -> Merged:
    """Return the groups' files and links that follow from the host's choices."""
    nodes: dict[bytes, Node | None] = {}
    told: list[Told] = []
    for path, data in sorted(host.items()):
        if not path.startswith(FILES):
            continue
        name = path[len(FILES):]
        ours = parse(data) if isinstance(data, bytes) else None
        if ours is None:
            told.append(Told(path, Fate.DROPPED, b"", "is no file of update-alternatives; the image's stays"))
            continue
        if not ours.manual:
            continue
        chosen = host.get(LINKS + name)
        if path in image and base.get(path) == data and base.get(LINKS + name) == chosen:
            continue
        if not isinstance(chosen, Link):
            told.append(Told(path, Fate.DROPPED, b"", "was set by hand, and to what is not known"))
            continue
        theirs = image.get(path)
        group = parse(theirs) if isinstance(theirs, bytes) else None
        if group is None:
            told.append(Told(path, Fate.DROPPED, chosen.text, "was chosen by hand; the new image has no such group"))
            continue
        choice = next((there for there in group.choices if _merged(there) == _merged(chosen.text)), chosen.text)
        if not choice.startswith(b"/") or not world.has(choice.lstrip(b"/")):
            told.append(Told(path, Fate.DROPPED, chosen.text, "was chosen by hand and is not in the new root"))
            continue
        if choice not in group.choices:
            if choice not in ours.choices:
                told.append(Told(path, Fate.DROPPED, chosen.text, "was chosen by hand and is no choice of the group"))
                continue
            priority, values = ours.choices[choice]
            theirs_by_name = {slave: value for (slave, _), value in zip(ours.slaves, values, strict=True)}
            group = replace(group, choices={**group.choices, choice: (
                priority, tuple(theirs_by_name.get(slave, b"") for slave, _ in group.slaves))})
        nodes[path] = replace(group, manual=True).write()
        nodes[LINKS + name] = Link(choice)
        for (slave, _), value in zip(group.slaves, group.choices[choice][1], strict=True):
            nodes[LINKS + slave] = Link(value) if value and world.has(value.lstrip(b"/")) else None
    return Merged(nodes, tuple(told))


def _merged(path: bytes) -> bytes:
    """Return the path as it is since / and /usr were merged."""
    top = path.split(b"/", 2)[1:2]
    return b"/usr" + path if top and top[0] in {b"bin", b"sbin", b"lib", b"lib64"} else path
