"""A delta's head: what its frames hold and what they are unpacked with, to bytes and back. Pure.

The format is docs/protocols/delta.md. Decoding trusts nothing; `check` holds a head to the two indexes it joins, so
that no instruction can read outside a content or a frame, and none can name a path: paths are the new index's.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, cast

import zstandard

from imaging.entry import DIGEST_BYTES, Entry, Extent
from imaging.index import MAX_FRAME_GROWTH, MAX_RAW_BYTES, Frame, Index
from plumbing.errors import CorruptError

FORMAT, VERSION = "dev.reroot.delta", 1
MAX_HEAD_BYTES = 64 << 20
"""The largest head that is unpacked, in bytes."""
FRAME_BYTES = 8 << 20
"""The largest frame, in bytes before compression."""
DICTIONARY_BYTES = 24 << 20
"""The longest dictionary, in bytes: two workers, each with a dictionary, its copy and a frame, stay below 192 MiB."""

_BIG = (1 << 63) - 1


class Base(IntEnum):
    """Where a run of a dictionary comes from."""

    OLD = 0
    """A file of the old release, by its number among the files."""
    OLD_PAYLOAD = 1
    """What a gzip file of the old release unpacks to."""
    FRAME = 2
    """An earlier frame of the delta that itself needs no frame."""


class Run(NamedTuple):
    """`length` bytes from `offset` of the base number `row`; in bytes."""

    base: Base
    row: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DeltaFrame:
    """A zstd frame whose raw-content dictionary is `runs`, one after another; `raw_digest` is of what it unpacks to."""

    frame: Frame
    raw_digest: bytes
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """The content of the new release's file number `row`: `extents` of unpacked frames, packed again by `recipe`."""

    row: int
    extents: tuple[Extent, ...]
    recipe: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A head: manifest digests (`sha256:HEX`), the frame of the new index, frames and contents in order.

    Frames' offsets count from the beginning of the blob, where the index frame lies.
    """

    old: str
    new: str
    index: DeltaFrame
    frames: tuple[DeltaFrame, ...] = ()
    contents: tuple[Content, ...] = field(default=())

    @property
    def data_bytes(self) -> int:
        """The compressed frames together, in bytes."""
        return self.index.frame.length + sum(one.frame.length for one in self.frames)


def encode(delta: Delta) -> bytes:
    """Return the head as zstd-compressed JSON; raises CorruptError when it could not be read back."""
    _check(delta)
    frames = [one.frame for one in delta.frames]
    value = {
        "format": FORMAT, "version": VERSION, "old": delta.old, "new": delta.new,
        "index": [delta.index.frame.length, delta.index.frame.raw_length,
                  _base64(delta.index.frame.digest), _base64(delta.index.raw_digest)],
        "length": [frame.length for frame in frames],
        "raw_length": [frame.raw_length for frame in frames],
        "blake3": _base64(b"".join(frame.digest for frame in frames)),
        "raw_blake3": _base64(b"".join(one.raw_digest for one in delta.frames)),
        "runs": [[int(number) for run in one.runs for number in run] for one in delta.frames],
        "row": [content.row for content in delta.contents],
        "extents": [[number for extent in content.extents for number in extent] for content in delta.contents],
        "recipe": [[place, list(content.recipe)] for place, content in enumerate(delta.contents) if content.recipe],
    }
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return zstandard.ZstdCompressor(level=19, write_checksum=True).compress(text)


def decode(data: bytes) -> Delta:
    """Read what `encode` wrote; raises CorruptError on everything else, however it was made."""
    try:
        raw_bytes = zstandard.frame_content_size(data)
        if not 0 <= raw_bytes <= MAX_HEAD_BYTES:
            raise bad(f"its head unpacks to {raw_bytes} bytes")
        value: object = json.loads(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False))
    except (zstandard.ZstdError, ValueError, RecursionError, MemoryError) as error:
        raise bad("its head is not zstd-compressed JSON") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
        raise bad(f"it is not {FORMAT} version {VERSION}; use the reroot that made it, or a newer one")
    columns = cast("dict[str, object]", value)
    place = columns.get("index")
    if not isinstance(place, list) or len(place) != 4:
        raise bad("where its index lies is not said")
    length, raw_length = _numbers(place[:2], "index", 1, MAX_RAW_BYTES + MAX_FRAME_GROWTH, 2)
    index = DeltaFrame(Frame(0, length, raw_length, _digests(place[2], 1)[0]), _digests(place[3], 1)[0])
    delta = Delta(_text(columns, "old"), _text(columns, "new"), index, _frames(columns, length),
                  tuple(_contents(columns)))
    _check(delta)
    return delta


def check(delta: Delta, old: Index, new: Index) -> None:
    """Raise CorruptError unless everything the head names is in the indexes: rows, ranges, lengths."""
    old_files, new_files = files(old), files(new)
    for one in delta.frames:
        for run in one.runs:
            if run.base is not Base.FRAME and run.row >= len(old_files):
                raise bad("a dictionary is of a file that the old release does not have")
            if run.base is Base.OLD and run.offset + run.length > old_files[run.row].size:
                raise bad("a dictionary goes beyond the end of its file")
    there = {entry.digest for entry in old_files}
    for content in delta.contents:
        if content.row >= len(new_files):
            raise bad("a content is of a file that the new release does not have")
        length = sum(extent.length for extent in content.extents)
        if length != new_files[content.row].size and not content.recipe:
            raise bad("a content has another length than its file")
    there.update(new_files[content.row].digest for content in delta.contents)
    if any(entry.size and entry.digest not in there for entry in new_files):
        raise bad("a file of the new release is neither in the old one nor in the delta")


def files(index: Index) -> list[Entry]:
    """Return the entries that own content, which a delta knows by their number."""
    return [entry for entry in index.entries if entry.is_file]


def bad(why: str) -> CorruptError:
    """Return the error for a delta that can't be used."""
    return CorruptError(f"the delta is unusable: {why}; restore the full release, or make the delta anew")


# -- from columns ----------------------------------------------------------------------------------------------


def _frames(columns: dict[str, object], start: int) -> tuple[DeltaFrame, ...]:
    lengths = _numbers(columns.get("length"), "length", 1, FRAME_BYTES + MAX_FRAME_GROWTH)
    count = len(lengths)
    raws = _numbers(columns.get("raw_length"), "raw_length", 1, FRAME_BYTES, count)
    digests, raw_digests = _digests(columns.get("blake3"), count), _digests(columns.get("raw_blake3"), count)
    found: list[DeltaFrame] = []
    for length, raw, digest, raw_digest, runs in zip(
            lengths, raws, digests, raw_digests, _list(columns.get("runs"), "runs", count), strict=True):
        numbers = _numbers(runs, "runs", 0, _BIG)
        if len(numbers) % 4 or not set(numbers[::4]) <= set(Base):
            raise bad("a dictionary is not written as base, row, offset, length")
        found.append(DeltaFrame(Frame(start, length, raw, digest), raw_digest, tuple(
            Run(Base(base), row, offset, size) for base, row, offset, size in zip(*[iter(numbers)] * 4, strict=True))))
        start += length
    return tuple(found)


def _contents(columns: dict[str, object]) -> list[Content]:
    rows = _numbers(columns.get("row"), "row", 0, 1 << 31)
    recipes: dict[int, tuple[int, ...]] = {}
    for item in _list(columns.get("recipe"), "recipe"):
        if not isinstance(item, list) or len(item) != 2 or type(item[0]) is not int or item[0] in recipes \
                or not 0 <= item[0] < len(rows):
            raise bad("a recipe is of no content, or of one that has another")
        recipes[item[0]] = tuple(_numbers(item[1], "recipe", 0, 255))
    found: list[Content] = []
    for place, (row, extents) in enumerate(zip(rows, _list(columns.get("extents"), "extents", len(rows)), strict=True)):
        numbers = _numbers(extents, "extents", 0, _BIG)
        if len(numbers) % 3:
            raise bad("an extent is not written as frame, offset, length")
        found.append(Content(row, tuple(map(Extent._make, zip(*[iter(numbers)] * 3, strict=True))),
                             recipes.get(place, ())))
    return found


def _check(delta: Delta) -> None:
    """Raise CorruptError unless runs and extents stay inside what they are of, and no extent lies over another."""
    for number, one in enumerate(delta.frames):
        if sum(run.length for run in one.runs) > DICTIONARY_BYTES:
            raise bad("a dictionary is too long")
        for run in one.runs:
            if run.length < 1:
                raise bad("a dictionary has an empty run")
            if run.base is Base.FRAME:
                if run.row >= number or any(inner.base is Base.FRAME for inner in delta.frames[run.row].runs):
                    raise bad("a dictionary is of a frame that is not unpacked by itself before")
                if run.offset + run.length > delta.frames[run.row].frame.raw_length:
                    raise bad("a dictionary goes beyond the end of its frame")
    last = -1
    for content in delta.contents:
        if content.row <= last or not content.extents:
            raise bad("contents are not in the order of the files, or one is empty")
        last = content.row
    at = (0, 0)
    for extent in sorted(extent for content in delta.contents for extent in content.extents):
        if extent.frame >= len(delta.frames) or (extent.frame, extent.offset) < at or extent.length < 1 \
                or extent.offset + extent.length > delta.frames[extent.frame].frame.raw_length:
            raise bad("an extent lies outside its frame or over another")
        at = (extent.frame, extent.offset + extent.length)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _text(columns: dict[str, object], name: str) -> str:
    value = columns.get(name)
    if not isinstance(value, str):
        raise bad(f"{name} is not a string")
    return value


def _list(value: object, what: str, length: int | None = None) -> list[object]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise bad(f"column {what} is missing or has the wrong length")
    return value


def _numbers(value: object, what: str, low: int, high: int, length: int | None = None) -> list[int]:
    numbers = _list(value, what, length)
    if numbers and (set(map(type, numbers)) != {int} or min(cast("list[int]", numbers)) < low
                    or max(cast("list[int]", numbers)) > high):
        raise bad(f"column {what} holds something that is not a number from {low} to {high}")
    return cast("list[int]", numbers)


def _digests(value: object, count: int) -> list[bytes]:
    try:
        data = base64.b64decode(value.encode("ascii"), validate=True) if isinstance(value, str) else b""
    except (ValueError, binascii.Error) as error:
        raise bad("digests are not base64") from error
    if not isinstance(value, str) or len(data) != count * DIGEST_BYTES:
        raise bad(f"there are not {count} digests")
    return [data[start:start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]
