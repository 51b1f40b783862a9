"""Cutting: where frames end, and what happens when writing or reading fails midway."""

import io
from collections.abc import Iterator

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.entry import Extent
from imaging.frames import COARSE, FINE, PIECE, Cuts, Cutter, LayerWriter

LARGE, SMALLEST, LONGEST = FINE.large, FINE.smallest, FINE.longest


class Recorder:
    """A LayerWriter's face that keeps raw frames."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.marked = 0

    @property
    def next_frame(self) -> int:
        return len(self.raw)

    def add(self, raw: bytes, key: object = None) -> None:
        self.raw.append(raw)

    def mark(self) -> None:
        self.marked = len(self.raw)

    def rewind(self) -> None:
        del self.raw[self.marked:]


def cut(contents: list[bytes], cuts: Cuts = FINE) -> tuple[list[bytes], list[tuple[Extent, ...]]]:
    recorder = Recorder()
    cutter = Cutter(recorder, cuts)  # type: ignore[arg-type]
    extents = []
    for content in contents:
        head, tail = b"h" * 512, bytes(-len(content) % 512)
        if len(content) < cuts.large:
            extents.append(cutter.add(head, content, tail, blake3(content).digest()))
        else:
            pieces = [content[start:start + PIECE] for start in range(0, len(content), PIECE)]
            extents.append(cutter.add_large(b"f", head, iter(pieces), tail))
    cutter.cut()
    return recorder.raw, extents


contents = st.lists(st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 511, 20_000, 100_000, LARGE - 1, LARGE,
                                                                    PIECE, PIECE + 1, 2 * PIECE])), max_size=12).map(
    lambda rows: [bytes([letter]) * length for letter, length in rows])


@given(contents)
@settings(max_examples=40)
@pytest.mark.parametrize("cuts", [FINE, COARSE])
def test_frames_hold_every_byte_once_and_extents_find_it(cuts: Cuts, files: list[bytes]) -> None:
    raw, extents = cut(files, cuts)
    assert b"".join(raw) == b"".join(b"h" * 512 + content + bytes(-len(content) % 512) for content in files)
    for content, places in zip(files, extents, strict=True):
        assert b"".join(raw[number][start:start + length] for number, start, length in places) == content
    assert all(0 < len(frame) < max(PIECE, cuts.longest) + cuts.large + 1024 for frame in raw)


@given(contents, contents, contents)
@settings(max_examples=20)
def test_what_surrounds_a_large_file_does_not_matter_to_its_frames(
        before: list[bytes], after: list[bytes], other: list[bytes]) -> None:
    large = b"L" * (PIECE + 5)
    own = set(cut([large])[0][1:])  # the first is the header's
    assert own <= set(cut([*before, large, *after])[0])
    assert set(cut(after)[0]) <= set(cut([*other, large, *after])[0])


def test_another_time_leaves_the_frames_of_large_content_as_they_are() -> None:
    recorders = []
    for head in (b"h" * 512, b"H" * 512):
        recorder = Recorder()
        cutter = Cutter(recorder)  # type: ignore[arg-type]
        cutter.add(head, b"small", bytes(507), b"")
        cutter.add_large(b"f", head, iter([b"1" * PIECE, b"2" * 7]), bytes(505))
        cutter.add(head, b"small", bytes(507), b"")
        cutter.cut()
        recorders.append(recorder.raw)
    assert recorders[0][1:3] == recorders[1][1:3] == [b"1" * PIECE, b"2" * 7 + bytes(505)]


def test_small_files_share_frames_of_a_sensible_length() -> None:
    files = [number.to_bytes(4, "big") * 1000 for number in range(2000)]
    lengths = [len(frame) for frame in cut(files)[0]]
    assert all(SMALLEST <= length <= LONGEST + LARGE for length in lengths[:-1])
    assert 1.5 * SMALLEST < sum(lengths) / len(lengths) < 3 * SMALLEST


def test_cuts_find_each_other_again_after_an_insertion() -> None:
    files = [number.to_bytes(4, "big") * 1000 for number in range(2000)]
    old, new = cut(files)[0], cut([b"new" * 999, *files])[0]
    assert len(set(new) - set(old)) <= 3


def test_a_large_file_that_fails_leaves_nothing() -> None:
    def failing() -> Iterator[bytes]:
        yield b"1" * PIECE
        yield b"2" * PIECE
        raise ValueError("changed")

    out = io.BytesIO()
    with LayerWriter(out, level=1, workers=2) as writer:
        cutter = Cutter(writer)
        cutter.add(b"h" * 512, b"a", bytes(511), b"")
        with pytest.raises(ValueError, match="changed"):
            cutter.add_large(b"f", b"h" * 512, failing(), b"")
        assert cutter.add_large(b"f", b"h" * 512, iter([b"3" * PIECE]), b"") == (Extent(1, 0, PIECE),)
        layer = writer.finish(b"index")
    assert layer.raw_size == 1024 + 512 + PIECE
    assert layer.size == len(out.getvalue())
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(out.getvalue()), read_across_frames=True)
    assert reader.read() == b"h" * 512 + b"a" + bytes(511) + b"h" * 512 + b"3" * PIECE


class Full(io.BytesIO):
    """A disk with room for so many bytes."""

    def write(self, data: object) -> int:
        if self.tell() + len(data) > 100_000:  # type: ignore[arg-type]
            raise OSError(28, "No space left on device")
        return super().write(data)  # type: ignore[arg-type]


def test_a_failed_write_stops_the_caller_and_writes_nothing_after_it() -> None:
    out = Full()
    with LayerWriter(out, level=1, workers=3) as writer, pytest.raises(OSError, match="No space"):
        for number in range(1000):
            writer.add(blake3(bytes([number % 256])).digest(length=50_000 if number < 5 else 10))
        writer.frames()
    assert len(out.getvalue()) <= 100_000


def test_progress_counts_unpacked_bytes() -> None:
    told: list[int] = []
    with LayerWriter(io.BytesIO(), level=1, workers=2, on_written=told.append) as writer:
        for _ in range(5):
            writer.add(b"x" * 1000)
        writer.frames()
    assert told == [1000, 2000, 3000, 4000, 5000]
