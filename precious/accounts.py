"""Users, passwords and groups of two systems made one (pure: the bytes of six files in and out).

The new image's accounts are the base. From the old host come: people (ids of UID_MIN to UID_MAX), the
passwords of all accounts that both have and the image leaves locked, system accounts that kept files belong
to, memberships, and ranges of ids for containers (`subids`). An id that the image already gave to another name is
replaced by a free one, and the kept files follow, because they are put back by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

from precious import subids

UID_MIN, UID_MAX = 1000, 59999
"""The ids that Debian's adduser gives to people (login.defs)."""

_BEYOND = range(70_000, 2**31)
"""Where ids are looked for when none of the usual ones is free; past 65535, which some read as -1."""

FILES = ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
_WIDTH = {"passwd": 7, "group": 4, "shadow": 9, "gshadow": 4}
_RANGES = ("subuid", "subgid")

Files = Mapping[str, bytes]
Table = dict[str, list[str]]
"""Account name -> the fields of its line; order as in the file."""


@dataclass(frozen=True)
class Merged:
    """The six files for the new root, and what a person should know about them."""

    files: dict[str, bytes]
    notes: tuple[str, ...]


@dataclass
class _Side:
    tables: dict[str, Table] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Files, notes: list[str], label: str) -> _Side:
        side = cls()
        for name, width in _WIDTH.items():
            table: Table = {}
            for line in files.get(name, b"").decode("utf-8", "surrogateescape").split("\n"):
                fields = line.split(":")
                if not line or line.startswith(("#", "+", "-")):
                    continue
                if len(fields) != width or not fields[0]:
                    notes.append(f"the {label}'s /etc/{name} has a line that is no account: {line[:40]!r}; left out")
                    continue
                if name in {"passwd", "group"} and not _is_id(fields[2]):
                    notes.append(f"the {label}'s /etc/{name} gives {fields[0]} the id {fields[2]!r}; left out")
                    continue
                table.setdefault(fields[0], fields)
            side.tables[name] = table
        return side

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def write(self) -> dict[str, bytes]:
        return {name: "".join(":".join(fields) + "\n" for fields in table.values()).encode("utf-8", "surrogateescape")
                for name, table in self.tables.items()}


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 2**32 - 1


def _is_person(number: int) -> bool:
    return UID_MIN <= number <= UID_MAX


def _free_id(wanted: int, taken: set[int], table: Table) -> int:
    """Return `wanted`, or an id that neither `taken` has nor another account of the host's own `table`.

    Else one that moves would take the id of the next, and all would move.
    """
    if wanted not in taken:
        return wanted
    theirs = {int(row[2]) for row in table.values()}
    span = range(UID_MIN, UID_MAX + 1) if _is_person(wanted) else range(999, 99, -1)
    return next(number for number in chain(span, _BEYOND) if number not in taken and number not in theirs)


def merge(old: Files, new: Files, owners: Iterable[str] = (), groups: Iterable[str] = ()) -> Merged:
    """Merge the account files of the old host into those of the new image.

    `old` and `new` map passwd, group, shadow, gshadow, subuid, subgid to bytes; a missing file is empty.
    `owners` and `groups` are names that kept files belong to: such system accounts are carried over too.
    Merging a result again with the same `old` changes nothing.
    """
    notes: list[str] = []
    host, image = _Side.read(old, notes, "host"), _Side.read(new, notes, "image")
    moved = _carry_groups(host, image, set(groups), notes)
    _carry_users(host, image, set(owners), moved, notes)
    _carry_passwords(host, image)
    _carry_members(host, image)
    ranges: dict[str, bytes] = {}
    for name in _RANGES:
        ranges[name], told = subids.merge(old.get(name, b""), new.get(name, b""), _holders(host, image), name)
        notes += told
    return Merged({**image.write(), **ranges}, tuple(notes))


def _holders(host: _Side, image: _Side) -> dict[str, str]:
    """Return the users of the host that the result has: by name and by the id the host gave them -> name."""
    there = [user for name, user in host["passwd"].items() if name in image["passwd"]]
    return {**{user[2]: user[0] for user in there}, **{user[0]: user[0] for user in there}}


def _carry_groups(host: _Side, image: _Side, wanted: set[str], notes: list[str]) -> dict[int, int]:
    """Add missing groups; return old gid -> new gid for every group of the host that the result has."""
    moved: dict[int, int] = {}
    primaries = {int(user[3]) for user in host["passwd"].values() if _is_person(int(user[2]))}
    taken = {int(group[2]) for group in image["group"].values()}
    for name, group in host["group"].items():
        number = int(group[2])
        if name in image["group"]:
            moved[number] = int(image["group"][name][2])
        elif _is_person(number) or name in wanted or number in primaries:
            fresh = _free_id(number, taken, host["group"])
            if fresh != number:
                notes.append(f"group {name} had id {number}, which the image gives to another; it is {fresh} now")
            taken.add(fresh)
            moved[number] = fresh
            image["group"][name] = [name, group[1], str(fresh), ""]
            if name in host["gshadow"]:
                image["gshadow"][name] = [*host["gshadow"][name][:2], "", ""]
    return moved


def _carry_users(host: _Side, image: _Side, wanted: set[str], moved: Mapping[int, int], notes: list[str]) -> None:
    taken = {int(user[2]) for user in image["passwd"].values()}
    for name, user in host["passwd"].items():
        number = int(user[2])
        if name in image["passwd"] or not (_is_person(number) or name in wanted):
            continue
        fresh = _free_id(number, taken, host["passwd"])
        if fresh != number:
            notes.append(f"user {name} had id {number}, which the image gives to another; it is {fresh} now, and "
                         "files on other filesystems still carry the old one")
        taken.add(fresh)
        gid = moved.get(int(user[3]), int(user[3]))
        image["passwd"][name] = [name, user[1], str(fresh), str(gid), *user[4:]]
        if name in host["shadow"]:
            image["shadow"].setdefault(name, host["shadow"][name])


def _carry_passwords(host: _Side, image: _Side) -> None:
    for name, line in host["shadow"].items():
        theirs = image["shadow"].get(name)
        if theirs is not None and theirs[1] in {"", "*", "!", "!!", "!*"} and line[1] not in {"", "*", "!", "!!", "!*"}:
            image["shadow"][name] = line


def _carry_members(host: _Side, image: _Side) -> None:
    for table in ("group", "gshadow"):
        for name, fields in host[table].items():
            if name not in image[table]:
                continue
            for column in range(2, 4) if table == "gshadow" else (3,):
                members = [member for member in image[table][name][column].split(",") if member]
                for member in fields[column].split(","):
                    if member and member in image["passwd"] and member not in members:
                        members.append(member)
                image[table][name][column] = ",".join(members)
