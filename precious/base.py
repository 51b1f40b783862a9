"""What the release that a host was installed from had where rules merge: the third side of a merge (pure).

In: that release's index, the policy, what was kept of the host. Out: which of it is known without its content (links,
and files that the host still has just so), and which frames hold the rest. What is known stands beside the archive, so
that putting back needs no network, and a power cut changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from blake3 import blake3

from imaging.entry import Entry, EntryType, Extent, printable
from imaging.index import Index
from precious.circumstances import Circumstances
from precious.mergers.sides import Link, Node, Nodes, packed, unpacked
from precious.merging import MERGEABLE
from precious.policy import Policy
from precious.rules import When

MOST_FILE_BYTES = 1 << 20
"""A larger file of the old release is not fetched for a merge."""
MOST_FETCHED_BYTES = 32 << 20
"""Of the old release's frames no more is fetched, as they lie in the layer."""


@dataclass(frozen=True)
class Base:
    """What is known of the old release, by path: `same` are files that the host has just so, `nodes` all others.

    `release` is its name, empty where the host has none; `notes` are sentences about what could not be had.
    """

    release: str = ""
    same: frozenset[bytes] = frozenset()
    nodes: Nodes = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def beside(self, host: Nodes) -> dict[bytes, Node]:
        """Return all that is known, where `host` are the host's own files."""
        return {**self.nodes, **{path: host[path] for path in self.same & host.keys()}}

    def without(self, why: str) -> Base:
        """Return this with a note that the rest could not be had."""
        return replace(self, notes=(*self.notes, f"release {self.release}, which this host was installed from, could "
                                    f"not be asked for all that it had ({why}); where it is not known, merging knows "
                                    "the host and the image alone"))

    def to_json(self) -> bytes:
        """Return what stands beside an archive, with a digest of its own."""
        value = {"release": self.release, "same": sorted(map(os.fsdecode, self.same)), "notes": list(self.notes),
                 "nodes": {os.fsdecode(path): packed(node) for path, node in sorted(self.nodes.items())}}
        text = json.dumps(value, sort_keys=True)
        return json.dumps({"version": 1, "blake3": blake3(text.encode()).hexdigest(), "base": text}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Base:
        """Read what `to_json` wrote; raises ValueError, TypeError, KeyError or AttributeError on anything else."""
        outer = json.loads(data)
        text = str(outer["base"])
        if outer["version"] != 1 or blake3(text.encode()).hexdigest() != outer["blake3"]:
            raise ValueError("it is not what was written")
        value = json.loads(text)
        return cls(str(value["release"]), frozenset(map(os.fsencode, value["same"])),
                   {os.fsencode(path): unpacked(node) for path, node in value["nodes"].items()},
                   tuple(map(str, value["notes"])))


def known(release: str, index: Index, policy: Policy, kept: Mapping[bytes, Entry]) -> tuple[Base, list[Entry]]:
    """Return what of an old release is known by its index, and the files whose content is still to be fetched.

    `kept` are the host's entries by path. Fetched are frames, at most MOST_FETCHED_BYTES of them: those that hold the
    most of the wanted files first.
    """
    there = {entry.path: entry for entry in index.entries}
    nodes: dict[bytes, Node] = {}
    same, lacking = set[bytes](), list[Entry]()
    for entry in index.entries:
        first = there[entry.link] if entry.type is EntryType.LINK else entry
        if entry.type not in MERGEABLE or not _is_merged(policy, entry, first):
            continue
        ours = kept.get(entry.path)
        if ours is not None and ours.type is EntryType.LINK:
            ours = kept.get(ours.link)
        if first.type is EntryType.SYMLINK:
            nodes[entry.path] = Link(first.link)
        elif ours is not None and ours.is_file and ours.digest == first.digest:
            same.add(entry.path)
        elif ours is not None and first.size <= MOST_FILE_BYTES:  # a file that the host lacks is nobody's to merge
            lacking.append(replace(first, path=entry.path))
    wanted, left = _affordable(index, lacking)
    base = Base(release, frozenset(same), nodes)
    return (base.without(f"its files of {len(left)} paths are too far apart, the first is /{printable(left[0].path)}")
            if left else base), wanted


def _is_merged(policy: Policy, entry: Entry, first: Entry) -> bool:
    rule = policy.rule_for(entry.path, Circumstances().facts(entry, first))
    return rule is not None and rule.when is When.MERGE


def _affordable(index: Index, lacking: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Part the files in those whose frames are within MOST_FETCHED_BYTES and the others."""
    rows = list(lacking)
    holders: dict[int, int] = {}
    for entry in rows:
        for extent in entry.extents:
            holders[extent.frame] = holders.get(extent.frame, 0) + 1
    taken, spent = set[int](), 0
    for number in sorted(holders, key=lambda number: (-holders[number], number)):
        if spent + index.frames[number].length <= MOST_FETCHED_BYTES:
            spent += index.frames[number].length
            taken.add(number)
    parts: tuple[list[Entry], list[Entry]] = ([], [])
    for entry in rows:
        parts[not all(extent.frame in taken for extent in entry.extents)].append(entry)
    return parts


def content(entry: Entry, pieces: Mapping[Extent, bytes]) -> bytes | None:
    """Return a file out of its pieces; None when one is missing or it is not what its digest says."""
    if not pieces.keys() >= set(entry.extents):
        return None
    data = b"".join(pieces[extent] for extent in entry.extents)
    return data if blake3(data).digest() == entry.digest else None
