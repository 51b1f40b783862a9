"""dpkg's statoverride: owners and modes that an administrator gave to packages' files, dpkg-statoverride(1). Pure.

Lines are `user group mode path`. The host's win, path by path, when user and group are in the new root: dpkg refuses to
work while it cannot find one of them.
"""

from __future__ import annotations

import re

from precious.mergers.lines import join, split
from precious.mergers.sides import Fate, Told
from precious.mergers.world import World

PATH = b"var/lib/dpkg/statoverride"
_MODE = re.compile(rb"[0-7]{1,5}")
_NUMBER = re.compile(rb"#[0-9]{1,10}")

Row = tuple[bytes, bytes, bytes, bytes]
"""User, group, mode, path."""


def parse(line: bytes) -> Row | None:
    """Return the four fields of a line, None for what is no override."""
    found = line.split(b" ", 3)
    if len(found) != 4 or not all(found) or not _MODE.fullmatch(found[2]) or b"\0" in line:
        return None
    if not found[3].startswith(b"/"):
        return None
    return found[0], found[1], found[2], found[3]


def merge(path: bytes, host: bytes, image: bytes, base: bytes | None, world: World) -> tuple[bytes, list[Told]]:
    """Return the image's overrides with the host's in their places, then the host's others."""
    told: list[Told] = []
    known = set() if base is None else set(split(base))
    theirs = split(image)
    provided = {row[3]: line for line in theirs if (row := parse(line)) is not None}
    ours: dict[bytes, bytes] = {}
    first: dict[bytes, bytes] = {}
    for line in split(host):
        row = parse(line)
        if row is None:
            if line.strip() and line not in theirs:
                told.append(Told(path, Fate.DROPPED, line, "is no override (user group mode path)"))
            continue
        there = provided.get(row[3])
        missing = [f"{kind} {name.decode('utf-8', 'replace')!r}" for kind, name, names in (
            ("user", row[0], world.users), ("group", row[1], world.groups))
            if name not in names and not _NUMBER.fullmatch(name)]
        if row[3] in first:
            if first[row[3]] != line:
                told.append(Told(path, Fate.DROPPED, line, "is another override for a path that has one"))
            continue
        first[row[3]] = line
        if line == there:
            continue
        if missing:
            told.append(Told(path, Fate.DROPPED, line,
                             f"names the {' and the '.join(missing)}, which the new root does not have"))
        elif line in known:
            told.append(Told(path, Fate.DROPPED, line, "was the old release's, and the new one has another or none"))
        else:
            ours[row[3]] = line
            if there is not None:
                said = there[:200].decode("utf-8", "replace")
                told.append(Told(path, Fate.CONFLICT, line, f"took the place of the image's {said!r}"))
    result = []
    for line in theirs:
        row = parse(line)
        result.append(line if row is None else ours.get(row[3], line))
    result += [line for target, line in ours.items() if target not in provided]
    return join(result), told
