"""What a rule asks of a path besides its name (pure: what is known of an entry in, yes or no out).

Everything that is not known (None) counts as the answer that keeps: a file too many in an archive is weight, one too
few is lost. Whoever must be sure that a rule keeps a path says `unknown=False`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

TYPES = ("file", "link", "directory", "fifo", "device")
"""What `type` may name; a hard link is the file that it is."""

DAY_S = 86_400


@dataclass(frozen=True)
class Facts:
    """What is known of one entry; None where it is not. `user` is empty for an id that no account has.

    `size` is in bytes, `age_s` in seconds since the content changed last. `modified` tells whether the content is
    another than the release or package brought, `owned` whether a package has the path.
    """

    type: str
    uid: int
    user: str | None = None
    size: int | None = None
    age_s: float | None = None
    modified: bool | None = None
    owned: bool | None = None


@dataclass(frozen=True)
class Conditions:
    """What must all hold for a rule to keep a path; an empty one asks nothing.

    `owner` holds names, ids and ranges of ids as text ("ada", "33", "1000-59999"). Sizes are in bytes, ages in days. A
    directory is kept by a rule with conditions only when `type` names directories: else it is just the way to a file.
    """

    owner: tuple[str, ...] = ()
    type: tuple[str, ...] = ()
    min_bytes: int | None = None
    max_bytes: int | None = None
    min_age_days: float | None = None
    max_age_days: float | None = None
    modified: bool | None = None
    owned: bool | None = None

    def __bool__(self) -> bool:
        return self != _NONE

    def to_json(self) -> dict[str, object]:
        """Return the conditions that were set, by their key in a policy."""
        found = {name: getattr(self, name) for name in KEYS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()
                if value is not None and value != ()}

    def hold(self, facts: Facts | None, unknown: bool = True) -> bool:
        """Tell whether all conditions hold; one whose answer is not known counts as `unknown`."""
        if not self:
            return True
        if facts is None:
            return unknown
        if facts.type == "directory" and "directory" not in self.type:
            return False
        days = None if facts.age_s is None else facts.age_s / DAY_S
        answers = (
            not self.owner or any(_owns(word, facts, unknown) for word in self.owner),
            not self.type or facts.type in self.type,
            _within(facts.size, self.min_bytes, self.max_bytes, unknown),
            _within(days, self.min_age_days, self.max_age_days, unknown),
            self.modified is None or (unknown if facts.modified is None else facts.modified is self.modified),
            self.owned is None or (unknown if facts.owned is None else facts.owned is self.owned),
        )
        return all(answers)


_NONE = Conditions()
KEYS = tuple(field.name for field in fields(Conditions))
"""The keys of a rule that are conditions."""


def id_range(word: str) -> tuple[int, int] | None:
    """Return the first and last id that "33" or "1000-59999" means; None for a name. Raises ValueError for neither."""
    first, dash, last = word.partition("-")
    if not first.isascii() or not first.isdigit():
        return None
    if dash and not (last.isascii() and last.isdigit()):
        raise ValueError(word)
    found = int(first), int(last or first)
    if found[0] > found[1] or found[1] > 2**32 - 2:
        raise ValueError(word)
    return found


def _owns(word: str, facts: Facts, unknown: bool) -> bool:
    span = id_range(word)
    if span is not None:
        return span[0] <= facts.uid <= span[1]
    return unknown if facts.user is None else facts.user == word


def _within(value: float | None, least: float | None, most: float | None, unknown: bool) -> bool:
    if least is None and most is None:
        return True
    if value is None:
        return unknown
    return (least is None or value >= least) and (most is None or value <= most)
