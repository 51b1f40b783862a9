"""The index: what goes in comes out, and nothing hostile gets through."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imaging.entry import ROOT, Entry, EntryType, Extent, Hole, parent, printable
from imaging.index import MAX_FRAME_BYTES, Frame, Index, decode, encode
from plumbing.errors import CorruptError

D, F, L, H = EntryType.DIRECTORY, EntryType.FILE, EntryType.SYMLINK, EntryType.LINK
TOP = Entry(ROOT, D, 0o755, 0, 0, 0)

names = st.binary(min_size=1, max_size=12).filter(lambda b: b"/" not in b and b"\0" not in b and b not in (b".", b".."))
ids = st.integers(0, 0xFFFFFFFE)
times = st.integers(-(1 << 63), (1 << 63) - 1)
attributes = st.dictionaries(names, st.binary(max_size=40), max_size=3).map(lambda d: tuple(sorted(d.items())))
links = st.binary(min_size=1, max_size=60).filter(lambda b: b"\0" not in b)
digests = st.binary(min_size=32, max_size=32)


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    """Sound indexes: a tree of names, file contents laid out over frames, holes."""
    raws = draw(st.lists(st.integers(1, 5000), max_size=5))
    frames, offset = [], 0
    for raw in raws:
        length = draw(st.integers(1, raw + 100))
        offset += draw(st.integers(0, 9))
        frames.append(Frame(offset, length, raw, draw(digests)))
        offset += length
    entries, folders, sources = [TOP], [ROOT], list[bytes]()
    number, used = 0, 0
    seen = {ROOT}
    for name in draw(st.lists(names, max_size=12)):
        folder = draw(st.sampled_from(folders))
        path = name if folder == ROOT else folder + b"/" + name
        if path in seen:
            continue
        seen.add(path)
        kind = draw(st.sampled_from([kind for kind in EntryType if kind is not H or sources]))
        entry = Entry(path, kind, draw(st.integers(0, 0o7777)), draw(ids), draw(ids), draw(times),
                      xattrs=() if kind is H else draw(attributes))
        if kind is L:
            entry = replace(entry, link=draw(links))
        elif kind is H:
            entry = replace(entry, link=draw(st.sampled_from(sources)))
        elif kind in (EntryType.CHAR, EntryType.BLOCK):
            entry = replace(entry, rdev=draw(st.integers(0, (1 << 64) - 1)))
        elif kind is F:
            extents = []
            for _ in range(draw(st.integers(0, 3))):
                if number < len(frames) and used == frames[number].raw_length:
                    number, used = number + 1, 0
                if number < len(frames):
                    start = draw(st.integers(used, frames[number].raw_length - 1))
                    used = draw(st.integers(start + 1, frames[number].raw_length))
                    extents.append(Extent(number, start, used - start))
            size = sum(extent.length for extent in extents)
            holes = (Hole(0, size),) if size and draw(st.booleans()) else ()
            entry = replace(entry, size=size, digest=draw(digests), extents=tuple(extents), holes=holes)
        if kind is D:
            folders.append(path)
        elif kind is not H:
            sources.append(path)
        entries.append(entry)
    return Index(tuple(entries), tuple(frames))


@given(indexes())
def test_round_trip(index: Index) -> None:
    data = encode(index)
    assert decode(data) == index
    assert encode(decode(data)) == data
    assert zstandard.frame_content_size(data) > 0


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(data)


@given(st.data())
def test_any_value_anywhere_is_refused_or_sound(data: st.DataObject) -> None:
    """Replace one value of a good index by an arbitrary one: CorruptError, or an index that encodes again."""
    value = json.loads(zstandard.ZstdDecompressor().decompress(encode(good())))
    anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
                            lambda inner: st.lists(inner, max_size=3), max_leaves=4)
    holder, key = value, data.draw(st.sampled_from(sorted(value)))
    while isinstance(holder[key], dict | list) and holder[key] and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder))) if isinstance(holder, dict) else data.draw(
            st.integers(0, len(holder) - 1))
    holder[key] = data.draw(anything)
    try:
        index = decode(zstandard.ZstdCompressor().compress(json.dumps(value).encode()))
    except CorruptError:
        return
    assert decode(encode(index)) == index


def good() -> Index:
    """A small index with one of everything."""
    frames = (Frame(0, 100, 1000, b"a" * 32), Frame(100, 50, 300, b"b" * 32))
    return Index((
        TOP,
        Entry(b"bin", D, 0o755, 0, 0, 5, xattrs=((b"user.x", b"1"), (b"user.y", b"2"))),
        Entry(b"bin/\xff", F, 0o644, 1, 2, 7, size=600, digest=b"c" * 32,
              extents=(Extent(0, 500, 400), Extent(1, 0, 200)), holes=(Hole(0, 100), Hole(200, 50))),
        Entry(b"hard", H, 0o644, 1, 2, 7, link=b"bin/\xff"),
        Entry(b"soft", L, 0o777, 0, 0, 0, link=b"../../etc/passwd"),
        Entry(b"null", EntryType.CHAR, 0o666, 0, 0, 0, rdev=259),
        Entry(b"empty", F, 0o600, 0, 0, 0, digest=b"d" * 32),
    ), frames)


def with_entry(row: int, **changes: object) -> Index:
    index = good()
    entries = list(index.entries)
    entries[row] = replace(entries[row], **changes)  # type: ignore[arg-type]
    return Index(tuple(entries), index.frames)


def unchecked(index: Index, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Encode what `encode` refuses, as an attacker would."""
    with monkeypatch.context() as patch:
        patch.setattr("imaging.index._check_frames", lambda _frames: None)
        patch.setattr("imaging.index._check_entries", lambda _index: None)
        return encode(index)


HOSTILE: dict[str, Callable[[], Index]] = {
    "no top": lambda: Index(good().entries[1:], good().frames),
    "nothing": lambda: Index((), ()),
    "top is a symlink": lambda: with_entry(0, type=L, link=b"/"),
    "absolute": lambda: with_entry(1, path=b"/etc"),
    "dot dot": lambda: with_entry(1, path=b".."),
    "dot dot below": lambda: with_entry(2, path=b"bin/.."),
    "dot": lambda: with_entry(2, path=b"bin/."),
    "dot slash": lambda: with_entry(2, path=b"./x"),
    "second top": lambda: with_entry(1, path=b"."),
    "double slash": lambda: with_entry(2, path=b"bin//x"),
    "trailing slash": lambda: with_entry(2, path=b"bin/"),
    "empty path": lambda: with_entry(2, path=b""),
    "nul": lambda: with_entry(2, path=b"bin/a\0b"),
    "long name": lambda: with_entry(2, path=b"bin/" + b"x" * 256),
    "long path": lambda: Index((TOP, *(Entry(b"/".join([b"x" * 100] * n), D, 0, 0, 0, 0) for n in range(1, 42))), ()),
    "duplicate": lambda: with_entry(5, path=b"hard"),
    "orphan": lambda: with_entry(2, path=b"sbin/x"),
    "through a symlink": lambda: Index((*good().entries, Entry(b"soft/x", D, 0, 0, 0, 0)), good().frames),
    "through a file": lambda: Index((*good().entries, Entry(b"empty/x", D, 0, 0, 0, 0)), good().frames),
    "parent comes later": lambda: Index((TOP, Entry(b"a/b", D, 0, 0, 0, 0), Entry(b"a", D, 0, 0, 0, 0)), ()),
    "hard link out": lambda: with_entry(3, link=b"../etc/shadow"),
    "hard link absolute": lambda: with_entry(3, link=b"/etc/shadow"),
    "hard link to itself": lambda: with_entry(3, link=b"hard"),
    "hard link to a folder": lambda: with_entry(3, link=b"bin"),
    "hard link forward": lambda: with_entry(3, link=b"soft"),
    "hard link to a hard link": lambda: Index(
        (*good().entries, Entry(b"z", H, 0, 0, 0, 0, link=b"hard")), good().frames),
    "hard link with attributes": lambda: with_entry(3, xattrs=((b"user.a", b""),)),
    "symlink to nothing": lambda: with_entry(4, link=b""),
    "symlink with nul": lambda: with_entry(4, link=b"a\0b"),
    "long symlink": lambda: with_entry(4, link=b"x" * 4096),
    "file with a link": lambda: with_entry(2, link=b"x"),
    "device number on a file": lambda: with_entry(2, rdev=5),
    "content in another frame": lambda: with_entry(2, extents=(Extent(0, 500, 400), Extent(2, 0, 200))),
    "content beyond the frame": lambda: with_entry(2, extents=(Extent(0, 500, 400), Extent(1, 101, 200))),
    "content at a huge offset": lambda: with_entry(2, extents=(Extent(0, 1 << 62, 600),)),
    "content too short": lambda: with_entry(2, extents=(Extent(0, 500, 400),)),
    "content too long": lambda: with_entry(2, size=599),
    "content twice": lambda: with_entry(2, size=800, extents=(Extent(0, 500, 400), Extent(0, 500, 400))),
    "content backwards": lambda: with_entry(2, extents=(Extent(1, 0, 200), Extent(0, 500, 400))),
    "content of nothing": lambda: with_entry(2, extents=(Extent(0, 0, 0), Extent(0, 500, 400), Extent(1, 0, 200))),
    "content shared": lambda: with_entry(6, size=9, extents=(Extent(1, 5, 9),)),
    "hole beyond the end": lambda: with_entry(2, holes=(Hole(500, 101),)),
    "holes overlap": lambda: with_entry(2, holes=(Hole(0, 100), Hole(99, 5))),
    "empty hole": lambda: with_entry(2, holes=(Hole(5, 0),)),
    "attribute twice": lambda: with_entry(1, xattrs=((b"user.x", b"1"), (b"user.x", b"2"))),
    "attribute without name": lambda: with_entry(1, xattrs=((b"", b"1"),)),
    "attribute too large": lambda: with_entry(1, xattrs=((b"user.x", bytes(65537)),)),
    "mode with type bits": lambda: with_entry(1, mode=0o100644),
    "negative owner": lambda: with_entry(1, uid=-1),
    "owner nobody can be": lambda: with_entry(1, uid=0xFFFFFFFF),
    "time beyond 64 bits": lambda: with_entry(1, mtime_ns=1 << 63),
    "size as text": lambda: with_entry(2, size="600"),
    "mode as truth": lambda: with_entry(1, mode=True),
    "mode as fraction": lambda: with_entry(1, mode=5.0),
    "frames overlap": lambda: Index(good().entries, (good().frames[0], replace(good().frames[1], offset=99))),
    "frame unpacks to too much": lambda: Index(good().entries, (
        good().frames[0], replace(good().frames[1], raw_length=MAX_FRAME_BYTES + 1))),
    "frame grows": lambda: Index(good().entries, (
        good().frames[0], replace(good().frames[1], length=300 + (64 << 10) + 1))),
    "frame is empty": lambda: Index(good().entries, (good().frames[0], replace(good().frames[1], length=0))),
    "frame beyond any disk": lambda: Index(good().entries, (
        good().frames[0], replace(good().frames[1], offset=1 << 63))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_index_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = unchecked(HOSTILE[name](), monkeypatch)
    with pytest.raises(CorruptError, match="index is unusable"):
        decode(data)


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(CorruptError):
        encode(with_entry(1, path=b"../x"))


def packed(value: object) -> bytes:
    return zstandard.ZstdCompressor().compress(json.dumps(value).encode())


@pytest.mark.parametrize("data", [
    b"", encode(good())[:-1], encode(good()) + b"x", encode(good()) * 2, packed([]), packed({}), packed(None),
    packed({"format": "dev.reroot.index", "version": 2}), zstandard.ZstdCompressor().compress(b"[" * 200_000),
    zstandard.ZstdCompressor().compress(b'{"version":' + b"9" * 9999 + b"}"),
    zstandard.ZstdCompressor(write_content_size=False).compress(b"{}"),
    b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + bytes(20),
], ids=lambda data: data[:12].hex())
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode(data)


@pytest.mark.parametrize(("key", "value"), [
    ("path", [".", "\ud800", "a", "b", "c", "d", "e"]), ("path", ["."]), ("type", "dzzzzzz"), ("type", 7),
    ("blake3", "!!!!"), ("blake3", "é"), ("blake3", base64.b64encode(bytes(31)).decode()),
    ("link", [[3, "x"], [3, "y"]]),
    ("link", [[-1, "x"]]), ("link", [[99, "x"]]), ("link", {"3": "x"}), ("rdev", [[5, "x"]]), ("rdev", [[5, -1]]),
    ("xattrs", [[1, [["user.x"]]]]), ("xattrs", [[1, [["user.x", "*"]]]]), ("holes", [[2, [1]]]), ("frames", []),
    ("extents", [[0, 1], []]), ("extents", [[0, 1, float("nan")], []]),
])
def test_malformed_columns_are_refused(key: str, value: object) -> None:
    columns = json.loads(zstandard.ZstdDecompressor().decompress(encode(good())))
    with pytest.raises(CorruptError):
        decode(packed({**columns, key: value}))


def test_unknown_keys_are_for_later() -> None:
    columns = json.loads(zstandard.ZstdDecompressor().decompress(encode(good())))
    assert decode(packed({**columns, "new": 1})) == good()


def test_sums() -> None:
    assert good().content_bytes == 600
    assert good().layer_bytes == 150


def test_parent_and_printable() -> None:
    assert (parent(b"a"), parent(b"a/b")) == (ROOT, b"a")
    assert printable(b"a\xffb") == "a\\xffb"
    assert printable("grün".encode()) == "grün"
    assert printable(b"a\nb\x1b[2J") == "a\\nb\\x1b[2J"
