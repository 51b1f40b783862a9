"""Where in a TOML text a key stands, so that an error can name the line; pure.

tomllib gives lines for syntax errors only. This walks headers and assignments line by line, which is exact for the way
people write these files (one key per line) and falls back to the table's own line for keys inside an inline table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\-\"' ]+?)\s*\]\]?\s*(?:#.*)?$")
_PART = r"(?:[A-Za-z0-9_\-]+|\"[^\"]*\"|'[^']*')"
_KEY = re.compile(rf"^\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")


def line_of(text: str, path: Sequence[str | int]) -> int:
    """Return the 1-based line of the key at `path` (table names, array positions, key), as near as it can be told.

    `path` is as pydantic gives it: ("dhcp", "subnet", 1, "network") is the key of the second [[dhcp.subnet]].
    """
    wanted = tuple(str(part) for part in path)
    best_line, best_length = 1, 0
    counts: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            names = _names(header.group(2))
            table = _place(names, counts, appends=header.group(1) == "[[")
            here = table
        elif key := _KEY.match(line):
            here = (*table, *_names(key.group(1)))
        else:
            continue
        length = len(here)
        if length > best_length and wanted[:length] == here:
            best_line, best_length = number, length
    return best_line


def _names(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))


def _place(names: tuple[str, ...], counts: dict[tuple[str, ...], int], *, appends: bool) -> tuple[str, ...]:
    """Turn a header's names into a path with the positions of the arrays of tables on the way."""
    place: tuple[str, ...] = ()
    for depth, name in enumerate(names):
        place = (*place, name)
        if appends and depth == len(names) - 1:
            counts[place] = counts.get(place, -1) + 1
        if place in counts:
            place = (*place, str(counts[place]))
    return place
