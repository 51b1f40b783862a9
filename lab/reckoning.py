"""What became of each entry of a host by an upgrade (pure: two pictures and the report of what was put back in).

Every entry of the picture before ends in one Row; a fate that is not in FINE is something lost or changed untold.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from imaging.entry import printable

Picture = Mapping[str, Mapping[str, object]]
"""Path -> what lies there, as lab.oddities pictures it."""

FINE = ("kept", "merged", "beside", "image won", "archived", "told", "not precious")
LOST, CHANGED = "LOST", "CHANGED"
_UNSEEN = {"blocks", "same as"}
"""Keys of a picture that are not compared: how many blocks a file takes, and names in a picture."""


@dataclass(frozen=True)
class Row:
    """One entry of the host: its path, what became of it, and more where that says more."""

    path: str
    fate: str
    more: str = ""


def reckon(before: Picture, after: Picture, report: Mapping[str, Sequence[str]], verdict: Callable[[bytes], str | None],
           *, image: Callable[[bytes], bool] = lambda _path: False) -> list[Row]:
    """Return a Row for every entry of `before`.

    `verdict` is what the rule that keeps a path says, None where none does; `image` tells of such a path whether it is
    the image's business alone, so that it is nobody's loss when it is gone.
    """
    lists = {name: frozenset(rows) for name, rows in report.items()}
    sentences = [row for name in ("conflict", "dropped", "notes") for row in report.get(name, ())]
    rows = [_row(path, before[path], after, lists, sentences, verdict, image) for path in sorted(before)]
    return [*rows, *_parted(before, after, {row.path for row in rows if row.fate == "kept"})]


def _row(path: str, was: Mapping[str, object], after: Picture, lists: Mapping[str, frozenset[str]],
         sentences: Sequence[str], verdict: Callable[[bytes], str | None], image: Callable[[bytes], bool]) -> Row:
    raw = os.fsencode(path)
    precious = verdict(raw)
    shown, there = printable(raw), after.get(path)
    differs = ["all of it"] if there is None else sorted(
        key for key in {*was, *there} - _UNSEEN if was.get(key) != there.get(key))
    beside = next((f"{path}{end}" for end in (".precious", ".precious.1") if f"{shown}{end}" in lists["beside"]), None)
    if precious == "merge":  # a merger knows content; owner, mode and time are those of the image's file
        differs = [key for key in differs if key in {"all of it", "type", "content", "text", "size"}]
    if shown in lists["put_back"] or (not differs and (precious or shown not in lists["image_won"])):
        return Row(path, CHANGED, ", ".join(differs)) if differs else Row(path, "kept")
    if shown in lists["merged"]:
        return Row(path, "merged")
    if beside is not None:
        same = after.get(beside, {}).get("content") == was.get("content")
        return Row(path, "beside", beside) if same else Row(path, CHANGED, f"as {beside}")
    for name, fate in (("image_won", "image won"), ("unlisted", "archived")):
        if shown in lists[name]:
            return Row(path, fate)
    told = next((row for row in sentences if _names(row, shown)), None)
    if told is not None:
        return Row(path, "told", told)
    if precious is None and (there is not None or image(raw)):
        return Row(path, "not precious")
    return Row(path, LOST, ", ".join(differs))


def _names(sentence: str, shown: str) -> bool:
    at = sentence.find(f"/{shown}")
    return at >= 0 and sentence[at + len(shown) + 1:][:1] in {"", ":", " ", ","}


def _parted(before: Picture, after: Picture, kept: set[str]) -> Iterator[Row]:
    """Yield a Row for every name of a file that is not the same file any more as the others that were kept."""
    groups: dict[object, list[str]] = {}
    for path, entry in before.items():
        if "same as" in entry and path in kept:
            groups.setdefault(entry["same as"], []).append(path)
    for paths in groups.values():
        if len(paths) > 1 and len({str(after[path].get("same as")) for path in paths}) > 1:
            yield Row(sorted(paths)[0], CHANGED, f"no hard link any more to {', '.join(sorted(paths)[1:])}")


def table(rows: Iterable[Row], most: int = 12) -> str:
    """Return how many entries had which fate, and of the telling ones the first `most`, for people."""
    found = list(rows)
    counts = Counter(row.fate for row in found)
    lines = ["fate           entries"]
    for fate in (*FINE, CHANGED, LOST):
        lines.append(f"{fate:<14} {counts[fate]:>7}")
        shown = [row for row in found if row.fate == fate and (row.more or fate in {"merged", "image won", "archived"})]
        lines += [f"    /{printable(os.fsencode(row.path))[:90]}{'  ' if row.more else ''}{row.more[:150]}" for row in
                  shown[:most]]
        if len(shown) > most:
            lines.append(f"    … and {len(shown) - most} more")
    return "\n".join(lines)


def wrong(rows: Iterable[Row]) -> list[Row]:
    """Return what was lost or changed untold."""
    return [row for row in rows if row.fate not in FINE]
