"""Kept entries from a scratch folder into their places in the new root (I/O), and each of them read back.

Conflicts are decided by what the image holds, not by what lies in the new root: after a power cut that may be the work
of this module itself, and doing it again must end, and tell, the same.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from imaging import verify
from imaging.entry import ROOT, Entry, EntryType, Progress, parent, printable
from imaging.folders import Folders
from imaging.index import MAX_NAME
from imaging.inodes import finish
from plumbing.errors import CorruptError
from precious.circumstances import Judged
from precious.returning import without
from precious.rules import When

SUFFIX = b".precious"
"""Ends the name of a file that was put beside the image's own; a number may follow it."""

_CONTENT = frozenset({"presence", "reading", "type", "size", "content", "link", "device"})
"""What a difference is called by imaging.verify when it is one of content, not of owner, mode or time."""
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass
class PutBackReport:
    """What became of every kept entry; paths as a person reads them.

    `put_back` is as the host had it, `merged` of host and image, `beside` under another name, `image_won` left to the
    image, `unlisted` in the archive only. `conflict` and `dropped` are sentences of mergers: what gave way to what, and
    what of the host is not in the result; `notes` are sentences too.
    """

    put_back: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    image_won: list[str] = field(default_factory=list)
    conflict: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Return the lists by their names."""
        return dict(vars(self))


def place(entries: list[Entry], scratch: Path, new_root: Path, judged: Judged, image: Mapping[bytes, EntryType],
          report: PutBackReport) -> list[Entry]:
    """Move each of `entries`, in tree order, from `scratch` to where it belongs; `image` is what the release has.

    Returns what was placed as it ought to be in the new root now: under the paths it got, folders with the attributes
    that could be set.
    """
    placing = _Placing(judged, image, report, {*image, *(entry.path for entry in entries)})
    with Folders(new_root) as targets, Folders(scratch) as sources:
        for entry in entries:
            if entry.path == ROOT:
                continue
            target = _enter(targets, parent(entry.path))
            if target is None:
                report.notes.append(f"/{printable(entry.path)} was not put back: in the new image a folder on its way "
                                    "is something else; it is in the archive")
            elif entry.is_directory:
                placing.folder(target, entry)
            else:
                placing.file(sources.enter(parent(entry.path)), target, entry)
        # a folder's times last, when nothing more changes in it
        folders = [_own(targets.enter(entry.path), entry, report) for entry in reversed(placing.folders)]
    left = {entry.path: entry for entry in entries if entry.path not in placing.where}
    files = without((entry for entry in entries if entry.path in placing.where), left)
    return [*reversed(folders), *(
        replace(entry, path=placing.where[entry.path],
                link=placing.where[entry.link] if entry.type is EntryType.LINK else entry.link) for entry in files)]


@dataclass
class _Placing:
    """What was placed so far: folders that are the host's now, and of files old path -> new path."""

    judged: Judged
    image: Mapping[bytes, EntryType]
    report: PutBackReport
    taken: set[bytes]
    folders: list[Entry] = field(default_factory=list)
    where: dict[bytes, bytes] = field(default_factory=dict)

    def folder(self, target: int, entry: Entry) -> None:
        """Make a kept folder that the image lacks."""
        name = entry.path.rpartition(b"/")[2]
        kind = _kind(target, name)
        if kind == 0:
            os.mkdir(name, 0o700, dir_fd=target)
        elif kind != stat.S_IFDIR:
            self.report.notes.append(f"/{printable(entry.path)} is a folder on the host and something else in the "
                                     "image")
            return
        if entry.path not in self.image or self.judged.rule_for(entry.path) is not None:
            self.folders.append(entry)

    def file(self, source: int, target: int, entry: Entry) -> None:
        """Move anything but a folder."""
        rule = self.judged.rule_for(entry.path)
        # what no rule keeps is a link that a pattern leads through; the image's own way goes before it
        when = rule.when if rule is not None else When.IMAGE
        there, path = self.image.get(entry.path), entry.path
        if there is not None and when is When.IMAGE:
            self.report.image_won.append(printable(path))
            return
        told = self.report.put_back
        if there is EntryType.DIRECTORY or (there is not None and when is When.BESIDE):
            path, told = free_name(path, self.taken), self.report.beside
            self.taken.add(path)
        os.rename(entry.path.rpartition(b"/")[2], path.rpartition(b"/")[2], src_dir_fd=source, dst_dir_fd=target)
        self.where[entry.path] = path
        told.append(printable(path))


def free_name(path: bytes, taken: Container[bytes]) -> bytes:
    """Return a path beside `path` that is not taken: NAME.precious, NAME.precious.1 …, NAME cut short if need be."""
    above, slash, name = path.rpartition(b"/")
    for number in count():
        suffix = SUFFIX + (b".%d" % number if number else b"")
        found = above + slash + name[:MAX_NAME - len(suffix)] + suffix
        if found not in taken:
            return found
    raise AssertionError("unreachable: numbers do not end")


def _enter(folders: Folders, path: bytes) -> int | None:
    """Return a descriptor of a folder reached through no link, or None when it is no folder."""
    try:
        return folders.enter(path)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        return None


def _kind(folder: int, name: bytes) -> int:
    """Return the file type bits of a name, 0 when there is nothing."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0


def _own(handle: int, entry: Entry, report: PutBackReport) -> Entry:
    """Make a folder the host's own; return it with the attributes that it really has, each other one reported."""
    finish(handle, replace(entry, xattrs=()), (-1, -1))
    wanted = dict(entry.xattrs)
    found = {os.fsencode(name): os.getxattr(handle, name) for name in os.listxattr(handle)}
    for name in sorted(wanted.keys() | found.keys()):
        try:
            if name not in wanted:  # inherited from a folder of the image, or the image's own
                os.removexattr(handle, name)
                del found[name]
            elif found.get(name) != wanted[name]:
                os.setxattr(handle, name, wanted[name])
                found[name] = wanted[name]
        except OSError as error:
            report.notes.append(f"/{printable(entry.path)}: attribute {printable(name)} of the folder could not be "
                                f"{'set' if name in wanted else 'removed'} ({error.strerror})")
    os.utime(handle, ns=(entry.mtime_ns, entry.mtime_ns))
    return replace(entry, xattrs=tuple(sorted(found.items())))


def check(placed: Iterable[Entry], new_root: Path, progress: Progress | None = None) -> None:
    """Compare entries that `place` returned with what the disk holds; raises CorruptError when one differs."""
    rows = list(placed)
    verify.write_out(new_root)
    told = _Told("check", sum(entry.size for entry in rows), progress)
    with Folders(new_root) as folders, Folders(new_root) as others:
        wrong = [mismatch for entry in rows for mismatch in verify.compare(entry, folders, others, told)]
    if wrong:
        raise CorruptError(f"{len(wrong)} things that were put back do not read as they were kept, the first is "
                           f"{wrong[0]}; the disk is not to be trusted")


def missing(entries: Iterable[Entry], new_root: Path, progress: Progress | None = None) -> list[Entry]:
    """Return those of `entries` that `new_root` does not have with the same content; owner and times do not matter."""
    rows = list(entries)
    told = _Told("compare", sum(entry.size for entry in rows), progress)
    with Folders(new_root) as folders, Folders(new_root) as others:
        return [entry for entry in rows
                if any(mismatch.what in _CONTENT for mismatch in verify.compare(entry, folders, others, told))]


class _Told:
    """Counts bytes for a progress callback."""

    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self._what, self._total, self._progress = what, total, progress
        self._done = 0

    def __call__(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._what, self._done, self._total)
