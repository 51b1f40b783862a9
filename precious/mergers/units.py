"""Links below /etc/systemd/system and user: units enabled, masked, or known by another name; systemctl(1). Pure.

A link of the host stays when the unit it names is in the new root, under the new root's path for it; else it is listed.
A mask stays always. A link that the host has just as the old release brought it is no choice of the host's, and one of
the old release's that the host has no more is one it took away: it stays away. Without the old release a unit that the
image enables and the host did not stays enabled: whether the host had disabled it or never had it cannot be told then.
"""

from __future__ import annotations

from posixpath import normpath

from precious.mergers.sides import Fate, Link, Merged, Node, Nodes, Told
from precious.mergers.world import World

_MASK = b"/dev/null"
_PLACES = (b"etc/systemd/", b"usr/local/lib/systemd/", b"usr/lib/systemd/", b"lib/systemd/")
"""Where unit files are, below `system` or `user`: systemd.unit(5). The first that has one counts."""


def merge(host: Nodes, image: Nodes, base: Nodes, world: World) -> Merged:
    """Return the host's links whose units exist."""
    nodes: dict[bytes, Node | None] = {}
    told: list[Told] = []
    for path, ours in sorted(host.items()):
        theirs = image.get(path)
        if ours == theirs:
            nodes[path] = ours
            continue
        if ours == base.get(path):
            if theirs is None:
                told.append(Told(path, Fate.DROPPED, ours.text if isinstance(ours, Link) else b"",
                                 "was the old release's, and the new one does not enable it"))
            continue
        if not isinstance(ours, Link) or ours.text == _MASK:
            nodes[path] = ours
        elif isinstance(theirs, Link) and theirs.text.rpartition(b"/")[2] == ours.text.rpartition(b"/")[2]:
            nodes[path] = theirs
            continue
        else:
            text = _unit(path, ours.text, world)
            if text is None:
                told.append(Told(path, Fate.DROPPED, ours.text, "is no unit of the new root: not enabled there"))
                continue
            nodes[path] = Link(text)
        if theirs is not None:
            said = theirs.text if isinstance(theirs, Link) else b"a file"
            told.append(Told(path, Fate.CONFLICT, ours.text if isinstance(ours, Link) else b"",
                             f"took the place of the image's {said.decode('utf-8', 'replace')!r}"))
    for path in sorted(base.keys() & image.keys() - host.keys()):
        nodes[path] = None
        told.append(Told(path, Fate.NOTE, b"", "is the image's, and the host had taken it away: it stays away"))
    return Merged(nodes, tuple(told))


def _unit(path: bytes, text: bytes, world: World) -> bytes | None:
    """Return a link text that leads to the unit in the new root, the host's own where it does."""
    folder = path.rpartition(b"/")[0]
    target = normpath(text if text.startswith(b"/") else b"/" + folder + b"/" + text).lstrip(b"/")
    if target and world.has(target):
        return text
    names = [text.rpartition(b"/")[2]]
    head, at, tail = names[0].partition(b"@")
    if at:
        names.append(head + b"@." + tail.rpartition(b".")[2])
    kind = b"user" if path.startswith(b"etc/systemd/user/") else b"system"
    found = (place + kind + b"/" + name for name in names if name not in {b"", b".", b".."} for place in _PLACES)
    return next((b"/" + there for there in found if there != path and world.has(there)), None)
