"""What the inodes of a release look like, without where their content lies. Pure.

In: a release's index as it was fetched and checked. Out: its rows in tree order, in a fraction of the memory that its
entries take: a living host compares half a million files with it.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import zstandard

from imaging.entry import DIGEST_BYTES, EntryType
from imaging.index import FORMAT, MAX_RAW_BYTES, VERSION
from plumbing.errors import CorruptError

_NO_FILE = 0xFFFFFFFF
_KEPT = ("format", "version", "path", "type", "mode", "uid", "gid", "mtime_ns", "size", "blake3", "link", "xattrs")


class Row(NamedTuple):
    """One inode of a release: as imaging.entry.Entry has it; a hard link has type, size and digest of its file."""

    path: bytes
    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    digest: bytes
    link: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


class Outline:
    """The rows of one index. Raises CorruptError for what is none."""

    def __init__(self, packed: bytes) -> None:
        columns = _columns(packed)
        try:
            if columns["format"] != FORMAT or columns["version"] != VERSION:
                raise ValueError("format")
            self._fill(columns)
        except (KeyError, ValueError, TypeError, OverflowError, IndexError) as error:
            raise CorruptError(f"the release's index is unusable ({error!r}); fetch it again") from error

    def _fill(self, columns: dict[str, object]) -> None:
        self._paths = cast("list[bytes]", columns["path"])
        self._types = cast("str", columns["type"])
        self._modes, self._uids, self._gids, self._times, self._sizes = (
            cast("array[int]", columns[name]) for name in ("mode", "uid", "gid", "mtime_ns", "size"))
        self._digests = base64.b64decode(cast("str", columns["blake3"]), validate=True)
        links = cast("list[list[object]]", columns["link"])
        self._links = {int(cast("int", row)): cast("str", text).encode("utf-8", "surrogateescape")
                       for row, text in links}
        self._xattrs = {int(cast("int", row)): _pairs(pairs) for row, pairs in
                        cast("list[list[object]]", columns["xattrs"])}
        rows = len(self._types)
        if {len(column) for column in (self._paths, self._modes, self._uids, self._gids, self._times)} != {rows} or (
                len(self._sizes) * DIGEST_BYTES != len(self._digests) or self._types.count("f") != len(self._sizes)):
            raise ValueError("columns of different lengths")
        self._files, number = array("I", [_NO_FILE]) * rows, 0
        for row, kind in enumerate(self._types):
            if kind == EntryType.FILE:
                self._files[row], number = number, number + 1
        wanted = {text for row, text in self._links.items() if self._types[row] == EntryType.LINK}
        self._firsts = {path: row for row, path in enumerate(self._paths) if path in wanted} if wanted else {}

    def __len__(self) -> int:
        return len(self._types)

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, range(len(self)))

    def _row(self, number: int) -> Row:
        kind, of = self._types[number], number
        if kind == EntryType.LINK:
            of = self._firsts[self._links[number]]
            kind = self._types[of]
        file = self._files[of]
        return Row(self._paths[number], kind, self._modes[number], self._uids[number], self._gids[number],
                   self._times[number], 0 if file == _NO_FILE else self._sizes[file],
                   b"" if file == _NO_FILE else self._digests[file * DIGEST_BYTES:(file + 1) * DIGEST_BYTES],
                   self._links.get(of, b""), self._xattrs.get(of, ()))


class Comparison:
    """The rows of an outline, asked for by paths in tree order."""

    def __init__(self, outline: Outline) -> None:
        self._rows = iter(outline)
        self._row, self._key = next(self._rows, None), b""
        self._turn(self._row)

    def at(self, path: bytes) -> Row | None:
        """Return the row for a path, which comes after those asked for before; None when the release has none."""
        key = _order(path)
        while self._row is not None and self._key < key:
            self._turn(next(self._rows, None))
        return self._row if self._row is not None and self._key == key else None

    def _turn(self, row: Row | None) -> None:
        self._row, self._key = row, b"" if row is None else _order(row.path)


def _order(path: bytes) -> bytes:
    """Return what sorts as the tree does: a folder before what is in it, that before its neighbours; the top first."""
    return b"" if path == b"." else path.replace(b"/", b"\0")


def _columns(packed: bytes) -> dict[str, object]:
    """Read the JSON column by column, and keep of each no more than is needed."""
    try:
        if not 0 <= zstandard.frame_content_size(packed) <= MAX_RAW_BYTES:
            raise ValueError("size")
        text = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False).decode("ascii")
        decoder, found, at = json.JSONDecoder(), dict[str, object](), 1
        while text[at - 1] in "{,":
            name, at = decoder.raw_decode(text, at)
            value, at = decoder.raw_decode(text, at + 1)
            if name in _KEPT:
                found[name] = _packed(name, value)
            at += 1
        if text[at - 1] != "}":
            raise ValueError("end")
    except (zstandard.ZstdError, ValueError, TypeError, IndexError, OverflowError, RecursionError,
            AttributeError) as error:
        raise CorruptError(f"the release's index is unusable ({error!r}); fetch it again") from error
    return found


_NUMBERS: Mapping[str, str] = {"mode": "H", "uid": "I", "gid": "I", "mtime_ns": "q", "size": "q"}


def _packed(name: str, value: object) -> object:
    if name == "path":
        return [path.encode("utf-8", "surrogateescape") for path in cast("list[str]", value)]
    return array(_NUMBERS[name], cast("list[int]", value)) if name in _NUMBERS else value


def _pairs(value: object) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode("utf-8", "surrogateescape"), base64.b64decode(data, validate=True))
                 for name, data in cast("list[tuple[str, str]]", value))
