"""Subordinate ids of two systems made one (pure: the bytes of two files, subuid or subgid, in and out).

A line gives a user a range of ids for the containers that he runs. The image's lines stay as they are; a user's lines
of the old host come along, all of them, when the image gives him none. A range that would share ids with another
user's of the image moves to a free place: two users with one range could read each other's containers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

FIRST, END = 100_000, 2**32 - 1
"""The first id that useradd gives out so (SUB_UID_MIN), and the first that is no id."""


@dataclass(frozen=True)
class Range:
    """The ids start … start + count - 1, for the containers of a user."""

    name: str
    start: int
    count: int

    def shares(self, other: Range) -> bool:
        """Tell whether an id is in both."""
        return self.start < other.start + other.count and other.start < self.start + self.count


def merge(host: bytes, image: bytes, users: Mapping[str, str], table: str) -> tuple[bytes, tuple[str, ...]]:
    """Merge the host's lines of `table`, "subuid" or "subgid", into the image's; returns the file and notes.

    `users` maps what the host's lines may begin with (a name, or an id as text) to the name in the new root; the lines
    of others are not carried. Merging a result again with the same `host` changes nothing.
    """
    notes: list[str] = []
    old, theirs = _read(host, f"host's /etc/{table}", notes), _read(image, f"image's /etc/{table}", notes)
    provided = {ours.name for ours in theirs}
    ranges = list(theirs)
    carried = [replace(ours, name=users[ours.name]) for ours in old if ours.name in users]
    carried = [ours for ours in carried if ours.name not in provided]
    for ours in carried:
        place: Range | None = ours
        if any(ours.shares(other) for other in theirs):
            place = _free(ours, [*ranges, *carried])
            where = "nothing is free for it: left out" if place is None else (
                f"it begins at {place.start} now, and files of its containers still carry the old ids")
            notes.append(f"/etc/{table}: {ours.name}'s range of {ours.count} ids from {ours.start} shares some with "
                         f"another user's of the image; {where}")
        if place is not None:
            ranges.append(place)
    return "".join(f"{ours.name}:{ours.start}:{ours.count}\n" for ours in ranges).encode("utf-8", "surrogateescape"), (
        *notes,)


def _read(data: bytes, label: str, notes: list[str]) -> Sequence[Range]:
    found = []
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        if not line or line.startswith("#"):
            continue
        name, *numbers = line.split(":")
        if not name or len(numbers) != 2 or not all(part.isascii() and part.isdigit() for part in numbers) or (
                int(numbers[0]) + int(numbers[1]) > END):
            notes.append(f"the {label} has a line that is no range: {line[:40]!r}; left out")
            continue
        found.append(Range(name, int(numbers[0]), int(numbers[1])))
    return found


def _free(wanted: Range, taken: Iterable[Range]) -> Range | None:
    """Return the range at the first place where it shares nothing with others; None when there is no such place."""
    others = list(taken)
    starts = sorted({FIRST, *(other.start + other.count for other in others if other.start + other.count > FIRST)})
    for start in starts:
        place = replace(wanted, start=start)
        if start + wanted.count <= END and not any(place.shares(other) for other in others):
            return place
    return None
