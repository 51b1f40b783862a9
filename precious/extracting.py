"""Single files out of an archive, for a person (I/O: reads the archive, writes below one empty directory).

The archive may come from a host that is somebody else's by now. So the whole of it is verified first, its index is
read by the code that trusts none, and what is made is made by the code that restores releases: through descriptors that
follow no link, so that no name leaves the directory, which is closed to others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imaging.entry import ROOT, Entry, EntryType, Progress, parent, printable
from imaging.index import Index
from plumbing.errors import CorruptError, NotFoundError, RefusedError, UsageError
from precious import keep
from precious.keep import Kept
from precious.returning import without

_DEVICES = {EntryType.CHAR, EntryType.BLOCK}


@dataclass(frozen=True)
class Extracted:
    """What was made, directories on the way included, and sentences about what is not as on the host."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


def chosen(entries: Iterable[Entry], paths: Sequence[bytes]) -> tuple[Entry, ...]:
    """Return the entries at `paths`, all below them, and the directories that lead there (pure).

    A hard link to a file that is not among them becomes that file. Raises NotFoundError naming the paths that are in no
    entry.
    """
    rows = list(entries)
    there = {entry.path for entry in rows}
    if missing := [path for path in paths if path not in there]:
        raise NotFoundError(f"the archive does not hold {', '.join('/' + printable(path) for path in missing)}; "
                            "`reroot precious extract … ` without paths takes everything")
    below = tuple(path + b"/" for path in paths)
    everything = not paths or ROOT in paths
    picked = {path for path in there if everything or path in paths or path.startswith(below)}
    for path in list(picked):
        way = path
        while way != ROOT:
            way = parent(way)
            picked.add(way)
    left = {entry.path: entry for entry in rows if entry.path not in picked}
    return tuple(without((entry for entry in rows if entry.path in picked), left))


def path_of(text: str) -> bytes:
    """Return a path as archives have it, of what a person typed (pure); raises UsageError."""
    names = [name for name in os.fsencode(text).split(b"/") if name not in {b"", b"."}]
    if b".." in names:
        raise UsageError(f"{text!r} has .. in it; name the file as it was on the host, such as /etc/hostname")
    return b"/".join(names) or ROOT


def extract(folder: Path, paths: Sequence[bytes], into: Path, progress: Progress | None = None) -> Extracted:
    """Verify the archive in `folder` and make `paths` of it (all, for none) below `into`, empty or not there yet.

    Every file is read back and compared. As root files have the owners and attributes they had; else they are this
    user's, without attributes, setuid bits and devices, which the notes tell. Raises RefusedError for a directory with
    something in it, NotFoundError, CorruptError, DiskError.
    """
    from imaging.fetch import FrameFetcher
    from imaging.restore import restore
    from imaging.sources import FileSource
    from imaging.verify import verify

    kept = keep.verify(folder, progress)
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise RefusedError(f"{into} is not an empty directory; name one that is not there yet")
    made, notes = _ours(chosen(kept.index.entries, paths))
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    index, source = Index(made, kept.index.frames), FileSource(kept.archive)
    try:
        restore(index, FrameFetcher([source]), into, workers=1, progress=progress)
    finally:
        source.close()
    if wrong := verify(index, into, progress, workers=1):
        raise CorruptError(f"what was extracted is not what was kept: {wrong[0]}; look at the disk of {into}")
    return Extracted(made, (*_told(kept, made), *notes))


def _ours(entries: Iterable[Entry]) -> tuple[tuple[Entry, ...], list[str]]:
    """Return the entries as this user can and should make them, the top closed to others, and what that changed."""
    uid, gid = os.geteuid(), os.getegid()
    made, changed, devices = [], 0, 0
    for entry in entries:
        if entry.path == ROOT:
            made.append(replace(entry, mode=0o700, uid=uid, gid=gid, xattrs=()))
        elif uid == 0:
            made.append(entry)
        elif entry.type in _DEVICES:
            devices += 1
        else:
            plain = replace(entry, mode=entry.mode & 0o777 | (0o700 if entry.is_directory else 0), uid=uid, gid=gid,
                            xattrs=())
            changed += plain != entry
            made.append(plain)
    notes = [f"{changed} entries have another owner, mode or attributes than on the host; root gets them as they were"
             ] if changed else []
    return tuple(made), notes + ([f"{devices} devices were left out; root gets them"] if devices else [])


def _told(kept: Kept, made: Iterable[Entry]) -> tuple[str, ...]:
    """Return what was noted of these files when they were kept."""
    names = {printable(entry.path) for entry in made if entry.path != ROOT}
    return tuple(note for note in kept.notes if any(name in note for name in names))
