"""Putting what was kept into the new root (I/O), conflicts decided by the policy, every entry reported.

The archive is first restored, with all metadata, into a scratch folder of the new root, by the code that restores
releases; then each entry is renamed into its place through folder descriptors that follow no link, so nothing of
the old root or of the image can lead a file elsewhere. Last, all that was placed is read back from the disk. Doing it
twice gives the same root and the same report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from imaging import folders
from imaging.entry import Entry, EntryType, Progress, printable
from imaging.index import Index
from plumbing.errors import DiskError
from precious import keep, mergedfiles, merging, overrides
from precious.accounts import FILES
from precious.base import Base
from precious.circumstances import Judged
from precious.keep import Kept
from precious.mergers import alternatives, statoverride
from precious.mergers.registry import ACCOUNTS
from precious.mergers.sides import Fate, Link, Node, Nodes
from precious.merging import Outcome
from precious.names import Names
from precious.place import PutBackReport, check, missing, place
from precious.policy import Policy
from precious.returning import reachable, without

SCRATCH = ".reroot-precious"
_TABLES = {b"etc/" + name.encode(): name for name in FILES}


def put_back(kept_dir: Path, new_root: Path, policy: Policy, image: Index,
             progress: Progress | None = None) -> PutBackReport:
    """Put the archive in `kept_dir` back into `new_root`, which holds the release `image`; see the module for how.

    Unlisted files stay in the archive; the report names those that the new root does not have just so. `progress`
    hears of every piece of work, in bytes. Raises CorruptError when the archive or something put back is not what was
    kept, DiskError when writing fails.
    """
    kept, report, base = keep.verify(kept_dir, progress), PutBackReport(), keep.read_base(kept_dir)
    report.notes += (*kept.notes, *base.notes)
    judged, types = Judged(policy, kept.index.entries, kept.known), _types(image)
    entries = {entry.path: entry for entry in kept.index.entries}
    names = _names(kept, new_root, judged, base, _has(image, kept), report, progress)
    mergers = merging.chosen((entry for entry in entries.values() if entry.path not in kept.unlisted), judged, types)
    left = {entry.path: names.owned(entry) for entry in entries.values()
            if entry.path in kept.unlisted or entry.path in mergers or names.is_merged(entry)}
    listed = without((names.owned(entry) for entry in entries.values() if entry.path not in left), left)
    returning = list(reachable(listed, judged))
    known = {path: name for path, name in _of_base(base, judged, types).items()
             if path in mergers or path not in entries}
    merged = _merged(kept, new_root, mergers, base, known, names, image, returning, progress)
    _tell(merged, report)
    scratch = new_root / SCRATCH
    try:
        folders.remove(scratch)
        scratch.mkdir(mode=0o700)
        _restore(Index(tuple(returning), kept.index.frames), kept, scratch, progress)
        accounts = {b"etc/" + name.encode(): data for name, data in names.files.items()}
        owners = left | {entry.path: names.owned(entry) for entry in entries.values() if entry.is_directory}
        mergedfiles.replace(new_root, {**merged.nodes, **accounts}, kept.folder, owners)
        _override(merged, new_root, report)
        placed = place(returning, scratch, new_root, judged, types, report)
        check(placed, new_root, progress)
    except OSError as error:
        raise DiskError(f"the precious files cannot be put back ({error.strerror}: {error.filename!r}); they are "
                        f"safe in {kept.archive}") from error
    finally:
        with suppress(OSError):
            folders.remove(scratch)
    report.unlisted += [printable(entry.path) for entry in missing(_unlisted(kept), new_root, progress)]
    return report


def _merged(kept: Kept, new_root: Path, mergers: Mapping[bytes, str], base: Base, known: Mapping[bytes, str],
            names: Names, image: Index, returning: list[Entry], progress: Progress | None) -> Outcome:
    """Merge what rules have merged; `known` names the mergers of what the old release is known to have had."""
    if not mergers and not known:
        return Outcome({}, (), {}, {})
    where = merging.contents(kept.index.entries, mergers.keys())
    found = keep.read_files(kept, frozenset(where.values()), progress)
    host: dict[bytes, Node] = {path: found[first] for path, first in where.items() if first in found}
    host |= {entry.path: Link(entry.link) for entry in kept.index.entries
             if entry.path in mergers and entry.type is EntryType.SYMLINK}
    tables = [b"etc/passwd", b"etc/group"]
    # what a merger may replace besides the host's own paths is what explains them: links of alternatives
    links = {entry.path for entry in image.entries if entry.path.startswith(alternatives.LINKS)}
    theirs = mergedfiles.of_image(new_root, kept.folder, sorted({*mergers, *known, *tables, *links}))
    accounts = {path: data for path in tables
                if isinstance(data := names.files.get(path[4:].decode(), theirs.get(path, b"")), bytes)}
    users, groups = (accounts.setdefault(path, b"") for path in tables)
    new = merging.world(users, groups, image.entries, returning)
    shipped = {path: host[path] for path in kept.known.shipped & host.keys()}
    old = {path: node for path, node in base.beside(host).items() if path in known}
    return merging.merge(host, theirs, {**old, **shipped}, {**known, **mergers}, new, accounts)


def _of_base(base: Base, judged: Judged, types: Mapping[bytes, EntryType]) -> dict[bytes, str]:
    """Return path -> name of its merger for what the old release is known to have had."""
    kinds = {path: EntryType.SYMLINK if isinstance(base.nodes.get(path), Link) else EntryType.FILE
             for path in (*base.nodes, *base.same)}
    return merging.chosen((Entry(path, kind, 0o644, 0, 0, 0) for path, kind in sorted(kinds.items())), judged, types)


def _has(image: Index, kept: Kept) -> Callable[[str], bool]:
    """Return what tells whether the new root will have a program: of the image, or come along."""
    return merging.world(b"", b"", image.entries, (
        entry for entry in kept.index.entries if entry.path not in kept.unlisted)).starts


def _override(merged: Outcome, new_root: Path, report: PutBackReport) -> None:
    ours, result = merged.host.get(statoverride.PATH), merged.nodes.get(statoverride.PATH)
    if isinstance(ours, bytes) and isinstance(result, bytes):
        report.notes += overrides.apply(new_root, ours, result, merged.accounts)


def _tell(merged: Outcome, report: PutBackReport) -> None:
    for path, fate in merged.fates():
        vars(report)[fate].append(printable(path))
    report.conflict += merged.of(Fate.CONFLICT)
    report.dropped += merged.of(Fate.DROPPED)
    report.notes += merged.of(Fate.NOTE)


def _types(image: Index) -> dict[bytes, EntryType]:
    return {entry.path: entry.type for entry in image.entries}


def _names(kept: Kept, new_root: Path, judged: Judged, base: Base, has: Callable[[str], bool], report: PutBackReport,
           progress: Progress | None) -> Names:
    merged = frozenset(path for path in _TABLES if (rule := judged.rule_for(path)) and rule.merge == ACCOUNTS)
    found = keep.read_files(kept, merged, progress)
    sides: tuple[Nodes, ...] = (found, mergedfiles.of_image(new_root, kept.folder, _TABLES), base.beside(found))
    old, image, before = ({_TABLES[path]: node for path, node in side.items()
                           if path in _TABLES and isinstance(node, bytes)} for side in sides)
    names = Names.merge(old, image, reachable(kept.index.entries, judged), before, has)
    report.notes += names.notes
    report.conflict += names.conflict
    report.dropped += names.dropped
    report.merged += sorted(f"etc/{name}" for name in names.files)
    return names


def _unlisted(kept: Kept) -> list[Entry]:
    """Return the unlisted entries, a further name of a file as that file: the first name is elsewhere, or nowhere."""
    entries = {entry.path: entry for entry in kept.index.entries}
    found = []
    for path in sorted(kept.unlisted & entries.keys()):
        entry = entries[path]
        found += list(without([entry], entries))
    return found


def _restore(index: Index, kept: Kept, scratch: Path, progress: Progress | None) -> None:
    from imaging.fetch import FrameFetcher
    from imaging.restore import restore
    from imaging.sources import FileSource

    source = FileSource(kept.archive)
    try:
        restore(index, FrameFetcher([source]), scratch, workers=1, progress=progress)
    finally:
        source.close()  # an open file would keep the archive's filesystem mounted
