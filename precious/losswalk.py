"""Looking for what an upgrade would lose (I/O, read-only): a living root against its release, or its packages.

In: a root, the policy in force, the outline of the release that it was installed from (or none). Out: a LossReport.
Content is read only where the inode leaves it open: its size is as before, and its time or its ctime is not. What
reads, reads beside the host's own work: this is meant to run in a process of its own that is nice to others.

Run as a program it reads a job as JSON from standard input and prints one JSON object a line: `{"entries": N}` while
it goes on, and the report, or the error, in the end.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from imaging.entry import ROOT, Entry, EntryType, printable
from imaging.outline import Comparison, Outline, Row
from imaging.scan import FileChangedError, TreeReader, walk
from plumbing import clock
from plumbing.errors import ConfigError, CorruptError, DiskError, RerootError
from precious import rpm
from precious.inquiry import Inquiry
from precious.losses import MAX_NOTES, Groups, Kind, LossReport, Lost, unknown
from precious.policy import Policy

NICE = 19
"""How far this program stands back, for the processor and (the kernel derives it) for the disk."""
TELL_EVERY = 5000
READ_BYTES = 4 << 30
"""Content that one walk reads at most, in bytes; what is left open after that counts by its times."""
ALTERNATIVES = b"/etc/alternatives/"
"""A link into this folder is a master or slave of an alternative, which has a merger of its own."""
_XATTRS = (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")
"""Extended attributes that an administrator sets; labels of SELinux and the like come and go by themselves."""
_LETTERS = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l", stat.S_IFCHR: "c", stat.S_IFBLK: "b",
            stat.S_IFIFO: "p"}


class LossWalk:
    """One walk of `root`; `since_ns` is when the release was restored, 0 when that is not known."""

    def __init__(self, root: Path, policy: Policy, outline: Outline | None = None, since_ns: int = 0) -> None:
        self._root, self._policy, self._since_ns = root, policy, since_ns
        self._release = Comparison(outline) if outline is not None else None
        self._inquiry = Inquiry(root, policy, clock.wall(), rpm.read)
        self._groups, self._notes, self._left = Groups(), list[str](), READ_BYTES
        self._unread = 0

    @property
    def has_packages(self) -> bool:
        """Whether there is a package database that can be read."""
        return self._inquiry.packages.known

    def report(self, baseline: str, tell: Callable[[int], None] = lambda _: None) -> LossReport:
        """Walk, and return what was found; `tell` is called with the entries so far. Raises DiskError."""
        began, made_s, entries = clock.monotonic(), clock.wall(), 0
        firsts: dict[bytes, Entry] = {}
        top: bytes | None = None
        with TreeReader(self._root) as reader:
            for entry, status in walk(self._root, one_file_system=True, note=self._note, forgive=True,
                                      descend=lambda folder: not self._policy.ignores_below(folder)):
                entries += 1
                if entries % TELL_EVERY == 0:
                    tell(entries)
                if status.st_nlink > 1 and entry.is_file and self._policy.asks_facts:
                    firsts[entry.path] = entry
                if top is not None and not entry.path.startswith(top + b"/"):
                    top = None
                kind = self._judge(entry, status, reader)
                if kind is Kind.ADDED and entry.is_directory:
                    top = top or entry.path
                elif kind is not None:
                    self._lost(entry, status, kind, top, firsts.get(entry.link))
        if self._unread:
            self._note(f"{self._unread} files whose times say nothing were not read, for there were more than "
                       f"{READ_BYTES >> 30} GiB of them; they count as unchanged")
        return LossReport(round(made_s, 3), round(clock.monotonic() - began, 3), baseline, self._policy.digest, entries,
                          self._groups.findings(), tuple(self._notes[:MAX_NOTES]))

    def _note(self, sentence: str) -> None:
        if len(self._notes) < MAX_NOTES and not sentence.endswith(("is another filesystem; its content is left out",
                                                                   "is a socket; it is left out")):
            self._notes.append("".join(letter if letter.isprintable() else "?" for letter in sentence)[:400])

    def _lost(self, entry: Entry, status: os.stat_result, kind: Kind, top: bytes | None, first: Entry | None) -> None:
        path = entry.path
        if self._policy.ignores(path) or self._inquiry.rule_for(entry, first) is not None or (
                entry.link.startswith(ALTERNATIVES) and stat.S_ISLNK(status.st_mode)):
            return
        packages = self._inquiry.packages
        package = None if kind is Kind.ADDED and self._release is None else packages.owner(path)
        if package is not None and self._release is not None and self._shipped(entry, status, always=True):
            kind = Kind.INSTALLED if kind is Kind.ADDED else Kind.UPDATED
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        self._groups.add(Lost(path, kind, size, max(0, status.st_mtime_ns // 10**9), package,
                              top, not entry.is_directory and self._policy.looks_at(path)))

    # -- one entry ------------------------------------------------------------------------------------------------

    def _judge(self, entry: Entry, status: os.stat_result, reader: TreeReader) -> Kind | None:
        """Return what became of an entry since it was installed; None: nothing."""
        if entry.path == ROOT:
            return None
        if self._release is None:
            return self._by_packages(entry, status)
        row = self._release.at(entry.path)
        if row is None:
            return Kind.ADDED
        if not same_inode(row, entry, status):
            return Kind.CHANGED
        if row.type != EntryType.FILE or (row.mtime_ns == status.st_mtime_ns and 0 < status.st_ctime_ns <=
                                          self._since_ns):
            return None
        if not self._may_read(status, must=row.mtime_ns != status.st_mtime_ns):
            return Kind.CHANGED if row.mtime_ns != status.st_mtime_ns else None
        return None if _digest(entry, reader, status) in {row.digest, None} else Kind.CHANGED

    def _by_packages(self, entry: Entry, status: os.stat_result) -> Kind | None:
        packages = self._inquiry.packages
        package = packages.owner(entry.path)
        if package is None and entry.path not in packages.conffiles:
            return Kind.ADDED
        if not stat.S_ISREG(status.st_mode):
            return None
        since_ns = packages.unpacked_ns(package) if package is not None else 0
        if max(status.st_mtime_ns, status.st_ctime_ns) <= since_ns:
            return None
        shipped = self._shipped(entry, status, always=status.st_mtime_ns > since_ns)
        if shipped is None:
            return Kind.CHANGED if status.st_mtime_ns > since_ns > 0 else None
        return None if shipped else Kind.CHANGED

    def _shipped(self, entry: Entry, status: os.stat_result, *, always: bool) -> bool | None:
        """Tell whether a package's file is as it was brought; None when nobody knows, or it was too much to read."""
        if not stat.S_ISREG(status.st_mode):
            return True  # packages name links and folders, and say no more of them
        return self._inquiry.packages.as_shipped(entry.path) if self._may_read(status, must=always) else None

    def _may_read(self, status: os.stat_result, *, must: bool) -> bool:
        if status.st_size > self._left:
            self._unread += not must
            return False
        self._left -= status.st_size
        return True


def same_inode(row: Row, entry: Entry, status: os.stat_result) -> bool:
    """Tell whether everything but the content of an inode is as the release has it, times left out."""
    if row.type != _LETTERS.get(stat.S_IFMT(status.st_mode)) or (row.uid, row.gid) != (status.st_uid, status.st_gid):
        return False
    if row.type == EntryType.SYMLINK:
        return entry.type is not EntryType.SYMLINK or row.link == entry.link
    return (row.mode == stat.S_IMODE(status.st_mode)
            and (row.type != EntryType.FILE or row.size == status.st_size)
            and (entry.type is EntryType.LINK or _told(row.xattrs) == _told(entry.xattrs)))


def _told(pairs: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(pair for pair in pairs if pair[0] in _XATTRS) if pairs else pairs


def _digest(entry: Entry, reader: TreeReader, status: os.stat_result) -> bytes | None:
    """Return the BLAKE3 of a file; empty when it does not hold still, None when it went away meanwhile."""
    hasher = blake3()
    try:
        if entry.type is EntryType.LINK:
            entry = reader.again(entry)
        for piece in reader.pieces(entry):
            hasher.update(piece)
    except FileChangedError:
        return b"" if status.st_size else None
    except DiskError:
        return b""
    return hasher.digest()


# -- as a program ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Do the job on standard input: `root`, `policy`, `baseline`, and `index` (a file) and `since_s` of a release."""
    os.nice(NICE)
    try:
        report = _run(json.load(sys.stdin))
    except RerootError as error:
        _print({"kind": error.kind.value, "value": error.sentence})
        return error.exit_code
    _print({"report": report.to_json()})
    return 0


def _run(job: object) -> LossReport:
    if not isinstance(job, dict) or not isinstance(job.get("policy"), dict):
        raise ConfigError("the job on standard input is none; the agent writes it")
    policy, outline = Policy.from_json(job["policy"]), None
    if job.get("index"):
        try:
            outline = Outline(Path(job["index"]).read_bytes())
        except OSError as error:
            raise CorruptError(f"{printable(os.fsencode(job['index']))} cannot be read ({error.strerror})") from error
    made = LossWalk(Path(job["root"]), policy, outline, int(float(job.get("since_s", 0)) * 1e9))
    if outline is None and not made.has_packages:
        return unknown(policy.digest, clock.wall())
    return made.report(str(job["baseline"]), lambda entries: _print({"entries": entries}))


def _print(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
