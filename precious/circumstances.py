"""What was known of a root when its files were kept, so that its rules are judged the same ever after (pure).

Some conditions of rules cannot be answered from an archive: how old a file was then, whose package it was, whether it
had been changed. The answers that were asked for are written beside the archive.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imaging.entry import Entry, EntryType
from precious.conditions import Facts
from precious.policy import Policy
from precious.rules import Rule

_TYPES = {EntryType.DIRECTORY: "directory", EntryType.FILE: "file", EntryType.LINK: "file", EntryType.SYMLINK: "link",
          EntryType.CHAR: "device", EntryType.BLOCK: "device", EntryType.FIFO: "fifo"}


@dataclass(frozen=True)
class Circumstances:
    """The answers: when it was (wall seconds), the names of ids, and of paths that were asked about their answer.

    `shipped` are files to be merged that were just as their package had brought them.
    """

    now_s: float | None = None
    users: Mapping[int, str] | None = None
    owned: Mapping[bytes, bool] | None = None
    modified: Mapping[bytes, bool] | None = None
    shipped: frozenset[bytes] = frozenset()

    def facts(self, entry: Entry, first: Entry | None = None) -> Facts:
        """Return what is known of an entry; `first` is what a hard link joins, where it is known."""
        size = entry.size if entry.is_file else first.size if first is not None else None
        return Facts(
            _TYPES[entry.type], entry.uid, None if self.users is None else self.users.get(entry.uid, ""), size,
            None if self.now_s is None else self.now_s - entry.mtime_ns / 1e9,
            None if self.modified is None else self.modified.get(entry.path),
            None if self.owned is None else self.owned.get(entry.path))

    def to_json(self) -> dict[str, object]:
        """Return what stands beside an archive."""
        return {
            "shipped": sorted(map(os.fsdecode, self.shipped)),
            "now_s": self.now_s,
            "users": None if self.users is None else {str(uid): name for uid, name in self.users.items()},
            **{name: None if answers is None else {word: sorted(os.fsdecode(path) for path, yes in answers.items()
                                                                if yes is (word == "yes")) for word in ("yes", "no")}
               for name, answers in (("owned", self.owned), ("modified", self.modified))}}

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> Circumstances:
        """Read what `to_json` wrote; raises ValueError, TypeError or KeyError on anything else."""
        now, users = raw.get("now_s"), raw.get("users")
        if not (now is None or isinstance(now, int | float)) or not (users is None or isinstance(users, Mapping)):
            raise ValueError("now_s and users")
        return cls(now, None if users is None else {int(uid): str(name) for uid, name in users.items()},
                   _answers(raw.get("owned")), _answers(raw.get("modified")), _paths(raw.get("shipped", [])))


def _paths(raw: object) -> frozenset[bytes]:
    if not isinstance(raw, list):
        raise TypeError("shipped")
    return frozenset(map(os.fsencode, raw))


def _answers(raw: object) -> Mapping[bytes, bool] | None:
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise TypeError("owned and modified")
    return {os.fsencode(path): word == "yes" for word in ("yes", "no") for path in raw[word]}


def type_of(mode: int) -> str:
    """Return what `type` calls an inode with this st_mode."""
    for word, test in (("directory", stat.S_ISDIR), ("file", stat.S_ISREG), ("link", stat.S_ISLNK),
                       ("fifo", stat.S_ISFIFO)):
        if test(mode):
            return word
    return "device"


class Judged:
    """A policy together with what was known of each of some entries: the rule for a path is then one and the same."""

    def __init__(self, policy: Policy, entries: Iterable[Entry] = (), known: Circumstances | None = None) -> None:
        self.policy = policy
        self._known = known if known is not None else Circumstances()
        self._entries = {entry.path: entry for entry in entries} if policy.asks_facts else {}

    def rule_for(self, path: bytes) -> Rule | None:
        """Return the rule that keeps `path`, or None when it is not precious."""
        entry = self._entries.get(path)
        if entry is None:
            return self.policy.rule_for(path)
        first = self._entries.get(entry.link) if entry.type is EntryType.LINK else None
        return self.policy.rule_for(path, self._known.facts(entry, first))
