"""What the conditions of rules ask about an old root (I/O, read-only), answered once and remembered."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from imaging.entry import Entry
from precious import packages
from precious.circumstances import Circumstances, type_of
from precious.conditions import Facts
from precious.names import ids
from precious.packages import Packages
from precious.policy import Policy
from precious.rules import Rule, When


class Inquiry:
    """Judges the paths of `root` by `policy`; `now_s` is the wall clock. `known` are all answers given so far."""

    def __init__(self, root: Path, policy: Policy, now_s: float,
                 read: Callable[[Path], Packages] = packages.read) -> None:
        """`read` reads the package database."""
        self._root, self._policy, self._now_s = root, policy, now_s
        self._read = read
        self._owned: dict[bytes, bool] = {}
        self._modified: dict[bytes, bool] = {}
        self._shipped: set[bytes] = set()

    @cached_property
    def packages(self) -> Packages:
        """What the root's package database says."""
        return self._read(self._root)

    @cached_property
    def _users(self) -> dict[int, str] | None:
        table = self._root / "etc/passwd"
        if not self._policy.asks_users or not table.is_file() or table.is_symlink():
            return None
        return ids(table.read_bytes())

    @property
    def known(self) -> Circumstances:
        """What there is to remember."""
        if not self._policy.asks_facts:
            return Circumstances(shipped=frozenset(self._shipped))
        return Circumstances(self._now_s, self._users, self._owned, self._modified, frozenset(self._shipped))

    def rule_for(self, entry: Entry, first: Entry | None = None) -> Rule | None:
        """Return the rule that keeps an entry; `first` is the entry that a hard link joins."""
        if self._policy.asks_facts:
            self._ask(entry.path, entry.is_directory)
            rule = self._policy.rule_for(entry.path, self._facts.facts(entry, first))
        else:
            rule = self._policy.rule_for(entry.path)
        if rule is not None and rule.when is When.MERGE and entry.path in self.packages.conffiles and (
                self.packages.as_shipped(entry.path)):
            self._shipped.add(entry.path)
        return rule

    @cached_property
    def _facts(self) -> Circumstances:
        return Circumstances(self._now_s, self._users, self._owned, self._modified)

    def rule_at(self, path: bytes, info: os.stat_result) -> Rule | None:
        """Return the rule that keeps `path`, which has the status `info`."""
        if not self._policy.asks_facts:
            return self._policy.rule_for(path)
        kind = type_of(info.st_mode)
        self._ask(path, kind == "directory")
        users = self._users
        return self._policy.rule_for(path, Facts(
            kind, info.st_uid, None if users is None else users.get(info.st_uid, ""), info.st_size,
            self._now_s - info.st_mtime_ns / 1e9, self._modified.get(path), self._owned.get(path)))

    def _ask(self, path: bytes, is_directory: bool) -> None:
        owned, modified = self._policy.asks(path)
        if not self.packages.known or not (owned or modified) or path in self._owned:
            return
        self._owned[path] = self.packages.owns(path)
        if modified and not is_directory:
            # what no package has was added since; a package's file without a checksum may be anything
            self._modified[path] = not self._owned[path] or self.packages.as_shipped(path) is not True
