"""Putting what was kept into the new root (I/O), conflicts decided by the policy, every entry reported.

The archive is first restored, with all metadata, into a scratch folder of the new root, by the code that restores
releases; then each entry is renamed into its place through folder descriptors that follow no link, so nothing of
the old root or of the image can lead a file elsewhere. Doing it twice gives the same root.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from imaging.entry import ROOT, Entry, EntryType, parent, printable
from imaging.index import Index
from plumbing.errors import CorruptError, DiskError
from precious import accounts, keep
from precious.keep import Kept
from precious.policy import MERGED_PATHS, Policy, When

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRATCH = ".reroot-precious"
SUFFIX = b".precious"
"""Ends the name of a file that was put beside the image's own."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class PutBackReport:
    """What became of every kept entry; paths as a person reads them."""

    put_back: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    image_won: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Return the lists by their names."""
        return dict(vars(self))


def put_back(kept_dir: Path, new_root: Path, policy: Policy) -> PutBackReport:
    """Put the archive in `kept_dir` back into `new_root`; see the module for how.

    Unlisted files stay in the archive; the report names those that the new root does not have just so.
    Raises CorruptError when the archive or a file put back is not what was kept, DiskError when writing fails.
    """
    kept, report = keep.verify(kept_dir), PutBackReport()
    report.notes += kept.notes
    names = _Names.of(kept, new_root, policy, report)
    left = {entry.path: names.owned(entry) for entry in kept.index.entries
            if entry.path in kept.unlisted or names.is_merged(entry)}
    listed = list(_whole((names.owned(entry) for entry in kept.index.entries if entry.path not in left), left))
    scratch = new_root / SCRATCH
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        _restore(Index(tuple(_reachable(listed, policy)), kept.index.frames), kept, scratch)
        _write_accounts(names.files, new_root)
        _place(listed, scratch, new_root, policy, report)
    except OSError as error:
        raise DiskError(f"the precious files cannot be put back ({error.strerror}: {error.filename!r}); they are "
                        f"safe in {kept.archive}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report.unlisted += [printable(entry.path) for entry in kept.index.entries
                        if entry.path in kept.unlisted and not _same(new_root, entry)]
    return report


def _whole(entries: Iterable[Entry], left: Mapping[bytes, Entry]) -> Iterator[Entry]:
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


def _reachable(entries: Iterable[Entry], policy: Policy) -> Iterator[Entry]:
    """Leave out folders that no rule keeps and that lead to nothing here: they are the image's business."""
    rows = list(entries)
    needed = {ROOT}
    for entry in rows:
        if not entry.is_directory or policy.rule_for(entry.path) is not None:
            way = entry.path
            while (way := parent(way)) not in needed:
                needed.add(way)
    return (entry for entry in rows if not entry.is_directory or entry.path in needed or
            policy.rule_for(entry.path) is not None)


def _restore(index: Index, kept: Kept, scratch: Path) -> None:
    from imaging.fetch import FrameFetcher
    from imaging.restore import restore
    from imaging.sources import FileSource

    source = FileSource(kept.archive)
    try:
        restore(index, FrameFetcher([source]), scratch, workers=1)
    finally:
        source.close()  # an open file would keep the archive's filesystem mounted


# -- accounts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """The merged account files, and how the ids of kept files change with them."""

    files: Mapping[str, bytes]
    users: Mapping[int, int]
    groups: Mapping[int, int]

    @classmethod
    def of(cls, kept: Kept, new_root: Path, policy: Policy, report: PutBackReport) -> _Names:
        merged = frozenset(path for path in MERGED_PATHS if (rule := policy.rule_for(path)) and rule.when is When.MERGE)
        found = keep.read_files(kept, merged)
        if b"etc/passwd" not in found or b"etc/group" not in found:
            return cls({}, {}, {})
        old = {os.fsdecode(path.removeprefix(b"etc/")): data for path, data in found.items()}
        new = {name: path.read_bytes() for name in accounts.FILES
               if (path := new_root / "etc" / name).is_file() and not path.is_symlink()}
        users, groups = _ids(old["passwd"]), _ids(old["group"])
        rows = [entry for entry in kept.index.entries if not entry.is_directory]
        result = accounts.merge(old, new, {users[entry.uid] for entry in rows if entry.uid in users},
                                {groups[entry.gid] for entry in rows if entry.gid in groups})
        report.notes += result.notes
        report.merged += sorted(printable(path) for path in found)
        return cls({name: result.files[name] for name in old}, _moves(users, result.files["passwd"]),
                   _moves(groups, result.files["group"]))

    def is_merged(self, entry: Entry) -> bool:
        """Tell whether an entry is one of the account files that were merged."""
        return entry.path.startswith(b"etc/") and os.fsdecode(entry.path[4:]) in self.files

    def owned(self, entry: Entry) -> Entry:
        """Return the entry with the ids its owner and group have in the new root."""
        return replace(entry, uid=self.users.get(entry.uid, entry.uid), gid=self.groups.get(entry.gid, entry.gid))


def _ids(table: bytes) -> dict[int, str]:
    """Return id -> name of a passwd or group file; the first name of an id counts."""
    found: dict[int, str] = {}
    for line in table.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[2].isascii() and fields[2].isdigit():
            found.setdefault(int(fields[2]), fields[0])
    return found


def _moves(old: Mapping[int, str], new: bytes) -> dict[int, int]:
    numbers = {name: number for number, name in _ids(new).items()}
    return {number: numbers[name] for number, name in old.items() if numbers.get(name, number) != number}


def _write_accounts(files: Mapping[str, bytes], new_root: Path) -> None:
    """Replace the account files in the new root; each keeps the owner and mode that the image gave it."""
    with _folder(new_root, b"etc") as folder:
        if folder is None and files:
            raise CorruptError(f"{new_root}/etc is no folder, so the accounts cannot be put there; correct the release")
        for name, data in files.items():
            assert folder is not None
            _write_account(folder, name, data)


def _write_account(folder: int, name: str, data: bytes) -> None:
    secret, fresh = name in {"shadow", "gshadow"}, f".{name}.reroot"
    try:
        owner = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        owner = None
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=folder)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        os.fchown(handle, owner.st_uid if owner else 0, owner.st_gid if owner else 0)
        regular = owner is not None and stat.S_ISREG(owner.st_mode)
        os.fchmod(handle, stat.S_IMODE(owner.st_mode) if owner and regular else 0o600 if secret else 0o644)
    os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)


# -- placing -------------------------------------------------------------------------------------------------


@contextmanager
def _folder(root: Path, path: bytes) -> Iterator[int | None]:
    """Yield a descriptor of root/path reached through no link, or None when that is not a folder."""
    handle = os.open(root, _FOLDER)
    try:
        for name in path.split(b"/") if path != ROOT else ():
            try:
                below = os.open(name, _FOLDER, dir_fd=handle)
            except OSError:
                os.close(handle)
                handle = -1
                break
            os.close(handle)
            handle = below
        yield None if handle < 0 else handle
    finally:
        if handle >= 0:
            os.close(handle)


def _kind(folder: int, name: bytes) -> int:
    """Return the file type bits of a name, 0 when there is nothing."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0


def _place(entries: list[Entry], scratch: Path, new_root: Path, policy: Policy, report: PutBackReport) -> None:
    ours: list[Entry] = []
    for entry in entries:
        if entry.path == ROOT:
            continue
        rule = policy.rule_for(entry.path)
        with _folder(new_root, parent(entry.path)) as target:
            if target is None:
                report.notes.append(f"/{printable(entry.path)} was not put back: in the new image a folder on its way "
                                    "is something else; it is in the archive")
                continue
            if entry.is_directory:
                if _make_folder(target, entry, report) or rule is not None:
                    ours.append(entry)
                continue
            with _folder(scratch, parent(entry.path)) as source:
                assert source is not None
                _place_file(source, target, entry, rule.when if rule else When.HOST, report)
    for entry in reversed(ours):  # a folder's times last, when nothing more changes in it
        with _folder(new_root, entry.path) as handle:
            if handle is not None:
                _own_folder(handle, entry)
    _check(entries, new_root, report)


def _make_folder(target: int, entry: Entry, report: PutBackReport) -> bool:
    """Make a kept folder that the image lacks; return whether it was made."""
    name = entry.path.rpartition(b"/")[2]
    kind = _kind(target, name)
    if kind == 0:
        os.mkdir(name, 0o700, dir_fd=target)
    elif kind != stat.S_IFDIR:
        report.notes.append(f"/{printable(entry.path)} is a folder on the host and something else in the image")
    return kind == 0


def _own_folder(handle: int, entry: Entry) -> None:
    os.fchown(handle, entry.uid, entry.gid)
    os.fchmod(handle, entry.mode)
    for name, value in entry.xattrs:
        with suppress(OSError):
            os.setxattr(handle, name, value)
    os.utime(handle, ns=(entry.mtime_ns, entry.mtime_ns))


def _place_file(source: int, target: int, entry: Entry, when: When, report: PutBackReport) -> None:
    name, shown = entry.path.rpartition(b"/")[2], printable(entry.path)
    kind = _kind(target, name)
    clash = kind == stat.S_IFDIR
    if kind and when is When.IMAGE:
        report.image_won.append(shown)
    elif clash or (kind and when is When.BESIDE):
        os.rename(name, name + SUFFIX, src_dir_fd=source, dst_dir_fd=target)
        report.beside.append(shown + os.fsdecode(SUFFIX))
    else:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        report.put_back.append(shown)


def _check(entries: list[Entry], new_root: Path, report: PutBackReport) -> None:
    """Read every file that was put back again and compare it with what was kept."""
    done = set(report.put_back)
    for entry in entries:
        if entry.is_file and printable(entry.path) in done and not _same(new_root, entry):
            raise CorruptError(f"/{printable(entry.path)} was put back and does not read as it was kept; the disk is "
                               "not to be trusted")


def _link_text(folder: int, name: bytes) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _same(root: Path, entry: Entry) -> bool:
    with _folder(root, parent(entry.path)) as folder:
        if folder is None:
            return False
        if entry.type is EntryType.SYMLINK:
            return _link_text(folder, entry.path.rpartition(b"/")[2]) == entry.link
        try:
            handle = os.open(entry.path.rpartition(b"/")[2], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                             dir_fd=folder)
        except OSError:
            return False
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode) or os.fstat(handle).st_size != entry.size:
            return False
        hasher = blake3()
        while piece := stream.read(1 << 20):
            hasher.update(piece)
        return hasher.digest() == entry.digest
