"""A release's index against another's: as lines that a dictionary of the old ones makes short. Pure.

A line per entry, so that a run of unchanged entries is one match; digests as hex, so that a row more does not shift
every byte after it. Where the layer was cut by the rule of docs/protocols/release.md, extents are derived from the
entries instead of being written down.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from imaging import tarstream
from imaging.entry import DIGEST_BYTES, Entry, EntryType, Extent
from imaging.frames import COARSE, FINE, PIECE, Cuts
from imaging.index import MAX_FRAME_BYTES, Index, from_columns, to_columns
from plumbing.errors import CorruptError, UsageError

_DENSE = ("path", "mode", "uid", "gid", "mtime_ns")
_OF_FILES = ("size", "blake3", "extents")
_SPARSE = ("link", "rdev", "xattrs", "holes")


def to_lines(index: Index) -> bytes:
    """Return the index as JSON with a line per entry; `from_lines` gives an equal index back."""
    columns = to_columns(index)
    there = [entry.extents for entry in index.entries if entry.is_file], [frame.raw_length for frame in index.frames]
    short = next((cuts for cuts in (FINE, COARSE) if layout(index.entries, cuts) == there), None)
    frames, offset = [], 0
    for frame in index.frames:
        frames.append([frame.offset - offset, frame.length, 0 if short else frame.raw_length, frame.digest.hex()])
        offset = frame.offset + frame.length
    sparse = {name: dict(cast("list[tuple[int, object]]", columns[name])) for name in _SPARSE}
    sizes, extents = cast("list[int]", columns["size"]), cast("list[object]", columns["extents"])
    rows, number = list[str](), 0
    dense = zip(*(cast("list[object]", columns[name]) for name in _DENSE), strict=True)
    for row, (entry, values) in enumerate(zip(index.entries, dense, strict=True)):
        line: list[object] = [entry.type.value, *values]
        if entry.is_file:
            line += [sizes[number], entry.digest.hex(), 0 if short else extents[number]]
            number += 1
        extra = {name: found[row] for name, found in sparse.items() if row in found}
        rows.append(_compact([*line, extra] if extra else line))
    head = {name: columns[name] for name in ("format", "version")} | {"cuts": short}
    return "\n".join([_compact(head), *map(_compact, frames), "", *rows]).encode("ascii")


def from_lines(data: bytes) -> Index:
    """Read what `to_lines` wrote; raises CorruptError on everything else."""
    try:
        head, *lines = data.decode("ascii").split("\n")
        end = lines.index("")
        top: object = json.loads(head)
        frames: list[list[object]] = [json.loads(line) for line in lines[:end]]
        rows: list[list[object]] = json.loads("[" + ",".join(lines[end + 1:]) + "]")
        index = _index(cast("dict[str, object]", top), frames, rows)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError, MemoryError,
            UsageError) as error:
        raise CorruptError("the index in the delta is unusable: it is not written as lines of JSON; restore the full "
                           "release, or make the delta anew") from error
    return index


def layout(entries: Sequence[Entry], cuts: Cuts) -> tuple[list[tuple[Extent, ...]], list[int]]:
    """Return each file's extents and each frame's unpacked length, as `imaging.frames.Cutter` cuts them."""
    extents, frames = dict[int, tuple[Extent, ...]](), list[int]()
    length = 0
    for row in tarstream.order(entries):
        entry = entries[row]
        header, padding = len(tarstream.header(entry)), len(tarstream.padding(entry.size))
        if entry.is_file and entry.size >= cuts.large:
            frames.append(length + header)
            length = 0
            pieces = [min(PIECE, entry.size - start) for start in range(0, entry.size, PIECE)]
            extents[row] = tuple(Extent(len(frames) + number, 0, piece) for number, piece in enumerate(pieces))
            pieces[-1] += padding
            frames += pieces
            continue
        if entry.is_file:
            extents[row] = (Extent(len(frames), length + header, entry.size),) if entry.size else ()
        record = header + entry.size + padding
        length += record
        if cuts.ends(length, record, entry.digest):
            frames.append(length)
            length = 0
    return ([extents[row] for row in sorted(extents)],
            [*frames, *([length] if length else []), len(tarstream.END)])


def _index(top: dict[str, object], frames: list[list[object]], rows: list[list[object]]) -> Index:
    columns: dict[str, object] = {"format": top["format"], "version": top["version"], "type": "", "size": [],
                                  "blake3": "", "extents": [], **{name: [] for name in (*_DENSE, *_SPARSE)}}
    lists = {name: cast("list[object]", value) for name, value in columns.items() if isinstance(value, list)}
    types, digests = list[str](), list[str]()
    for row, line in enumerate(rows):
        types.append(str(line[0]))
        rest = line[1 + len(_DENSE):]
        for name, value in zip(_DENSE, line[1:1 + len(_DENSE)], strict=True):
            lists[name].append(value)
        if line[0] == EntryType.FILE.value:
            size, digest, extents = rest[:3]
            rest = rest[3:]
            lists["size"].append(size)
            digests.append(str(digest))
            lists["extents"].append(extents)
        if rest:
            for name, value in cast("dict[str, object]", rest[0]).items():
                lists[name].append([row, value])
    columns["type"], columns["blake3"] = "".join(types), _base64(digests)
    cuts = cast("list[int] | None", top["cuts"])
    if cuts is not None:  # whatever else is wrong with the index is found first, with extents that are not
        columns["extents"] = [[] for _ in digests]
        entries = from_columns({**columns, "size": [0] * len(digests), "holes": [], "frames": _frames([], [])}).entries
        lengths = cast("list[int]", columns["size"])
        if min(lengths, default=0) < 0 or sum(lengths) > len(frames) * MAX_FRAME_BYTES:
            raise ValueError("so much is not in so few frames")
        sizes = iter(lengths)
        sums = iter(digests)
        whole = [replace(entry, size=next(sizes), digest=bytes.fromhex(next(sums))) if entry.is_file else entry
                 for entry in entries]
        found = layout(whole, _cuts(cuts))
        columns["extents"] = [[number for extent in one for number in extent] for one in found[0]]
        columns["frames"] = _frames(frames, list[object](found[1]))
    else:
        columns["frames"] = _frames(frames, [frame[2] for frame in frames])
    return from_columns(columns)


def _cuts(numbers: list[int]) -> Cuts:
    if len(numbers) != 4 or any(type(number) is not int or not 0 < number <= MAX_FRAME_BYTES for number in numbers):
        raise ValueError("those are no cuts")
    return Cuts(*numbers)


def _frames(frames: list[list[object]], raws: list[object]) -> dict[str, object]:
    offsets, at = list[int](), 0
    for gap, length, *_ in cast("list[list[int]]", frames):
        offsets.append(at + gap)
        at += gap + length
    return {"offset": offsets, "length": [frame[1] for frame in frames], "raw_length": raws,
            "blake3": _base64([str(frame[3]) for frame in frames])}


def _base64(digests: list[str]) -> str:
    values = [bytes.fromhex(digest) for digest in digests]
    if any(len(value) != DIGEST_BYTES for value in values):
        raise ValueError("a digest has another length")
    return base64.b64encode(b"".join(values)).decode("ascii")


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))

