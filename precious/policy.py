"""Which files are precious and what happens to each (pure: TOML text and paths in, rules and verdicts out).

A policy is a list of rules read from layers (shipped defaults, site, class, host). A later layer's rule
beats an earlier one's for the paths that both name; within a layer the last rule that matches wins.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from importlib import resources

from plumbing.errors import ConfigError
from plumbing.spelling import hint


class When(StrEnum):
    """What to do when the new image has something at a kept path."""

    HOST = "host"
    IMAGE = "image"
    BESIDE = "beside"
    MERGE = "merge"
    STOP = "stop"


MERGED_PATHS = frozenset(
    b"etc/" + name for name in (b"passwd", b"shadow", b"group", b"gshadow", b"subuid", b"subgid"))
"""The only paths that `when = "merge"` may name: the account files."""


@dataclass(frozen=True)
class Rule:
    """Globs that are kept, globs that are not, and the conflict verdict; `origin` is the layer it came from."""

    keep: tuple[str, ...]
    exclude: tuple[str, ...]
    when: When
    origin: str


@dataclass(frozen=True)
class Unlisted:
    """Where files that nobody listed are looked for, and up to how many bytes of them are archived."""

    look: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    max_bytes: int = 1 << 30


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

    @cached_property
    def _compiled(self) -> tuple[tuple[re.Pattern[str], re.Pattern[str], Rule], ...]:
        return tuple((_matcher(rule.keep), _matcher(rule.exclude), rule) for rule in reversed(self.rules))

    @cached_property
    def _look(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return _matcher(self.unlisted.look), _matcher(self.unlisted.skip)

    def rule_for(self, path: bytes) -> Rule | None:
        """Return the rule that keeps `path` (relative to the root, bytes), or None when it is not precious."""
        text = path.decode("utf-8", "surrogateescape")
        for keep, exclude, rule in self._compiled:
            if keep.fullmatch(text):
                return None if exclude.fullmatch(text) else rule
        return None

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

    def to_json(self) -> dict[str, object]:
        """Return what an order carries."""
        return {
            "rules": [{"keep": list(rule.keep), "exclude": list(rule.exclude), "when": rule.when.value,
                       "origin": rule.origin} for rule in self.rules],
            "unlisted": {"look": list(self.unlisted.look), "skip": list(self.unlisted.skip),
                         "max_bytes": self.unlisted.max_bytes},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Policy:
        """Read what `to_json` wrote; raises ConfigError on anything else."""
        layer = _Layer("the order's precious policy")
        rules = []
        for number, raw in enumerate(layer.tables(value.get("rules"), "rules"), 1):
            where = f"rule {number}"
            layer.known(raw, {"keep", "exclude", "when", "origin"}, where)
            rules.append(layer.rule(raw, where, str(raw.get("origin", ""))))
        return cls(tuple(rules), layer.unlisted(layer.table(value.get("unlisted", {}), "unlisted")))


class _Layer:
    """One named source of rules; every complaint about it starts with that name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fail(self, what: str) -> ConfigError:
        return ConfigError(f"{self.name}: {what}")

    def known(self, raw: Mapping[str, object], allowed: set[str], where: str) -> None:
        for key in raw:
            if key not in allowed:
                raise self.fail(f"{where} has an unknown key {key!r}; {hint(key, sorted(allowed))}")

    def table(self, raw: object, where: str) -> Mapping[str, object]:
        if not isinstance(raw, Mapping):
            raise self.fail(f"{where} must be a table")
        return raw

    def tables(self, raw: object, where: str) -> list[Mapping[str, object]]:
        if not isinstance(raw, list):
            raise self.fail(f"{where} must be a list of tables")
        return [self.table(item, f"{where} {number}") for number, item in enumerate(raw, 1)]

    def globs(self, raw: object, where: str) -> tuple[str, ...]:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise self.fail(f"{where} must be a list of paths or globs")
        for glob in raw:
            if not glob.startswith("/") or "\0" in glob or ".." in glob.split("/"):
                raise self.fail(f"{where}: {glob!r} must be an absolute path without '..'")
        return tuple(raw)

    def rule(self, raw: Mapping[str, object], where: str, origin: str) -> Rule:
        word = raw.get("when", When.HOST.value)
        if not isinstance(word, str) or word not in list(When):
            raise self.fail(f"{where} has when = {word!r}; {hint(str(word), [str(when) for when in When])}")
        keep = self.globs(raw.get("keep"), f"{where}, keep")
        if word == When.MERGE:
            for glob in keep:
                if glob.lstrip("/").encode("utf-8", "surrogateescape") not in MERGED_PATHS:
                    raise self.fail(f"{where}: nothing knows how to merge {glob}; use host, image or beside")
        return Rule(keep, self.globs(raw.get("exclude", []), f"{where}, exclude"), When(word), origin)

    def unlisted(self, raw: Mapping[str, object]) -> Unlisted:
        self.known(raw, {"look", "skip", "max_bytes"}, "[unlisted]")
        limit = raw.get("max_bytes", Unlisted.max_bytes)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise self.fail(f"[unlisted] max_bytes = {limit!r} must be a number of bytes, 0 or more")
        return Unlisted(self.globs(raw.get("look", []), "[unlisted] look"),
                        self.globs(raw.get("skip", []), "[unlisted] skip"), limit)


def load(layers: Sequence[tuple[str, str]]) -> Policy:
    """Merge TOML layers, each (name for messages, text), earliest first.

    [unlisted] of a later layer replaces the earlier one's. Raises ConfigError naming layer, rule and key.
    """
    rules: list[Rule] = []
    unlisted = Unlisted()
    for name, text in layers:
        layer = _Layer(name)
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise layer.fail(f"not valid TOML: {error}") from error
        layer.known(raw, {"rule", "unlisted"}, "the file")
        for number, item in enumerate(layer.tables(raw.get("rule", []), "rule"), 1):
            layer.known(item, {"keep", "exclude", "when"}, f"rule {number}")
            rules.append(layer.rule(item, f"rule {number}", name))
        if "unlisted" in raw:
            unlisted = layer.unlisted(layer.table(raw["unlisted"], "[unlisted]"))
    return Policy(tuple(rules), unlisted)


def shipped(family: str = "debian") -> tuple[str, str]:
    """Return the shipped default layer for a distribution family as (name, TOML text)."""
    name = f"{family}.toml"
    return f"default {name}", resources.files("precious").joinpath("defaults", name).read_text("utf-8")
