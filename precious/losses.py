"""What an upgrade would lose, for a person to decide on (pure: rows of a walk in, findings out; JSON both ways).

A loss is something that was added or changed on a host and that no rule keeps. Losses are told in findings: a folder
that is new as a whole, the new files of a folder that was there before, the files of a package that were changed, a
package that was installed or updated. A finding has an id made of what it is about. Of a new folder or a package that
is its name, so that an answer holds whatever comes to lie in it; of single files it is all their names, so that one
more asks anew. docs/protocols/loss.md.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

from imaging.entry import ROOT, parent, printable
from plumbing.errors import CorruptError
from precious.rules import LossRule

MAX_FINDINGS = 200
"""More findings than these are told as one: nobody reads on, and everything there is must be answered for."""
MAX_GROUPS = 20_000
"""Beyond so many groups a walk puts everything into one, so that its memory has an end."""
SAMPLES = 10
"""How many of a finding's files are named, the newest."""
MAX_PATH = 400
"""Characters of a path that are told."""
MAX_NOTES = 20
_ID = re.compile(r"[0-9a-f]{12}")
_BIG = 1 << 62


class Kind(StrEnum):
    """What happened to the files of a finding, since the release or by the package database."""

    ADDED = "added"
    CHANGED = "changed"
    INSTALLED = "installed"
    """Files of a package that the release does not have, as the package brought them."""
    UPDATED = "updated"
    """Files of a package that the release has in another version, as the package brought them; nobody is asked."""
    MORE = "more"
    """Everything that there was no room to tell."""


@dataclass(frozen=True)
class Lost:
    """One file that would be lost. `top` is the topmost new folder it lies in; `archived`: recovery keeps a copy."""

    path: bytes
    kind: Kind
    size: int
    mtime_s: int
    package: str | None = None
    top: bytes | None = None
    archived: bool = False


@dataclass(frozen=True)
class Finding:
    """Losses that are decided on together.

    `where` is a folder or a package, `whole` says that everything below that folder is new. `newest_s` is the time of
    the newest file in seconds since 1970, `archived` the number of files that recovery keeps a copy of, `names` are
    some of the files, the newest first, and `keep` globs for a rule that keeps all of them; `modified` belongs to it.
    """

    id: str
    kind: Kind
    where: str
    whole: bool
    files: int
    bytes: int
    newest_s: int
    archived: int = 0
    names: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    modified: bool = False

    @property
    def asks(self) -> bool:
        """Whether somebody has to answer for it."""
        return self.kind is not Kind.UPDATED

    def to_json(self) -> dict[str, object]:
        """Return what travels."""
        return {"id": self.id, "kind": self.kind.value, "where": self.where, "whole": self.whole, "files": self.files,
                "bytes": self.bytes, "newest_s": self.newest_s, "archived": self.archived, "names": list(self.names),
                "keep": list(self.keep), "modified": self.modified}


@dataclass(frozen=True)
class LossReport:
    """What one walk found.

    `baseline` says what the root was compared with: a release, its digest and when it was installed, or `packages`.
    `policy` is the digest of the policy in force then, `made_s` wall seconds.
    """

    made_s: float
    seconds: float
    baseline: str
    policy: str
    entries: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def open(self, accepted: Collection[str]) -> list[Finding]:
        """Return the findings that nobody answered for yet."""
        return [finding for finding in self.findings if finding.asks and finding.id not in accepted]

    def to_json(self) -> dict[str, object]:
        """Return what travels and is stored."""
        return {"spec": 1, "made_s": self.made_s, "seconds": self.seconds, "baseline": self.baseline,
                "policy": self.policy, "entries": self.entries, "findings": [one.to_json() for one in self.findings],
                "notes": list(self.notes)}

    @classmethod
    def from_json(cls, raw: object) -> LossReport:
        """Read what a host sent; raises CorruptError for anything that `to_json` cannot have written."""
        value = _table(raw, ("spec", "made_s", "seconds", "baseline", "policy", "entries", "findings", "notes"))
        if value["spec"] != 1:
            raise _bad("spec")
        found = _list(value["findings"], MAX_FINDINGS + 1, "findings")
        report = cls(_number(value["made_s"], "made_s"), _number(value["seconds"], "seconds"),
                     _text(value["baseline"], "baseline"), _text(value["policy"], "policy"),
                     _count(value["entries"], "entries"), tuple(map(_finding, found)),
                     _texts(value["notes"], MAX_NOTES, "notes"))
        if len({finding.id for finding in report.findings}) != len(report.findings):
            raise _bad("findings, of which two have one id")
        return report


def blocks(rule: LossRule, report: LossReport, accepted: Collection[str]) -> list[Finding]:
    """Return the findings for which a host must not be upgraded now: nobody lifts `refuse` by accepting."""
    match rule:
        case LossRule.WARN:
            return []
        case LossRule.ASK:
            return report.open(accepted)
        case LossRule.REFUSE:
            return report.open(())


def unknown(policy: str, made_s: float) -> LossReport:
    """Return the report of a root that there is nothing to compare with: one question, about everything."""
    told = blake2b(b"everything", digest_size=6).hexdigest()
    return LossReport(made_s, 0.0, "nothing", policy, 0, (Finding(told, Kind.MORE, "/", True, 0, 0, 0),), (
        "this host has neither a release nor a package database that can be read here, so everything that no rule "
        "keeps may be a loss",))


def glob_of(path: bytes) -> str:
    """Return a path as a glob for a policy: what TOML or a glob would read otherwise becomes `?`, any one letter."""
    text = path.decode("utf-8", "surrogateescape")
    return "/" + "".join("?" if letter in '*?"\\' or not letter.isprintable() else letter for letter in text)


def shown(path: bytes) -> str:
    """Return an absolute path as it is told: inert, and cut in the middle when it is long."""
    text = "/" if path == ROOT else "/" + printable(path)
    return text if len(text) <= MAX_PATH else f"{text[:MAX_PATH // 2]}…{text[1 - MAX_PATH // 2:]}"


@dataclass
class _Group:
    files: int = 0
    size: int = 0
    newest_s: int = 0
    archived: int = 0
    names: int = 0
    samples: list[tuple[int, bytes]] = field(default_factory=list)

    def add(self, row: Lost) -> None:
        self.files += 1
        self.size += row.size
        self.newest_s = max(self.newest_s, row.mtime_s)
        self.archived += row.archived
        # a sum, for names come in any order; of 128 bits, so that no name makes up for another
        self.names = self.names + int.from_bytes(blake2b(row.path, digest_size=16).digest()) & (1 << 128) - 1
        (heapq.heappush if len(self.samples) < SAMPLES else heapq.heappushpop)(self.samples, (row.mtime_s, row.path))


_Key = tuple[Kind, bool, bytes]
_REST: _Key = (Kind.MORE, False, b"")


class Groups:
    """Takes losses as they are found and keeps what is told of them: memory is for groups, not for files."""

    def __init__(self) -> None:
        self._groups: dict[_Key, _Group] = {}

    def add(self, row: Lost) -> None:
        """Count one loss."""
        key = _key(row)
        if key not in self._groups and len(self._groups) >= MAX_GROUPS:
            key = _REST
        self._groups.setdefault(key, _Group()).add(row)

    def findings(self) -> tuple[Finding, ...]:
        """Return the findings, those that ask first, then the newest first; beyond MAX_FINDINGS one for the rest."""
        made = [(key, group, _made(key, group)) for key, group in self._groups.items() if key is not _REST]
        made.sort(key=lambda row: (not row[2].asks, -row[2].newest_s, row[2].where, row[2].id))
        rest = self._groups.get(_REST, _Group())
        for _, group, finding in made[MAX_FINDINGS:]:
            if finding.asks:
                rest = _sum(rest, group)
        told = tuple(finding for _, _, finding in made[:MAX_FINDINGS])
        return (*told, _made(_REST, rest)) if rest.files else told


def _key(row: Lost) -> _Key:
    if row.kind in {Kind.INSTALLED, Kind.UPDATED} or (row.kind is Kind.CHANGED and row.package is not None):
        return row.kind, False, (row.package or "").encode()
    if row.kind is Kind.ADDED and row.top is not None:
        return row.kind, True, row.top
    return row.kind, False, b"/" + parent(row.path)  # no package has a slash in its name


def _sum(one: _Group, other: _Group) -> _Group:
    return _Group(one.files + other.files, one.size + other.size, max(one.newest_s, other.newest_s),
                  one.archived + other.archived, one.names + other.names & (1 << 128) - 1,
                  heapq.nlargest(SAMPLES, one.samples + other.samples))


def _made(key: _Key, group: _Group) -> Finding:
    kind, whole, what = key
    by_name = whole or kind in {Kind.INSTALLED, Kind.UPDATED}
    told = b"\0".join((kind.value.encode(), b"whole" if whole else b"", what,
                       b"" if by_name else group.names.to_bytes(16)))
    paths = [path for _, path in sorted(group.samples, reverse=True)]
    place = what.decode("utf-8", "replace") if kind is not Kind.ADDED and not what.startswith(b"/") else shown(
        what.removeprefix(b"/") or ROOT)
    return Finding(blake2b(told, digest_size=6).hexdigest(), kind, place if kind is not Kind.MORE else "", whole,
                   group.files, group.size, group.newest_s, group.archived, tuple(map(shown, paths)),
                   *_rule(kind, what if whole else None, paths, group.files))


def _rule(kind: Kind, whole: bytes | None, paths: list[bytes], files: int) -> tuple[tuple[str, ...], bool]:
    """Return the globs of a rule that keeps a finding, and whether it is for what was modified only."""
    if kind in {Kind.INSTALLED, Kind.UPDATED, Kind.MORE}:
        return (), False
    if whole is not None:
        return _short((glob_of(whole) + "/**",)), False
    if files <= len(paths):
        return _short(sorted(map(glob_of, paths))), False
    folders = {b"" if (folder := parent(path)) == ROOT else folder + b"/" for path in paths}
    return _short(sorted(glob_of(folder) + "*" for folder in folders)), True


def _short(globs: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(globs))
    return found if all(len(glob) <= 4 * MAX_PATH for glob in found) else ()


# -- reading what a host sent --------------------------------------------------------------------------------------


def _bad(what: str) -> CorruptError:
    return CorruptError(f"the loss report's {what} will not do; are host and server of the same version?")


def _table(raw: object, keys: Collection[str]) -> Mapping[str, object]:
    if not isinstance(raw, dict) or set(raw) != set(keys):
        raise _bad("fields")
    return raw


def _list(raw: object, most: int, what: str) -> list[object]:
    if not isinstance(raw, list) or len(raw) > most:
        raise _bad(what)
    return raw


def _text(raw: object, what: str, most: int = 4 * MAX_PATH) -> str:
    if not isinstance(raw, str) or len(raw) > most or not raw.isprintable():
        raise _bad(what)
    return raw


def _texts(raw: object, most: int, what: str) -> tuple[str, ...]:
    return tuple(_text(one, what) for one in _list(raw, most, what))


def _count(raw: object, what: str) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= _BIG:
        raise _bad(what)
    return raw


def _number(raw: object, what: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw < 1e12:
        raise _bad(what)
    return raw


def _flag(raw: object, what: str) -> bool:
    if not isinstance(raw, bool):
        raise _bad(what)
    return raw


def _finding(raw: object) -> Finding:
    value = _table(raw, ("id", "kind", "where", "whole", "files", "bytes", "newest_s", "archived", "names", "keep",
                         "modified"))
    name, kind = _text(value["id"], "id"), _text(value["kind"], "kind")
    if not _ID.fullmatch(name) or kind not in list(Kind):
        raise _bad("findings")
    return Finding(name, Kind(kind), _text(value["where"], "where"), _flag(value["whole"], "whole"),
                   _count(value["files"], "files"), _count(value["bytes"], "bytes"),
                   _count(value["newest_s"], "newest_s"), _count(value["archived"], "archived"),
                   _texts(value["names"], SAMPLES, "names"), _texts(value["keep"], SAMPLES, "keep"),
                   _flag(value["modified"], "modified"))
