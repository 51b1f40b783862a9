"""Gzip files taken apart and put together again, bit for bit, where that is proven. Pure.

A recipe is a tuple of small numbers: kind, level, memory level of zlib's deflate, and the bytes of the gzip header.
It is good when `pack` made the very bytes from the payload once: a recipe is tried before it is written down.
RFC 1952 is the container, RFC 1951 the stream.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator

ZLIB, PROGRAM = 1, 2
"""Kinds of recipe: one gzip member, its deflate stream made by zlib, or by the gzip of the new release."""
MAX_HEADER_BYTES = 128
LEVELS = {0: 6, 2: 9, 4: 1}
"""The level that is tried, by what the header says of it (XFL): the default, the smallest, the fastest."""
MEMORY_LEVELS = (8, 9)
READ_BYTES = 256 << 10

_FEXTRA, _FNAME, _FCOMMENT, _FHCRC = 4, 8, 16, 2


def header_length(data: bytes) -> int:
    """Return the length of the gzip header that `data` begins with; raises ValueError when it is none."""
    if data[:3] != b"\x1f\x8b\x08" or len(data) < 10 or data[3] & 0xE0:
        raise ValueError("not a gzip header")
    flags, place = data[3], 10
    if flags & _FEXTRA:
        place += 2 + int.from_bytes(data[place:place + 2], "little")
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            place = data.index(0, place) + 1
    place += 2 if flags & _FHCRC else 0
    if place > min(len(data), MAX_HEADER_BYTES):
        raise ValueError("the gzip header is too long")
    return place


def unpack(data: bytes, limit: int) -> tuple[bytes, tuple[int, ...]] | None:
    """Return the payload of a gzip file and the recipe that makes the file of it again, or None when there is none.

    `limit`: the longest payload that is looked at, in bytes.
    """
    found = payload(data, limit)
    if not found or data[8] not in LEVELS:
        return None
    for memory in MEMORY_LEVELS:
        recipe = (ZLIB, LEVELS[data[8]], memory, *data[:header_length(data)])
        at = 0
        for piece in pack_pieces(_pieces(found), recipe):
            if data[at:at + len(piece)] != piece:
                break
            at += len(piece)
        else:
            if at == len(data):
                return found, recipe
    return None


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), READ_BYTES):
        yield data[start:start + READ_BYTES]


def payload(data: bytes, limit: int) -> bytes:
    """Return what a gzip file of one member unpacks to; nothing when it is none or that is longer than `limit`."""
    try:
        stream = zlib.decompressobj(-15)
        found = stream.decompress(data[header_length(data):], limit + 1)
    except (ValueError, IndexError, zlib.error):
        return b""
    return found if len(found) <= limit and stream.eof and len(stream.unused_data) == 8 else b""


def payload_length(data: bytes, limit: int) -> int:
    """Return the length of `payload`."""
    return len(payload(data, limit))


def is_recipe(recipe: tuple[int, ...]) -> bool:
    """Whether a recipe is one that `pack`, or the release's gzip, can follow."""
    return 13 <= len(recipe) <= 3 + MAX_HEADER_BYTES and recipe[0] in {ZLIB, PROGRAM} and 1 <= recipe[1] <= 9 \
        and 1 <= recipe[2] <= 9


def pack(content: bytes, recipe: tuple[int, ...]) -> bytes:
    """Return the file that a recipe makes of a payload, `content`; raises ValueError for a recipe that is none."""
    return b"".join(pack_pieces([content], recipe))


def pack_pieces(content: Iterable[bytes], recipe: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the file that a recipe makes of a payload that is given in pieces; raises ValueError, see `pack`."""
    if not is_recipe(recipe) or recipe[0] != ZLIB:
        raise ValueError("not a recipe")
    yield bytes(recipe[3:])
    stream = zlib.compressobj(recipe[1], zlib.DEFLATED, -15, recipe[2])
    checksum = length = 0
    for piece in content:
        checksum, length = zlib.crc32(piece, checksum), length + len(piece)
        yield stream.compress(piece)
    yield stream.flush() + struct.pack("<II", checksum, length & 0xFFFFFFFF)


class GzipReader:
    """The payload of a gzip file, read forward; `read_at` gives up to so many bytes of the file at a place."""

    def __init__(self, read_at: Callable[[int, int], bytes]) -> None:
        self._read_at = read_at
        self._at = header_length(read_at(0, MAX_HEADER_BYTES))
        self._stream = zlib.decompressobj(-15)
        self._input = b""

    def read(self, length: int) -> bytes:
        """Return the next `length` bytes, fewer at the end; raises zlib.error when the file is damaged."""
        parts = list[bytes]()
        while length and not self._stream.eof:
            if not self._input:
                self._input = self._read_at(self._at, READ_BYTES)
                self._at += len(self._input)
                if not self._input:
                    break
            part = self._stream.decompress(self._input, length)
            self._input = self._stream.unconsumed_tail
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def skip(self, length: int) -> None:
        """Go forward without keeping anything."""
        while length and (part := self.read(min(length, 1 << 20))):
            length -= len(part)
