"""/etc/hosts: names of addresses, hosts(5). Pure.

The host's lines stay, in their order. From the image come lines whose names the host does not have in that address
family. 127.0.1.1 is a Debian machine's own name: the image's is that of where it was built, and is left out.
"""

from __future__ import annotations

from precious.mergers.lines import join, plain, split
from precious.mergers.sides import Fate, Told
from precious.mergers.world import World

_OWN = b"127.0.1.1"

Name = tuple[bool, bytes]
"""Whether it is one for IPv6, and the name in lower case."""


def _names(line: bytes) -> tuple[bytes, list[Name]]:
    """Return the address of a line and its names; none of what is no entry."""
    found = line.split(b"#", 1)[0].split()
    if len(found) < 2:
        return b"", []
    return found[0], [(b":" in found[0], name.lower()) for name in found[1:]]


def merge(path: bytes, host: bytes, image: bytes, base: bytes | None, world: World) -> tuple[bytes, list[Told]]:
    """Return the host's lines, then those that only the image has."""
    told: list[Told] = []
    known = None if base is None else {plain(line) for line in split(base)}
    theirs = split(image)
    provided = {plain(line) for line in theirs}
    lines: list[bytes] = []
    ours: dict[Name, bytes] = {}
    for line in split(host):
        address, names = _names(line)
        if names and known is not None and plain(line) in known and plain(line) not in provided:
            told.append(Told(path, Fate.DROPPED, line, "was the old release's, and the new one has it no more"))
            continue
        lines.append(line)
        for name in names:
            ours.setdefault(name, address)
    have = {plain(line) for line in lines}
    for line in theirs:
        address, names = _names(line)
        if not names or plain(line) in have:
            continue
        if address == _OWN or (known is not None and plain(line) in known):
            continue  # where it was built, or the host had taken it out
        taken = [name for name in names if name in ours]
        if not taken:
            lines.append(line)
        elif any(ours[name] != address for name in taken):
            said = plain(line)[:200].decode("utf-8", "replace")
            told.append(Told(path, Fate.CONFLICT, b"", f"the image says {said!r}; the host's own address for that name "
                             "stays"))
    return join(lines), told
