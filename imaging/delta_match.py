"""Which old file is most like a new one: by path, by path without its numbers, by name, by what is written in it. Pure.

Only what decides the size of a delta is decided here; a bad guess costs bytes and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from zlib import crc32

from imaging.entry import Entry

SAMPLED_BYTES = 1 << 20
"""How much of a file is looked at for what is written in it, in bytes."""
SAMPLES = 48
"""How many of its strings a file is known by."""
ENOUGH = 4
"""As many strings in common make two files alike."""
SMALLEST = 512
"""Files below are not worth a look, in bytes."""

_NUMBERS = re.compile(rb"\d+")
_STRINGS = re.compile(rb"[\x20-\x7e]{10,64}")


def matched(
    old: Sequence[Entry], new: Iterable[Entry], aliases: Mapping[bytes, bytes] | None = None,
) -> dict[bytes, int]:
    """Return, by path of a new file, the number among the files `old` of the one that its path leads to.

    The same path first, then the same but for its numbers (`6.1.0-50`, `.so.1.2.3`), then the same name but for its
    numbers elsewhere; among several the one with the same name and the nearest size. `aliases` are further names of
    old files: hard links.
    """
    by_path = {entry.path: row for row, entry in enumerate(old)}
    for alias, path in (aliases or {}).items():
        if path in by_path:
            by_path.setdefault(alias, by_path[path])
    by_shape: dict[bytes, list[int]] = {}
    by_name: dict[bytes, list[int]] = {}
    for row, entry in enumerate(old):
        if entry.size:
            by_shape.setdefault(shape(entry.path), []).append(row)
            by_name.setdefault(shape(_name(entry.path)), []).append(row)
    found: dict[bytes, int] = {}
    for entry in new:
        same = by_path.get(entry.path)
        if same is not None and old[same].size:
            found[entry.path] = same
            continue
        near = by_shape.get(shape(entry.path)) or [
            row for row in by_name.get(shape(_name(entry.path)), ())
            if old[row].size <= 4 * entry.size and entry.size <= 4 * old[row].size]
        if near:
            name, size = _name(entry.path), entry.size
            found[entry.path] = min(
                near, key=lambda one: (_name(old[one].path) != name, abs(old[one].size - size), one))
    return found


def alike(
    old: Mapping[int, Callable[[], bytes]], new: Mapping[bytes, Callable[[], bytes]],
) -> dict[bytes, int]:
    """Return, by path of a new file, the number of the old file that has most of its strings, if it has ENOUGH.

    Both are given as what reads the first SAMPLED_BYTES of each; the cost is bounded by them and by SAMPLES.
    """
    if not new:
        return {}
    holders: dict[int, list[int]] = {}
    for row, read in old.items():
        for sample in samples(read()):
            holders.setdefault(sample, []).append(row)
    found: dict[bytes, int] = {}
    for path, read in new.items():
        votes = Counter(row for sample in samples(read()) for row in holders.get(sample, ()))
        best = max(votes.items(), key=lambda vote: (vote[1], -vote[0]), default=(0, 0))
        if best[1] >= ENOUGH:
            found[path] = best[0]
    return found


def samples(data: bytes) -> list[int]:
    """Return the checksums of strings in `data` that both of two files would choose: the smallest."""
    return sorted({crc32(text) for text in _STRINGS.findall(data[:SAMPLED_BYTES])})[:SAMPLES]


def shape(path: bytes) -> bytes:
    """Return a path with every number in it replaced by one and the same."""
    return _NUMBERS.sub(b"0", path)


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]
