"""The index of a release: every entry and every frame, to bytes and back. Pure.

The format is docs/protocols/release.md. Decoding trusts nothing: what it returns can be restored without a
name leaving the target, an extent leaving its frame or content being used twice.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import zstandard

from imaging.entry import DIGEST_BYTES, ROOT, Entry, EntryType, Extent, Hole, parent, printable
from plumbing.errors import CorruptError

FORMAT = "dev.reroot.index"
VERSION = 1
MAX_RAW_BYTES = 1 << 30
"""The largest index that is unpacked, in bytes; a million entries need about 200 MB."""
MAX_FRAME_BYTES = 16 << 20
"""The largest frame, in bytes before compression; a reader may keep one whole in memory."""
MAX_FRAME_GROWTH = 64 << 10
"""How much longer than its content a compressed frame may be, in bytes."""
MAX_NAME, MAX_PATH, MAX_LINK, MAX_XATTR = 255, 4095, 4095, 64 << 10
LEVEL = 9

_BIG = 1 << 63
_TYPES = {kind.value: kind for kind in EntryType}


@dataclass(frozen=True, slots=True)
class Frame:
    """An independent zstd frame of the layer: in bytes; `digest` is the BLAKE3 of its compressed bytes."""

    offset: int
    length: int
    raw_length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Index:
    """The whole of a release: its entries in tree order and its frames in layer order."""

    entries: tuple[Entry, ...]
    frames: tuple[Frame, ...]

    @property
    def content_bytes(self) -> int:
        """The sizes of all files together, in bytes."""
        return sum(entry.size for entry in self.entries)

    @property
    def filled(self) -> frozenset[int]:
        """The numbers of the frames that hold content; a restore needs no others, for they hold headers."""
        return frozenset(extent.frame for entry in self.entries for extent in entry.extents)

    @property
    def layer_bytes(self) -> int:
        """The compressed frames together, in bytes."""
        return sum(frame.length for frame in self.frames)


def encode(index: Index) -> bytes:
    """Return the index as zstd-compressed JSON; equal indexes give equal bytes.

    Raises CorruptError when the index could not be read back, for example with a duplicate path.
    """
    _check_frames(index.frames)
    _check_entries(index)
    text = json.dumps(to_columns(index), ensure_ascii=True, separators=(",", ":"))
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(text.encode("ascii"))


def decode(data: bytes) -> Index:
    """Read what `encode` wrote; raises CorruptError on everything else, however it was made."""
    try:
        raw_bytes = zstandard.frame_content_size(data)
        if not 0 <= raw_bytes <= MAX_RAW_BYTES:
            raise _bad(f"its unpacked size of {raw_bytes} bytes is not within 0 to {MAX_RAW_BYTES}")
        value: object = json.loads(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False))
    except (zstandard.ZstdError, ValueError, RecursionError, MemoryError) as error:
        raise _bad("it is not zstd-compressed JSON") from error
    return from_columns(value)


def from_columns(value: object) -> Index:
    """Read what `to_columns` returned, from whatever source; raises CorruptError on everything else."""
    columns = _mapping(value, "the index")
    if columns.get("format") != FORMAT or columns.get("version") != VERSION:
        raise _bad(f"it is not {FORMAT} version {VERSION}; use the reroot that made it, or a newer one")
    frames = _frames(_mapping(columns.get("frames"), "frames"))
    _check_frames(frames)
    try:
        index = Index(tuple(_entries(columns)), frames)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise _bad("a name or value in it is not validly encoded") from error
    _check_entries(index)
    return index


# -- to columns ----------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def to_columns(index: Index) -> dict[str, object]:
    """Return the index as the value that is written as JSON, column by column."""
    rows = index.entries
    files = [entry for entry in rows if entry.is_file]
    return {
        "format": FORMAT,
        "version": VERSION,
        "path": [_text(entry.path) for entry in rows],
        "type": "".join(entry.type.value for entry in rows),
        "mode": [entry.mode for entry in rows],
        "uid": [entry.uid for entry in rows],
        "gid": [entry.gid for entry in rows],
        "mtime_ns": [entry.mtime_ns for entry in rows],
        "size": [entry.size for entry in files],
        "blake3": _base64(b"".join(entry.digest for entry in files)),
        "extents": [[number for extent in entry.extents for number in extent] for entry in files],
        "link": [[row, _text(entry.link)] for row, entry in enumerate(rows) if entry.link],
        "rdev": [[row, entry.rdev] for row, entry in enumerate(rows) if entry.rdev],
        "xattrs": [[row, [[_text(name), _base64(value)] for name, value in entry.xattrs]]
                   for row, entry in enumerate(rows) if entry.xattrs],
        "holes": [[row, [number for hole in entry.holes for number in hole]]
                  for row, entry in enumerate(rows) if entry.holes],
        "frames": {
            "offset": [frame.offset for frame in index.frames],
            "length": [frame.length for frame in index.frames],
            "raw_length": [frame.raw_length for frame in index.frames],
            "blake3": _base64(b"".join(frame.digest for frame in index.frames)),
        },
    }


# -- from columns --------------------------------------------------------------------------------------------


def _bad(why: str) -> CorruptError:
    return CorruptError(f"the release's index is unusable: {why}; fetch it again or publish anew")


def _mapping(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _bad(f"{what} is not a JSON object")
    return value


def _list(columns: dict[str, object], name: str, length: int | None = None) -> list[object]:
    value = columns.get(name)
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise _bad(f"column {name} is missing or has the wrong length")
    return value


def _numbers(value: object, what: str, low: int, high: int, length: int | None = None) -> list[int]:
    """Return `value` as a list of plain integers, each in low..high."""
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise _bad(f"{what} is missing or has the wrong length")
    if value and (set(map(type, value)) != {int} or min(value) < low or max(value) > high):
        raise _bad(f"{what} holds something that is not a number from {low} to {high}")
    return cast("list[int]", value)


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise _bad(f"{what} is not a string")
    return value


def _bytes(value: object, what: str) -> bytes:
    return _string(value, what).encode("utf-8", "surrogateescape")


def _unbase64(value: object, what: str) -> bytes:
    try:
        return base64.b64decode(_string(value, what).encode("ascii"), validate=True)
    except ValueError as error:
        raise _bad(f"{what} is not base64") from error


def _digests(value: object, what: str, count: int) -> list[bytes]:
    data = _unbase64(value, what)
    if len(data) != count * DIGEST_BYTES:
        raise _bad(f"{what} does not hold {count} digests")
    return [data[start:start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]


def _frames(columns: dict[str, object]) -> tuple[Frame, ...]:
    offsets = _numbers(columns.get("offset"), "column frames.offset", 0, _BIG)
    count = len(offsets)
    longest = MAX_FRAME_BYTES + MAX_FRAME_GROWTH
    lengths = _numbers(columns.get("length"), "column frames.length", 1, longest, count)
    raws = _numbers(columns.get("raw_length"), "column frames.raw_length", 1, MAX_FRAME_BYTES, count)
    return tuple(map(Frame, offsets, lengths, raws, _digests(columns.get("blake3"), "frames.blake3", count)))


def _by_row(columns: dict[str, object], name: str, rows: int) -> dict[int, object]:
    """Return a sparse column, a list of [row, value], as a mapping."""
    found: dict[int, object] = {}
    for item in _list(columns, name):
        if not isinstance(item, list) or len(item) != 2 or type(item[0]) is not int:
            raise _bad(f"column {name} holds something that is not [row, value]")
        if item[0] in found or not 0 <= item[0] < rows:
            raise _bad(f"column {name} has row {item[0]} twice or beyond the last entry")
        found[item[0]] = item[1]
    return found


def _pairs(value: object) -> tuple[tuple[bytes, bytes], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, list) and len(item) == 2 for item in value):
        raise _bad("an extended attribute is not [name, value]")
    return tuple((_bytes(name, "an attribute's name"), _unbase64(data, "an attribute"))
                 for name, data in value)


def _entries(columns: dict[str, object]) -> Iterator[Entry]:
    kinds = _string(columns.get("type"), "column type")
    rows = len(kinds)
    if not set(kinds) <= _TYPES.keys():
        raise _bad("column type holds an unknown type")
    file_count = kinds.count(EntryType.FILE.value)
    paths = _list(columns, "path", rows)
    modes = _numbers(columns.get("mode"), "column mode", 0, 0o7777, rows)
    uids = _numbers(columns.get("uid"), "column uid", 0, 0xFFFFFFFE, rows)
    gids = _numbers(columns.get("gid"), "column gid", 0, 0xFFFFFFFE, rows)
    times = _numbers(columns.get("mtime_ns"), "column mtime_ns", -_BIG, _BIG - 1, rows)
    sizes = iter(_numbers(columns.get("size"), "column size", 0, _BIG - 1, file_count))
    digests = iter(_digests(columns.get("blake3"), "column blake3", file_count))
    extents = iter(_list(columns, "extents", file_count))
    links, rdevs = _by_row(columns, "link", rows), _by_row(columns, "rdev", rows)
    xattrs, holes = _by_row(columns, "xattrs", rows), _by_row(columns, "holes", rows)
    _numbers(list(rdevs.values()), "column rdev", 1, 2 * _BIG - 1)
    for row, (path, letter, mode, uid, gid, time_ns) in enumerate(
            zip(paths, kinds, modes, uids, gids, times, strict=True)):
        is_file = letter == EntryType.FILE.value
        yield Entry(
            _bytes(path, "a path"), _TYPES[letter], mode, uid, gid, time_ns,
            size=next(sizes) if is_file else 0,
            link=_bytes(links[row], "a link") if row in links else b"",
            rdev=cast("int", rdevs[row]) if row in rdevs else 0,
            xattrs=_pairs(xattrs[row]) if row in xattrs else (),
            digest=next(digests) if is_file else b"",
            extents=_extents(next(extents)) if is_file else (),
            holes=_holes(holes[row]) if row in holes else (),
        )


def _extents(value: object) -> tuple[Extent, ...]:
    numbers = _numbers(value, "an extent", 0, _BIG)
    if len(numbers) == 3:
        return (Extent(*numbers),)
    if len(numbers) % 3:
        raise _bad("an extent is not frame, offset, length")
    return tuple(map(Extent, numbers[::3], numbers[1::3], numbers[2::3]))


def _holes(value: object) -> tuple[Hole, ...]:
    numbers = _numbers(value, "a hole", 0, _BIG)
    if len(numbers) % 2:
        raise _bad("a hole is not offset, length")
    return tuple(map(Hole, numbers[::2], numbers[1::2]))


# -- what must hold ------------------------------------------------------------------------------------------


def _check_frames(frames: tuple[Frame, ...]) -> None:
    end = 0
    for number, frame in enumerate(frames):
        if frame.offset < end:
            raise _bad(f"frame {number} begins inside the one before it")
        if not 0 < frame.raw_length <= MAX_FRAME_BYTES:
            raise _bad(f"frame {number} unpacks to {frame.raw_length} bytes, more than {MAX_FRAME_BYTES}")
        if not 0 < frame.length <= frame.raw_length + MAX_FRAME_GROWTH:
            raise _bad(f"frame {number} is {frame.length} bytes long, more than its content can need")
        if len(frame.digest) != DIGEST_BYTES:
            raise _bad(f"frame {number} has no digest")
        end = frame.offset + frame.length
    if end >= _BIG:
        raise _bad("its frames end beyond any file's end")


def _check_entries(index: Index) -> None:
    if not index.entries or index.entries[0].path != ROOT or not index.entries[0].is_directory:
        raise _bad("its first entry is not the top directory")
    seen: dict[bytes, EntryType] = {ROOT: EntryType.DIRECTORY}
    _check_fields(index.entries[0], seen)
    for entry in index.entries[1:]:
        _check_path(entry.path, seen)
        _check_fields(entry, seen)
        seen[entry.path] = entry.type
    used = Extent(0, 0, 0)
    for entry in sorted(filter(lambda entry: entry.is_file, index.entries), key=lambda entry: entry.extents[:1]):
        used = _check_content(entry, index.frames, used)


def _check_path(path: bytes, seen: dict[bytes, EntryType]) -> None:
    name = path.rpartition(b"/")[2]
    if not name or name in {b".", b".."} or len(name) > MAX_NAME or len(path) > MAX_PATH or b"\0" in path:
        raise _bad(f"{printable(path)!r} is not a path within the tree")
    if path in seen:
        raise _bad(f"{printable(path)!r} is in it twice")
    # The parent was itself checked when it was seen, so every component above is sound too.
    if path.startswith((b"/", b"./")) or seen.get(parent(path)) is not EntryType.DIRECTORY:
        raise _bad(f"{printable(path)!r} has no directory before it to lie in")


def _check_fields(entry: Entry, seen: dict[bytes, EntryType]) -> None:
    kind, where = entry.type, printable(entry.path)
    linked = kind in {EntryType.SYMLINK, EntryType.LINK}
    if linked != bool(entry.link) or len(entry.link) > MAX_LINK or b"\0" in entry.link:
        raise _bad(f"{where!r} has a link target that does not suit its type")
    if kind is EntryType.LINK and seen.get(entry.link) in {None, EntryType.DIRECTORY, EntryType.LINK}:
        raise _bad(f"{where!r} is a hard link to {printable(entry.link)!r}, which is no earlier file")
    if entry.rdev and kind not in {EntryType.CHAR, EntryType.BLOCK}:
        raise _bad(f"{where!r} has a device number and is no device")
    if not entry.is_file and (entry.size or entry.digest or entry.extents or entry.holes):
        raise _bad(f"{where!r} has content and is no file")
    if entry.xattrs:
        names = [name for name, _ in entry.xattrs]
        if kind is EntryType.LINK or any(not 0 < len(n) <= MAX_NAME or b"\0" in n for n in names) or any(
                first >= second for first, second in pairwise(names)) or any(
                len(value) > MAX_XATTR for _, value in entry.xattrs):
            raise _bad(f"{where!r} has extended attributes that no filesystem can hold")


def _check_content(entry: Entry, frames: tuple[Frame, ...], used: Extent) -> Extent:
    """Check that the entry's extents and holes add up and lie after `used`; return the last extent used."""
    where, total = printable(entry.path), 0
    if len(entry.digest) != DIGEST_BYTES:
        raise _bad(f"{where!r} has no digest")
    for extent in entry.extents:
        number, offset, length = extent
        if number >= len(frames) or length < 1 or offset + length > frames[number].raw_length:
            raise _bad(f"{where!r} has content outside the frames")
        if (number, offset) < (used.frame, used.offset + used.length):
            raise _bad(f"{where!r} has content where another entry has its own")
        used = extent
        total += length
    if total != entry.size:
        raise _bad(f"{where!r} has {total} bytes of content and a size of {entry.size}")
    end = 0
    for hole in entry.holes:
        if hole.length < 1 or hole.offset < end or hole.offset + hole.length > entry.size:
            raise _bad(f"{where!r} has a hole outside its content")
        end = hole.offset + hole.length
    return used
