"""What of an archive returns to the new root (pure: entries in, entries out)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from imaging.entry import ROOT, Entry, EntryType, parent
from precious.circumstances import Judged


def without(entries: Iterable[Entry], left: Mapping[bytes, Entry]) -> Iterator[Entry]:
    """Make a hard link to an entry that is left out that entry itself; further ones join it."""
    firsts: dict[bytes, bytes] = {}
    for entry in entries:
        if entry.type is not EntryType.LINK or entry.link not in left:
            yield entry
        elif entry.link in firsts:
            yield replace(entry, link=firsts[entry.link])
        else:
            firsts[entry.link] = entry.path
            yield replace(left[entry.link], path=entry.path)


def reachable(entries: Iterable[Entry], judged: Judged) -> Iterator[Entry]:
    """Leave out folders that no rule keeps and that lead to nothing here: they are the image's business."""
    rows = list(entries)
    needed = {ROOT}
    for entry in rows:
        if not entry.is_directory or judged.rule_for(entry.path) is not None:
            way = entry.path
            while (way := parent(way)) not in needed:
                needed.add(way)
    return (entry for entry in rows if not entry.is_directory or entry.path in needed or
            judged.rule_for(entry.path) is not None)
