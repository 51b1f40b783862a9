"""Hostile indexes and frames through the whole reader: an error or a tree, and nothing outside the target; edges."""

from __future__ import annotations

import base64
import copy
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import describe, noise

from imaging.entry import Entry, EntryType, Extent, Hole
from imaging.index import Frame, Index, decode, encode
from imaging.restore import restore
from imaging.verify import verify
from plumbing.errors import CorruptError, RerootError

D, F, L, H = EntryType.DIRECTORY, EntryType.FILE, EntryType.SYMLINK, EntryType.LINK
RAW = [noise(1, 3000), noise(2, 4096) + bytes(512) + noise(4, 392), noise(3, 5000)]
PACKED = [zstandard.compress(raw) for raw in RAW]
US = (os.geteuid(), os.getegid())


def _frames(packed: list[bytes]) -> tuple[Frame, ...]:
    starts = [sum(map(len, packed[:number])) for number in range(len(packed))]
    return tuple(Frame(start, len(data), len(raw), blake3(data).digest())
                 for start, data, raw in zip(starts, packed, RAW, strict=True))


def _entries() -> Iterator[Entry]:
    def name(path: bytes, kind: EntryType, mode: int = 0o644, **fields: Any) -> Entry:
        return replace(Entry(path, kind, mode, *US, 1_000_000_007), **fields)

    def file(path: bytes, content: bytes, *extents: Extent, **fields: Any) -> Entry:
        return name(path, F, size=len(content), digest=blake3(content).digest(), extents=extents, **fields)

    yield name(b".", D, 0o755)
    yield name(b"a", D, 0o755)
    yield file(b"a/one", RAW[0][:1000], Extent(0, 0, 1000))
    yield file(b"a/two", RAW[0][1000:3000], Extent(0, 1000, 2000), xattrs=((b"user.x", b"y"),))
    yield name(b"b", L, link=b"../outside")
    yield name(b"c", L, link=b"../outside/victim")
    yield name(b"d", D, 0o700)
    yield file(b"d/large", RAW[1] + RAW[2], Extent(1, 0, 5000), Extent(2, 0, 5000), holes=(Hole(4096, 512),))
    yield name(b"e", EntryType.FIFO)
    yield file(b"f", b"")
    yield name(b"g", H, link=b"a/one")


SOUND = Index(tuple(_entries()), _frames(PACKED))


class Given:
    """Gives the frames by their offsets, whatever an index says of them."""

    def __init__(self, packed: list[bytes]) -> None:
        self._by_offset = {frame.offset: data for frame, data in zip(_frames(packed), packed, strict=True)}

    def frame(self, frame: Frame) -> bytes:
        if frame.offset not in self._by_offset:
            raise CorruptError("no such frame")
        return self._by_offset[frame.offset]


@contextmanager
def guarded() -> Iterator[Path]:
    """Yield a target, and assert afterwards that nothing beside it changed."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        for name in ("outside", "target"):
            (top / name).mkdir()
        (top / "outside/victim").write_bytes(b"precious")
        (top / "outside/a").mkdir()
        before = describe(top / "outside")
        yield top / "target"
        assert describe(top / "outside") == before
        assert sorted(path.name for path in top.iterdir()) == ["outside", "target"]


def put_back(index: Index, packed: list[bytes]) -> bool:
    """Restore and verify in a guarded target; returns whether that gave the tree of `index`."""
    with guarded() as target:
        try:
            restore(index, Given(packed), target)
        except RerootError:
            return False
        return verify(index, target) == []


def test_the_sound_index_is_put_back() -> None:
    assert put_back(decode(encode(SOUND)), PACKED)


HOSTILE_PATHS = ["", ".", "..", "/", "../outside/victim", "/etc/reroot-fuzz", "a/../../outside/x", "b/victim", "b/new",
                 "c", "c/x", "a/one/x", "a", "./a", "a//x", "a/", "x\0y", "d/large", "e", "\udcff", "n" * 256, "g", "f",
                 "/".join(["d"] * 2100)]
NUMBERS = st.sampled_from([0, 1, -1, 2, 999, 1001, 2999, 3000, 3001, 5000, 5001, 4095, 0o7777, 1 << 16, (16 << 20) + 1,
                           1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, 1 << 63, 1 << 64])
ANYTHING = st.one_of(NUMBERS, st.sampled_from(HOSTILE_PATHS), st.none(), st.booleans(), st.just([]), st.just({}),
                     st.just(1.5), st.just([[0, 0]]))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The sound index with one to four values of its JSON changed: off by one, swapped, hostile or of another type."""
    columns = json.loads(zstandard.decompress(encode(SOUND)))
    for _ in range(draw(st.integers(1, 4))):
        where = columns
        key: Any = draw(st.sampled_from(sorted(columns)))
        while isinstance(where[key], dict | list) and where[key] and draw(st.integers(0, 9)):
            where = where[key]
            key = draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        where[key] = copy.deepcopy(draw(_changed(where[key], key)))  # what is drawn must not be changed later
    return zstandard.compress(json.dumps(columns).encode())


def _changed(value: object, key: object) -> st.SearchStrategy[Any]:
    if isinstance(value, bool) or not isinstance(value, int | str | list):
        return ANYTHING
    if isinstance(value, int):
        return st.one_of(st.sampled_from([value - 1, value + 1, -value]), ANYTHING)
    if isinstance(value, list):
        return st.one_of(st.just(value[:-1]), st.just(value + value[:1]), st.permutations(value), ANYTHING)
    if key == "type":
        return st.one_of(st.lists(st.sampled_from("dflhcbp"), min_size=len(value), max_size=len(value)).map("".join),
                         ANYTHING)
    if key == "blake3":
        raw = base64.b64decode(value)
        return st.integers(0, len(raw) - 1).map(
            lambda at: base64.b64encode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:]).decode())
    return st.one_of(st.sampled_from(HOSTILE_PATHS), ANYTHING)


@pytest.mark.root
@given(mutated())
@settings(max_examples=300, deadline=None)
def test_whatever_an_index_says_nothing_outside_changes(data: bytes) -> None:
    try:
        index = decode(data)
    except CorruptError:
        return
    put_back(index, PACKED)


@pytest.mark.root
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_one_digest_or_length_off_is_never_a_sound_tree(data: st.DataObject) -> None:
    """An index that decodes, but differs from the frames in what a file holds, fails to restore or to verify."""
    files = [number for number, entry in enumerate(SOUND.entries) if entry.size]
    number = data.draw(st.sampled_from(files))
    entry = SOUND.entries[number]
    at = data.draw(st.integers(0, 31))
    digest = bytearray(entry.digest)
    digest[at] ^= 1 << data.draw(st.integers(0, 7))
    wrong = data.draw(st.sampled_from([
        replace(entry, digest=bytes(digest)),
        replace(entry, extents=(entry.extents[0]._replace(offset=entry.extents[0].offset + 1), *entry.extents[1:])),
        replace(entry, size=entry.size - 1, extents=(*entry.extents[:-1], entry.extents[-1]._replace(
            length=entry.extents[-1].length - 1))),
    ]))
    index = Index((*SOUND.entries[:number], wrong, *SOUND.entries[number + 1:]), SOUND.frames)
    assert not put_back(index, PACKED)


@pytest.mark.root
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_frame_that_is_something_else_is_never_a_sound_tree(data: st.DataObject) -> None:
    """Somebody published it so: its digest is right, and what it unpacks to is not what the files are."""
    number = data.draw(st.integers(0, 2))
    good = PACKED[number]
    at = data.draw(st.integers(0, len(good) - 1))
    other = zstandard.compress(RAW[number][:-1] + bytes([RAW[number][-1] ^ 1]))
    bad = data.draw(st.sampled_from([
        good[:at], good + good, good + b"\0", good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1:], b"", other,
        zstandard.compress(RAW[number] + b"x"), zstandard.compress(RAW[number][:-1]), noise(9, len(good)),
        zstandard.compress(bytes(1 << 24)),
        zstandard.ZstdCompressor(write_content_size=False).compress(RAW[number])[:-1],
    ]))
    packed = [*PACKED[:number], bad, *PACKED[number + 1:]]
    frames = list(SOUND.frames)
    frames[number] = replace(frames[number], digest=blake3(bad).digest())

    class Served(Given):
        def frame(self, frame: Frame) -> bytes:
            return packed[frames.index(frame)]

    with guarded() as target:
        index = replace(SOUND, frames=tuple(frames))
        try:
            restore(index, Served(PACKED), target)
        except RerootError:
            return
        if zstandard.ZstdDecompressor().decompress(bad, max_output_size=len(RAW[number])) != RAW[number]:
            assert verify(index, target) != []


# -- sizes at 2**31 and 2**32 ------------------------------------------------------------------------------------------

PIECE = 16 << 20


class Zeros:
    """A long sparse file as frames: each holds PIECE bytes, zeros unless `marks` has bytes for them."""

    def __init__(self, size: int, marks: dict[int, bytes]) -> None:
        self.size, self.marks = size, marks
        self._plain: dict[int, bytes] = {}
        frames, extents, offset = [], [], 0
        for number, start in enumerate(range(0, size, PIECE)):
            packed = self._packed(start)
            length = min(PIECE, size - start)
            frames.append(Frame(offset, len(packed), length, blake3(packed).digest()))
            extents.append(Extent(number, 0, length))
            offset += len(packed)
        edges = [0, *(edge for start, data in sorted(marks.items()) for edge in (start, start + len(data))), size]
        holes = tuple(Hole(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a)
        self.numbers = {frame.offset: number for number, frame in enumerate(frames)}
        entry = Entry(b"sparse", F, 0o600, *US, 7, size, digest=bytes(32), extents=tuple(extents), holes=holes)
        self.index = Index((Entry(b".", D, 0o755, *US, 7), entry), tuple(frames))

    def _packed(self, start: int) -> bytes:
        length = min(PIECE, self.size - start)
        inside = {place: data for place, data in self.marks.items() if start - len(data) < place < start + length}
        if not inside and length in self._plain:
            return self._plain[length]
        raw = bytearray(length)
        for place, data in inside.items():
            for shift, byte in enumerate(data):
                if start <= place + shift < start + length:
                    raw[place + shift - start] = byte
        packed = zstandard.compress(bytes(raw), 1)
        if not inside:
            self._plain[length] = packed
        return packed

    def frame(self, frame: Frame) -> bytes:
        return self._packed(self.numbers[frame.offset] * PIECE)


@pytest.mark.parametrize("edge", [1 << 31, 1 << 32])
@pytest.mark.parametrize("beyond", [-1, 0, 5])
def test_a_sparse_file_around_an_edge_comes_back_sparse(tmp_path: Path, edge: int, beyond: int) -> None:
    size = edge + beyond
    marks = {0: b"first", edge - 4: b"edge!!!"[:min(7, 4 + beyond)]}
    if edge > 1 << 31:
        marks[(1 << 31) - 2] = b"half"
    made = Zeros(size, marks)
    index = decode(encode(made.index))
    restore(index, made, tmp_path)
    status = (tmp_path / "sparse").stat()
    assert (status.st_size, status.st_mtime_ns) == (size, 7)
    assert status.st_blocks * 512 <= 1 << 20
    with (tmp_path / "sparse").open("rb") as stream:
        for start, data in marks.items():
            stream.seek(max(0, start - 8))
            around = stream.read(min(8, start) + len(data) + 8)
            assert around == bytes(min(8, start)) + data + bytes(min(8, size - start - len(data)))
