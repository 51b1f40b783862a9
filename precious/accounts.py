"""Users, passwords and groups of two systems made one (pure: the bytes of six files in and out).

The new image's accounts are what it begins with. From the old host come: people (ids of UID_MIN to UID_MAX), the
passwords of all accounts that both have and the image leaves locked, system accounts that kept files belong
to, groups with members that come, memberships, and ranges of ids for containers (`subids`). An id that the image
already gave to another name is replaced by a free one, and the kept files follow, because they are put back by name.

Where the files of the old release are known, what the host changed since is the host's: passwords, also those it
locked, shells, homes, and memberships it took away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
_LOCKED = frozenset({"", "*", "!", "!!", "!*"})
"""Password fields that are no password."""

Files = Mapping[str, bytes]
Table = dict[str, list[str]]
"""Account name -> the fields of its line; order as in the file."""


@dataclass(frozen=True)
class Merged:
    """The six files for the new root, and what a person should know about them; `dropped` is what did not come."""

    files: dict[str, bytes]
    notes: tuple[str, ...]
    conflict: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


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


def merge(old: Files, new: Files, owners: Iterable[str] = (), groups: Iterable[str] = (), *,
          base: Files | None = None, has: Callable[[str], bool] = lambda _path: True) -> Merged:
    """Merge the account files of the old host into those of the new image.

    `old` and `new` map passwd, group, shadow, gshadow, subuid, subgid to bytes; a missing file is empty. `base` are
    those of the old release, where they are known.
    `owners` and `groups` are names that kept files belong to: such system accounts are carried over too. `has` tells
    whether the new root has a path: a shell that it lacks is told, and takes no shell's place.
    Merging a result again with the same `old` changes nothing.
    """
    notes: list[str] = []
    host, image = _Side.read(old, notes, "host"), _Side.read(new, notes, "image")
    release, owning = _Side.read(base or {}, [], "old release"), set(owners)
    coming = {name for name, user in host["passwd"].items()
              if name in image["passwd"] or _is_person(int(user[2])) or name in owning}
    moved = _carry_groups(host, image, {*groups, *_joined(host, coming)}, notes)
    _carry_users(host, image, coming, moved, notes)
    conflict = (*_carry_fields(host, image, release, has), *_carry_passwords(host, image, release))
    _carry_members(host, image, release)
    notes += _unstartable(host, image, has)
    dropped = _left_out(host, image, release)
    ranges: dict[str, bytes] = {}
    for name in _RANGES:
        ranges[name], told = subids.merge(old.get(name, b""), new.get(name, b""), _holders(host, image), name)
        notes += told
    return Merged({**image.write(), **ranges}, tuple(notes), conflict, dropped)


def _holders(host: _Side, image: _Side) -> dict[str, str]:
    """Return the users of the host that the result has: by name and by the id the host gave them -> name."""
    there = [user for name, user in host["passwd"].items() if name in image["passwd"]]
    return {**{user[2]: user[0] for user in there}, **{user[0]: user[0] for user in there}}


def _carry_groups(host: _Side, image: _Side, wanted: set[str], notes: list[str]) -> dict[int, int]:
    """Add missing groups; return old gid -> new gid for every group of the host that the result has."""
    moved: dict[int, int] = {}
    taken = {int(group[2]) for group in image["group"].values()}
    for name, group in host["group"].items():
        number = int(group[2])
        if name in image["group"]:
            moved[number] = int(image["group"][name][2])
        elif _is_person(number) or name in wanted:
            fresh = _free_id(number, taken, host["group"])
            if fresh != number:
                notes.append(f"group {name} had id {number}, which the image gives to another; it is {fresh} now")
            taken.add(fresh)
            moved[number] = fresh
            image["group"][name] = [name, group[1], str(fresh), ""]
            if name in host["gshadow"]:
                image["gshadow"][name] = [*host["gshadow"][name][:2], "", ""]
    return moved


def _carry_users(host: _Side, image: _Side, coming: set[str], moved: Mapping[int, int], notes: list[str]) -> None:
    taken = {int(user[2]) for user in image["passwd"].values()}
    for name, user in host["passwd"].items():
        number = int(user[2])
        if name in image["passwd"] or name not in coming:
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


def _joined(host: _Side, coming: set[str]) -> Iterator[str]:
    """Yield the groups of the host that accounts which come along are members of, or have for their own."""
    own = {host["passwd"][name][3] for name in coming}
    for name, group in host["group"].items():
        if group[2] in own or coming & {*group[3].split(",")}:
            yield name


def _carry_fields(host: _Side, image: _Side, release: _Side, has: Callable[[str], bool]) -> tuple[str, ...]:
    """Give accounts that both have the home and shell that the host changed since the old release; returns conflicts.

    A shell that the new root lacks locks people out, root among them, so there the image's stays.
    """
    told = []
    for name, user in host["passwd"].items():
        theirs, old = image["passwd"].get(name), release["passwd"].get(name)
        if theirs is None:
            continue
        for column, what in ((5, "home"), (6, "shell")):
            if user[column] == theirs[column] or (old is not None and user[column] == old[column]):
                continue
            if old is None:
                told.append(f"/etc/passwd: {name}'s {what} was {user[column]}, perhaps as the old release had it; it "
                            f"is the image's {theirs[column]}")
                continue
            if column == 6 and not has(user[column]):
                told.append(f"/etc/passwd: {name}'s shell was {user[column]}, which the new root does not have; it is "
                            f"the image's {theirs[column]}")
                continue
            if theirs[column] != old[column]:
                told.append(f"/etc/passwd: {name}'s {what} {user[column]} took the place of the image's "
                            f"{theirs[column]}")
            image["passwd"][name] = [*theirs[:column], user[column], *theirs[column + 1:]]
            theirs = image["passwd"][name]
    return tuple(told)


def _unstartable(host: _Side, image: _Side, has: Callable[[str], bool]) -> Iterator[str]:
    """Yield a sentence for each of the host's people whose shell the new root lacks: they cannot log in."""
    for name in host["passwd"]:
        user = image["passwd"].get(name)
        if user is not None and _is_person(int(user[2])) and user[6] and not has(user[6]):
            yield f"{name}'s shell {user[6]} is not in the new root, so {name} cannot log in; install it, or chsh"


def _left_out(host: _Side, image: _Side, release: _Side) -> tuple[str, ...]:
    """Return a sentence for each account and group that did not come and that the old release did not surely have."""
    told = []
    for table, kind in (("passwd", "user"), ("group", "group")):
        for name, row in host[table].items():
            if name not in image[table] and name not in release[table]:
                told.append(f"/etc/{table}: {kind} {name} ({row[2]}) is none of the image's and nothing that was kept "
                            "belongs to it; left out")
    return tuple(told)


def _carry_passwords(host: _Side, image: _Side, release: _Side) -> Iterator[str]:
    """Give accounts that both have the host's passwords and locks; yields what could not be decided."""
    for name, line in host["shadow"].items():
        theirs, old = image["shadow"].get(name), release["shadow"].get(name)
        if theirs is None or line[1] == theirs[1]:
            continue
        changed = line[1] not in _LOCKED if old is None else line[1] != old[1] and not {line[1], old[1]} <= _LOCKED
        if changed and (theirs[1] in _LOCKED or old is not None):
            image["shadow"][name] = line
        elif old is None and theirs[1] not in _LOCKED:
            yield (f"/etc/shadow: {name} has another password or none on the host, perhaps as the old release had it; "
                   "it is the image's")


def _carry_members(host: _Side, image: _Side, release: _Side) -> None:
    for table in ("group", "gshadow"):
        for name, fields in host[table].items():
            if name not in image[table]:
                continue
            for column in range(2, 4) if table == "gshadow" else (3,):
                old = release[table][name][column].split(",") if name in release[table] else []
                taken_out = {*old} - {*fields[column].split(",")}
                members = [member for member in image[table][name][column].split(",")
                           if member and member not in taken_out]
                for member in fields[column].split(","):
                    if member and member in image["passwd"] and member not in members:
                        members.append(member)
                image[table][name][column] = ",".join(members)
