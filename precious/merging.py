"""What the mergers that rules name make of a host and an image, and what becomes of each path by it (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from imaging.entry import ROOT, Entry, EntryType, parent
from precious.circumstances import Judged
from precious.mergers.registry import ACCOUNTS, MERGERS
from precious.mergers.sides import Fate, Node, Nodes, Told
from precious.mergers.world import World, paths
from precious.rules import When

MOST_BYTES = 16 << 20
"""A larger file is none that a merger is for; the host's wins then."""
MERGEABLE = frozenset({EntryType.FILE, EntryType.LINK, EntryType.SYMLINK})


def chosen(entries: Iterable[Entry], judged: Judged, image: Mapping[bytes, EntryType]) -> dict[bytes, str]:
    """Return path -> name of its merger for those entries, of host or old release, that a rule has merged.

    The account files are not among them. Only files and links can be, and only where the image has one too, or nothing,
    and real folders on the way; the rest goes back as the host's.
    """
    found = {}
    for entry in entries:
        if entry.type not in MERGEABLE or entry.size > MOST_BYTES:
            continue
        if image.get(entry.path, EntryType.FILE) not in MERGEABLE or not _reached(entry.path, image):
            continue
        rule = judged.rule_for(entry.path)
        if rule is not None and rule.when is When.MERGE and rule.merge != ACCOUNTS:
            found[entry.path] = rule.merge
    return found


def _reached(path: bytes, image: Mapping[bytes, EntryType]) -> bool:
    while (path := parent(path)) != ROOT:
        if image.get(path, EntryType.DIRECTORY) is not EntryType.DIRECTORY:
            return False
    return True


def contents(entries: Iterable[Entry], wanted: Set[bytes]) -> dict[bytes, bytes]:
    """Return path -> the path whose content it has, of the files among `wanted`: that of a hard link's first name."""
    return {entry.path: entry.link if entry.type is EntryType.LINK else entry.path
            for entry in entries if entry.path in wanted and entry.type in {EntryType.FILE, EntryType.LINK}}


def world(users: bytes, groups: bytes, image: Iterable[Entry], returning: Iterable[Entry]) -> World:
    """Return the new root as mergers see it: accounts by its passwd and group, paths of image and host together."""
    there = {entry.path: entry for entry in (*image, *returning)}
    links = {path: entry.link for path, entry in there.items() if entry.type is EntryType.SYMLINK}
    return World(_names(users), _names(groups), paths(there, links))


def _names(table: bytes) -> frozenset[bytes]:
    return frozenset(line.partition(b":")[0] for line in table.split(b"\n"))


@dataclass(frozen=True)
class Outcome:
    """What belongs into the new root, None for nothing, and what there is to tell; `accounts` are its tables."""

    nodes: Mapping[bytes, Node | None]
    told: tuple[Told, ...]
    host: Nodes
    image: Nodes
    accounts: Mapping[bytes, bytes] = field(default_factory=dict)

    def of(self, fate: Fate) -> list[str]:
        """Return the sentences of one kind."""
        return [str(row) for row in self.told if row.fate is fate]

    def fates(self) -> Iterator[tuple[bytes, str]]:
        """Yield what became of each of the host's paths: put_back, merged or image_won; none for what was dropped."""
        dropped = {row.path for row in self.told if row.fate is Fate.DROPPED}
        for path, ours in sorted(self.host.items()):
            theirs = self.image.get(path)
            node = self.nodes.get(path, theirs)
            if node == ours:
                yield path, "put_back"
            elif node != theirs:
                yield path, "merged"
            elif theirs is not None or path not in dropped:
                yield path, "image_won"


def merge(host: Nodes, image: Nodes, base: Nodes, mergers: Mapping[bytes, str], new: World,
          accounts: Mapping[bytes, bytes]) -> Outcome:
    """Merge `host` with `image`; `base` is what the old release had, as far as that is known.

    `mergers` names the merger of every path of `host` and `base`.
    """
    nodes: dict[bytes, Node | None] = {}
    told: list[Told] = []
    for name in sorted({*mergers.values()}):
        ours, old = ({path: node for path, node in side.items() if mergers[path] == name} for side in (host, base))
        merged = MERGERS[name].merge(ours, image, old, new)
        nodes |= merged.nodes
        told += merged.told
    return Outcome(nodes, tuple(told), host, image, accounts)
