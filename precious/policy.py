"""Which files are precious and what happens to each (pure: TOML text, paths and facts in, rules and verdicts out).

A policy is a list of rules read from layers (what reroot ships for the host's distribution, site, class, host). A later
layer's rule beats an earlier one's for the paths that both keep; within a layer the last rule that matches wins. A rule
whose conditions do not hold for a path is passed over, as if it did not name it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources

from plumbing.digest import sha256
from precious import conditions, second_copy
from precious.conditions import Facts
from precious.rules import RULE_KEYS, Loss, LossRule, Reader, Rule, Unlisted
from precious.second_copy import SecondCopy


@lru_cache(maxsize=4096)
def _translate(glob: str) -> str:
    out, position = "", 0
    while position < len(glob):
        if glob.startswith("**", position):
            out, position = out + ".*", position + 2
            continue
        letter = glob[position]
        out += {"*": "[^/]*", "?": "[^/]"}.get(letter, re.escape(letter))
        position += 1
    return out


def _matcher(globs: Iterable[str]) -> re.Pattern[str]:
    """Return one pattern for absolute paths without the leading slash; matches nothing for no globs."""
    parts = [_translate(glob.lstrip("/")) for glob in globs]
    return re.compile("|".join(f"(?:{part})" for part in parts) if parts else r"(?!)", re.DOTALL)


def _leads(names: Sequence[str], way: Sequence[str]) -> bool:
    """Tell whether a path beginning with `names` and going deeper can match the glob `way`, both split at slashes."""
    for name, part in zip(names, way, strict=False):
        if "**" in part:
            return True
        if not re.fullmatch(_translate(part), name, re.DOTALL):
            return False
    return len(way) > len(names)


@dataclass(frozen=True)
class Policy:
    """The rules in force for one host, later ones first in line."""

    rules: tuple[Rule, ...]
    unlisted: Unlisted
    second_copy: SecondCopy = second_copy.NONE
    loss: Loss = field(default_factory=Loss)

    @cached_property
    def _compiled(self) -> tuple[tuple[re.Pattern[str], re.Pattern[str], Rule], ...]:
        return tuple((_matcher(rule.keep), _matcher(rule.exclude), rule) for rule in reversed(self.rules))

    @cached_property
    def _look(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return _matcher(self.unlisted.look), _matcher(self.unlisted.skip)

    def rule_for(self, path: bytes, facts: Facts | None = None, *, unknown: bool = True) -> Rule | None:
        """Return the rule that keeps `path` (relative to the root, bytes), or None when it is not precious.

        `facts` are what is known of what lies there; conditions that they do not answer count as `unknown`.
        """
        text = path.decode("utf-8", "surrogateescape")
        for keep, exclude, rule in self._compiled:
            if keep.fullmatch(text) and rule.conditions.hold(facts, unknown):
                return None if exclude.fullmatch(text) else rule
        return None

    @cached_property
    def asks_users(self) -> bool:
        """Whether a rule names owners, so that ids alone do not answer it."""
        return any(conditions.id_range(word) is None for rule in self.rules for word in rule.conditions.owner)

    @cached_property
    def asks_facts(self) -> bool:
        """Whether any rule has conditions at all."""
        return any(rule.conditions for rule in self.rules)

    def asks(self, path: bytes) -> tuple[bool, bool]:
        """Return whether a rule for `path` depends on its package, and on whether its content was changed."""
        text = path.decode("utf-8", "surrogateescape")
        rows = [rule.conditions for keep, _, rule in self._asking if keep.fullmatch(text)]
        return any(row.owned is not None for row in rows), any(row.modified is not None for row in rows)

    @cached_property
    def _asking(self) -> tuple[tuple[re.Pattern[str], re.Pattern[str], Rule], ...]:
        return tuple(row for row in self._compiled
                     if row[2].conditions.owned is not None or row[2].conditions.modified is not None)

    def idle(self, paths: Iterable[bytes]) -> Iterator[tuple[Rule, str]]:
        """Yield every keep and exclude glob that matches none of `paths`, with its rule, in the policy's order."""
        left = {(number, glob): _matcher([glob]) for number, rule in enumerate(self.rules)
                for glob in (*rule.keep, *rule.exclude)}
        for path in paths:
            text = path.decode("utf-8", "surrogateescape")
            for row in [row for row, pattern in left.items() if pattern.fullmatch(text)]:
                del left[row]
            if not left:
                return
        for number, glob in left:
            yield self.rules[number], glob

    @cached_property
    def _ways(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(glob.lstrip("/").split("/")) for rule in self.rules for glob in rule.keep)

    def may_hold(self, folder: bytes) -> bool:
        """Tell whether a precious path can lie below `folder`; false spares walking it."""
        names = folder.decode("utf-8", "surrogateescape").split("/")
        return any(_leads(names, way) for way in self._ways)

    def looks_at(self, path: bytes) -> bool:
        """Tell whether an unlisted file at `path` is worth keeping a copy of."""
        text = path.decode("utf-8", "surrogateescape")
        look, skip = self._look
        return bool(look.fullmatch(text)) and not skip.fullmatch(text)

    @cached_property
    def _worthless(self) -> re.Pattern[str]:
        return _matcher((*self.loss.ignore, *self.unlisted.skip))

    def ignores(self, path: bytes) -> bool:
        """Tell whether nobody would miss `path`: [loss] ignores it, or [unlisted] skips it."""
        return bool(self._worthless.fullmatch(path.decode("utf-8", "surrogateescape")))

    @cached_property
    def _worthless_folders(self) -> re.Pattern[str]:
        return _matcher(glob[:-3] for glob in (*self.loss.ignore, *self.unlisted.skip) if glob.endswith("/**"))

    def ignores_below(self, folder: bytes) -> bool:
        """Tell whether a glob FOLDER/** says that nobody would miss anything below `folder`; it spares walking it."""
        return bool(self._worthless_folders.fullmatch(folder.decode("utf-8", "surrogateescape")))

    @property
    def digest(self) -> str:
        """The SHA-256 of what it says about losses, so that a report can name what it was judged by.

        Where a rule stands is left out, and so are second copies.
        """
        told = self.to_json()
        told["rules"] = [{**rule.to_json(), "origin": "", "line": 0} for rule in self.rules]
        del told["second_copy"]
        return sha256(json.dumps(told, sort_keys=True).encode())

    def to_json(self) -> dict[str, object]:
        """Return what an order carries."""
        return {
            "loss": self.loss.to_json(),
            "rules": [rule.to_json() for rule in self.rules],
            "unlisted": {"look": list(self.unlisted.look), "skip": list(self.unlisted.skip),
                         "max_bytes": self.unlisted.max_bytes},
            "second_copy": self.second_copy.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Policy:
        """Read what `to_json` wrote; raises ConfigError on anything else."""
        reader = Reader("the order's precious policy")
        rules = []
        for number, raw in enumerate(reader.tables(value.get("rules"), "rules", ()), 1):
            where, line = f"rule {number}", raw.get("line", 0)
            reader.known(raw, (*RULE_KEYS, "origin", "line"), where, ())
            if isinstance(line, bool) or not isinstance(line, int) or line < 0:
                raise reader.fail((), f"{where} has line = {line!r}, which is no number of a line")
            rules.append(reader.rule(raw, where, (), str(raw.get("origin", "")), line))
        copying = value.get("second_copy", second_copy.NONE.to_json())
        return cls(tuple(rules), reader.unlisted(reader.table(value.get("unlisted", {}), "unlisted", ())),
                   second_copy.read(reader, reader.table(copying, "second_copy", ()), ordered=True),
                   # an order from before there was a loss report says nothing of losses
                   reader.loss(reader.table(value.get("loss", {}), "loss", ()), Loss(LossRule.WARN)))


def load(layers: Sequence[tuple[str, str]]) -> Policy:
    """Merge TOML layers, each (name for messages, text), earliest first.

    [unlisted] and [second_copy] of a later layer replace the earlier one's, [loss] adds to what it ignores.
    Raises ConfigError naming layer, line, rule and key.
    """
    rules: list[Rule] = []
    unlisted, copying, loss = Unlisted(), SecondCopy(), Loss()
    for name, text in layers:
        reader = Reader(name, text)
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Reader(name).fail((), f"not valid TOML: {error}") from error
        reader.known(raw, ("rule", "unlisted", "second_copy", "loss"), "the file", ())
        for number, item in enumerate(reader.tables(raw.get("rule", []), "rule", ("rule",))):
            place, where = ("rule", number), f"rule {number + 1}"
            reader.known(item, RULE_KEYS, where, place)
            rules.append(reader.rule(item, where, place, name, reader.line(place)))
        if "unlisted" in raw:
            unlisted = reader.unlisted(reader.table(raw["unlisted"], "[unlisted]", ("unlisted",)))
        if "second_copy" in raw:
            copying = second_copy.read(reader, reader.table(raw["second_copy"], "[second_copy]", ("second_copy",)))
        if "loss" in raw:
            loss = reader.loss(reader.table(raw["loss"], "[loss]", ("loss",)), loss)
    return Policy(tuple(rules), unlisted, copying, loss)


FAMILIES = ("debian", "redhat", "suse")
"""The distribution families that reroot ships rules for."""

_FAMILY_OF = {
    "debian": "debian", "ubuntu": "debian",
    "rhel": "redhat", "fedora": "redhat", "centos": "redhat", "rocky": "redhat", "almalinux": "redhat", "ol": "redhat",
    "amzn": "redhat",
    "suse": "suse", "opensuse": "suse", "sles": "suse", "sled": "suse", "sle-micro": "suse", "opensuse-leap": "suse",
    "opensuse-tumbleweed": "suse",
}


def family(os_release: Mapping[str, object]) -> str | None:
    """Return the family of a host by ID and ID_LIKE of its os-release(5); None when reroot ships no rules for it."""
    words = [str(os_release.get("ID", "")), *str(os_release.get("ID_LIKE", "")).split()]
    return next((_FAMILY_OF[word.lower()] for word in words if word.lower() in _FAMILY_OF), None)


def shipped(family: str = "debian") -> tuple[str, str]:
    """Return the shipped default layer for one of FAMILIES as (name, TOML text)."""
    name = f"{family}.toml"
    return f"default {name}", resources.files("precious").joinpath("defaults", name).read_text("utf-8")
