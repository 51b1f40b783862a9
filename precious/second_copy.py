"""When a second copy is sent and how long it is kept (pure: a policy's table, disks and times in, verdicts out).

The table is [second_copy] of a policy file (docs/precious.md); the copy itself is precious.sealed's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby

from plumbing.spelling import hint
from precious.rules import Place, Reader

DAY_S = 86_400
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Cause(StrEnum):
    """What makes a host send a second copy."""

    SAME_DISK = "same-disk"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class SecondCopy:
    """The table: when, and whether an upgrade may go on without it.

    `services` are whose tickets a host takes for it; the site says so when it makes an order, no policy file does.
    """

    when: Cause = Cause.SAME_DISK
    required: bool = False
    services: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)

    @property
    def where(self) -> str:
        """The place a person finds it at; empty when no file has it."""
        return f"{self.origin}, line {self.line}" if self.line else self.origin

    def told(self) -> str:
        """Return it as one line for people."""
        return f"second copy: {self.when.value}, {'' if self.required else 'not '}required"

    def wanted(self, *, same_disk: bool) -> bool:
        """Whether a host sends one; `same_disk`: its archive lies on the disk of its root, or nowhere."""
        return self.when is Cause.ALWAYS or (self.when is Cause.SAME_DISK and same_disk)

    def to_json(self) -> dict[str, object]:
        """Return what an order carries."""
        services = {"services": list(self.services)} if self.services else {}
        return {"when": self.when.value, "required": self.required, **services}


NONE = SecondCopy(Cause.NEVER)
"""What an order that says nothing of it means: it was made by a server that takes none."""


def read(reader: Reader, raw: Mapping[str, object], *, ordered: bool = False) -> SecondCopy:
    """Return what a [second_copy] table says, of a file or (`ordered`) of an order; raises ConfigError."""
    place: Place = ("second_copy",)
    reader.known(raw, ("when", "required", *(("services",) if ordered else ())), "[second_copy]", place)
    word, required = raw.get("when", Cause.SAME_DISK.value), raw.get("required", False)
    if not isinstance(word, str) or word not in list(Cause):
        raise reader.fail((*place, "when"), f"[second_copy] has when = {word!r}; "
                          + hint(str(word), [cause.value for cause in Cause]))
    if not isinstance(required, bool):
        raise reader.fail((*place, "required"), f"[second_copy] has required = {required!r}; write true or false")
    services = raw.get("services", [])
    if not isinstance(services, list) or not all(isinstance(name, str) and _SERVICE.fullmatch(name)
                                                 for name in services):
        raise reader.fail((*place, "services"), "[second_copy] services must be a list of services' names")
    return SecondCopy(Cause(word), required, tuple(services), reader.name, reader.line(place))


@dataclass(frozen=True)
class Copy:
    """A copy that a server has; `stored_s` is when it was whole, in wall seconds, `blake3` in hex."""

    host: str
    order: str
    bytes: int
    blake3: str
    stored_s: float

    @property
    def key(self) -> tuple[str, str]:
        """What it is the copy of."""
        return self.host, self.order


def outlived(copies: Iterable[Copy], needed: Collection[str], now: float, *, keep_days: float, keep_orders: int,
             ) -> Iterator[tuple[Copy, str]]:
    """Yield the copies that may go at `now` (wall seconds), each with the reason; those of the orders `needed` stay.

    Of each host the newest `keep_orders` stay, none of them longer than `keep_days`.
    """
    rows = sorted(copies, key=lambda copy: (copy.host, -copy.stored_s, copy.order))
    for _, mine in groupby(rows, key=lambda copy: copy.host):
        for number, copy in enumerate(mine):
            days = (now - copy.stored_s) / DAY_S
            if copy.order in needed:
                continue
            if days > keep_days:
                yield copy, f"it is {days:.0f} days old and copies stay {keep_days:g} days"
            elif number >= keep_orders:
                yield copy, f"its host has {keep_orders} newer"
