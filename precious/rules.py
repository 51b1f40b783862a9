"""One rule of a policy and how it is written (pure: a table of TOML or of an order in, a Rule out, or one sentence)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from plumbing.errors import ConfigError
from plumbing.spelling import hint
from precious import conditions
from precious.conditions import Conditions
from precious.mergers.registry import ACCOUNTS, MERGERS


class When(StrEnum):
    """What to do when the new image has something at a kept path."""

    HOST = "host"
    IMAGE = "image"
    BESIDE = "beside"
    MERGE = "merge"
    STOP = "stop"


RULE_KEYS = ("keep", "exclude", "when", "merge", *conditions.KEYS)
"""What a [[rule]] of a policy file may say."""

UNLISTED_KEYS = ("look", "skip", "max_bytes")

LOSS_KEYS = ("rule", "ignore")


class LossRule(StrEnum):
    """What an upgrade does about things that it would lose: `[loss] rule`."""

    ASK = "ask"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Rule:
    """Globs that are kept, globs that are not, the conflict verdict and conditions.

    `origin` is the layer it came from: its file, or the name of what reroot ships; `line` where in it (0: not known).
    `merge` names the merger of a rule whose verdict that is.
    """

    keep: tuple[str, ...]
    exclude: tuple[str, ...]
    when: When
    origin: str
    line: int = 0
    conditions: Conditions = field(default_factory=Conditions)
    merge: str = ""

    @property
    def where(self) -> str:
        """The place a person finds it at."""
        return f"{self.origin}, line {self.line}" if self.line else self.origin

    def to_json(self) -> dict[str, object]:
        """Return what an order carries of it."""
        found: dict[str, object] = {"keep": list(self.keep), "exclude": list(self.exclude), "when": self.when.value,
                                    "origin": self.origin}
        if self.line:
            found["line"] = self.line
        if self.merge not in {"", ACCOUNTS}:  # the accounts' merger is that of their files
            found["merge"] = self.merge
        return {**found, **self.conditions.to_json()}



@dataclass(frozen=True)
class Loss:
    """What is done about losses, and globs of what nobody would miss."""

    rule: LossRule = LossRule.ASK
    ignore: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return what an order carries."""
        return {"rule": self.rule.value, "ignore": list(self.ignore)}


@dataclass(frozen=True)
class Unlisted:
    """Where files that nobody listed are looked for, and up to how many bytes of them are archived.

    `origin` is the layer it came from, `line` where in it; an order does not carry them.
    """

    look: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    max_bytes: int = 1 << 30
    origin: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)


Place = tuple[str | int, ...]
"""Where a value stands in a file: table names, positions, key; as plumbing.tomltext takes it."""


class Reader:
    """One named source of rules; every complaint about it starts with its name, and its line where there is a text."""

    def __init__(self, name: str, text: str | None = None) -> None:
        self.name, self.text = name, text

    def line(self, place: Place) -> int:
        """Return the line that something stands at; 0 for what is no file."""
        from plumbing.tomltext import line_of  # late: a host reads orders, which have no lines

        return 0 if self.text is None else line_of(self.text, place)

    def fail(self, place: Place, what: str) -> ConfigError:
        """Return the complaint to raise."""
        line = self.line(place)
        return ConfigError(f"{self.name}, line {line}: {what}" if line else f"{self.name}: {what}")

    def known(self, raw: Mapping[str, object], allowed: Sequence[str], where: str, place: Place) -> None:
        """Raise ConfigError for a key that does not exist."""
        for key in raw:
            if key not in allowed:
                raise self.fail((*place, key), f"{where} has an unknown key {key!r}; {hint(key, allowed)}")

    def table(self, raw: object, where: str, place: Place) -> Mapping[str, object]:
        """Return `raw`, which must be a table."""
        if not isinstance(raw, Mapping):
            raise self.fail(place, f"{where} must be a table")
        return raw

    def tables(self, raw: object, where: str, place: Place) -> list[Mapping[str, object]]:
        """Return `raw`, which must be a list of tables."""
        if not isinstance(raw, list):
            raise self.fail(place, f"{where} must be a list of tables")
        return [self.table(item, f"{where} {number + 1}", (*place, number)) for number, item in enumerate(raw)]

    def globs(self, raw: object, where: str, place: Place) -> tuple[str, ...]:
        """Return a list of absolute paths or globs."""
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise self.fail(place, f"{where} must be a list of paths or globs")
        for glob in raw:
            if not glob.startswith("/") or "\0" in glob or ".." in glob.split("/"):
                raise self.fail(place, f"{where}: {glob!r} must be an absolute path without '..'")
        return tuple(raw)

    def rule(self, raw: Mapping[str, object], where: str, place: Place, origin: str, line: int) -> Rule:
        """Return the rule that a table writes down, all of whose keys are known."""
        word = raw.get("when", When.MERGE.value if "merge" in raw else When.HOST.value)
        if not isinstance(word, str) or word not in list(When):
            raise self.fail((*place, "when"),
                            f"{where} has when = {word!r}; {hint(str(word), [str(when) for when in When])}")
        keep = self.globs(raw.get("keep"), f"{where}, keep", (*place, "keep"))
        merger = self._merger(raw, keep, where, place) if word == When.MERGE else ""
        if "merge" in raw and not merger:
            raise self.fail((*place, "when"), f"{where} names a merger and has when = {word!r}; leave out one of the "
                            "two")
        exclude = self.globs(raw.get("exclude", []), f"{where}, exclude", (*place, "exclude"))
        return Rule(keep, exclude, When(word), origin, line, self.conditions(raw, where, place), merger)

    def _merger(self, raw: Mapping[str, object], keep: Sequence[str], where: str, place: Place) -> str:
        name = raw.get("merge", ACCOUNTS)
        if not isinstance(name, str) or name not in MERGERS:
            raise self.fail((*place, "merge"), f"{where} has merge = {name!r}; {hint(str(name), sorted(MERGERS))}")
        for glob in keep:
            if not MERGERS[name].takes(glob):
                raise self.fail((*place, "merge" if "merge" in raw else "when"), f"{where}: nothing knows how to merge "
                                f"{glob} as {name}; " + (
                                    f"that is for {' and '.join(MERGERS[name].below)}" if "merge" in raw else
                                    "name what it is, such as merge = \"fstab\", or use host, image or beside"))
        return name

    def conditions(self, raw: Mapping[str, object], where: str, place: Place) -> Conditions:
        """Return what a rule asks besides names."""
        owner = self._words(raw, "owner", where, place)
        for word in owner:
            try:
                conditions.id_range(word)
            except ValueError as error:
                raise self.fail((*place, "owner"), f"{where}, owner: {word!r} is neither a name nor an id nor a range "
                                "of ids such as '1000-59999'") from error
        kinds = self._words(raw, "type", where, place)
        for kind in kinds:
            if kind not in conditions.TYPES:
                raise self.fail((*place, "type"), f"{where}, type: {kind!r} is none; {hint(kind, conditions.TYPES)}")
        least, most = (self._bytes(raw, key, where, place) for key in ("min_bytes", "max_bytes"))
        young, old = (self._days(raw, key, where, place) for key in ("min_age_days", "max_age_days"))
        for low, high, name in ((least, most, "bytes"), (young, old, "age_days")):
            if low is not None and high is not None and low > high:
                raise self.fail((*place, f"max_{name}"), f"{where}: min_{name} = {low} is more than max_{name} = "
                                f"{high}, so nothing would be kept")
        return Conditions(owner, kinds, least, most, young, old, self._answer(raw, "modified", where, place),
                          self._answer(raw, "owned", where, place))

    def unlisted(self, raw: Mapping[str, object]) -> Unlisted:
        """Return what an [unlisted] table says."""
        place = ("unlisted",)
        self.known(raw, UNLISTED_KEYS, "[unlisted]", place)
        limit = raw.get("max_bytes", Unlisted.max_bytes)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise self.fail((*place, "max_bytes"), f"[unlisted] max_bytes = {limit!r} must be a number of bytes, 0 or "
                            "more")
        return Unlisted(self.globs(raw.get("look", []), "[unlisted] look", (*place, "look")),
                        self.globs(raw.get("skip", []), "[unlisted] skip", (*place, "skip")), limit, self.name,
                        self.line(place))

    def loss(self, raw: Mapping[str, object], before: Loss) -> Loss:
        """Return what a [loss] table says over the earlier layers': its rule is the later one, its globs are added."""
        place = ("loss",)
        self.known(raw, LOSS_KEYS, "[loss]", place)
        word = raw.get("rule", before.rule.value)
        if not isinstance(word, str) or word not in list(LossRule):
            raise self.fail((*place, "rule"), f"[loss] has rule = {word!r}; "
                            + hint(str(word), [rule.value for rule in LossRule]))
        more = self.globs(raw.get("ignore", []), "[loss] ignore", (*place, "ignore"))
        return Loss(LossRule(word), tuple(dict.fromkeys((*before.ignore, *more))))

    def _words(self, raw: Mapping[str, object], key: str, where: str, place: Place) -> tuple[str, ...]:
        if key not in raw:
            return ()
        found = raw[key]
        if not isinstance(found, list) or not found or not all(isinstance(word, str) and word for word in found):
            raise self.fail((*place, key), f"{where}: {key} = {found!r} must be a list of words, such as "
                            + ('["1000-59999"]' if key == "owner" else '["file", "link"]'))
        return tuple(found)

    def _bytes(self, raw: Mapping[str, object], key: str, where: str, place: Place) -> int | None:
        found = raw.get(key)
        if found is None or (isinstance(found, int) and not isinstance(found, bool) and found >= 0):
            return found
        raise self.fail((*place, key), f"{where}: {key} = {found!r} must be a number of bytes, 0 or more")

    def _days(self, raw: Mapping[str, object], key: str, where: str, place: Place) -> float | None:
        found = raw.get(key)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found < 0:
            raise self.fail((*place, key), f"{where}: {key} = {found!r} must be a number of days, 0 or more")
        return found

    def _answer(self, raw: Mapping[str, object], key: str, where: str, place: Place) -> bool | None:
        found = raw.get(key)
        if found is None or isinstance(found, bool):
            return found
        raise self.fail((*place, key), f"{where}: {key} = {found!r} must be true or false")
