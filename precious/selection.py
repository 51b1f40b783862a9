"""Which entries of the old root are kept (I/O, read-only): what rules name, what nobody listed, the ways to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from imaging.entry import ROOT, Entry, EntryType, Progress, parent, printable
from imaging.index import MAX_PATH
from imaging.scan import TreeReader, scan
from plumbing import clock
from plumbing.errors import RefusedError
from precious import detours, flags, unlisted
from precious.circumstances import Circumstances
from precious.inquiry import Inquiry
from precious.policy import Policy

_TELL_EVERY = 1024
"""After how many entries it is told that the walk goes on."""


@dataclass(frozen=True)
class Selection:
    """Entries to keep in tree order with the folders that lead to them, the unlisted ones, and what rules asked."""

    entries: tuple[Entry, ...]
    unlisted: frozenset[bytes]
    known: Circumstances = field(default_factory=Circumstances)


def select(root: Path, policy: Policy, note: Callable[[str], None], progress: Progress | None = None) -> Selection:
    """Select what `policy` keeps of `root`; `note` is told of everything that will not come back as it was.

    A hard link whose first name is not kept becomes a file of its own. Raises RefusedError when a pattern keeps
    nothing because its way leads through a link (see `detours`), and for a path that is too long for any archive.
    """
    links = detours.check(root, policy, note)
    inquiry = Inquiry(root, policy, clock.wall())
    wanted = frozenset(_unlisted(root, policy, inquiry, note)) - links
    ways = {way for path in wanted for way in _folders(path)}
    found = list(_told(progress, scan(root, one_file_system=True, note=note,
                                      descend=lambda folder: folder in ways or policy.may_hold(folder))))
    firsts = {entry.path: entry for entry in found} if policy.asks_facts else {}
    chosen = {entry.path for entry in found if entry.path in wanted or entry.path in links or
              inquiry.rule_for(entry, firsts.get(entry.link)) is not None}
    needed = chosen | {way for path in chosen for way in _folders(path)} | {ROOT}
    if (longest := max(needed, key=len)) and len(longest) > MAX_PATH:
        raise RefusedError(f"/{printable(longest)[:100]}… is a path of {len(longest)} bytes and an archive holds up to "
                           f"{MAX_PATH}; move it up, or exclude it in the precious policy")
    entries = tuple(_whole(root, (entry for entry in found if entry.path in needed), chosen))
    for sentence in flags.notes(root, _told(progress, (entry for entry in entries if entry.path in chosen))):
        note(sentence)
    return Selection(entries, wanted, inquiry.known)


def _unlisted(root: Path, policy: Policy, inquiry: Inquiry, note: Callable[[str], None]) -> Iterator[bytes]:
    left = policy.unlisted.max_bytes
    for path, size in unlisted.find(root, policy, inquiry):
        if size > left:
            note(f"/{printable(path)} is not listed and there is no room left for unlisted files; not kept")
            continue
        left -= size
        yield path


def _folders(path: bytes) -> Iterator[bytes]:
    while (path := parent(path)) != ROOT:
        yield path


def _told(progress: Progress | None, entries: Iterable[Entry]) -> Iterator[Entry]:
    for number, entry in enumerate(entries):
        if progress is not None and number % _TELL_EVERY == 0:
            progress("look", 0, 0)
        yield entry


def _whole(root: Path, entries: Iterator[Entry], chosen: set[bytes]) -> Iterator[Entry]:
    firsts: dict[bytes, bytes] = {}
    with TreeReader(root) as reader:
        for entry in entries:
            if entry.type is not EntryType.LINK or entry.link in chosen:
                yield entry
            elif entry.link in firsts:
                yield replace(entry, link=firsts[entry.link])
            else:
                firsts[entry.link] = entry.path
                yield reader.again(entry)
