"""The way from one release to the next: equal to a full restore, short, and believed by nobody."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from captured import Captured
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import describe, noise, rich_tree

from imaging import delta, delta_apply, delta_build, repack
from imaging.audit import load_index
from imaging.capture import capture
from imaging.cpio import members
from imaging.delta import Base, Delta, Run
from imaging.delta_index import from_lines, to_lines
from imaging.delta_manifest import DeltaManifest
from imaging.delta_match import alike, matched, samples
from imaging.entry import Entry, EntryType
from imaging.fetch import FrameFetcher
from imaging.file_contents import FileContents, LayerContents, TreeContents
from imaging.index import Index
from imaging.release import Release
from imaging.sources import FileSource
from imaging.store import Store
from imaging.verify import verify
from plumbing.errors import CorruptError, NetworkError, UsageError
from plumbing.run import run


class Pair:
    """Two trees as releases of one store, and the delta between them."""

    def __init__(self, folder: Path, old: Path, new: Path, workers: int = 2) -> None:
        self.old_tree = old
        self.store = Store(folder / "store")
        self.old, self.new = (
            Release.parse(capture(tree, self.store, name="p", version=version, arch="amd64", excludes=()))
            for tree, version in ((old, "1"), (new, "2")))
        self.manifest = DeltaManifest.parse(delta_build.build(self.store, self.old, self.new, workers=workers))
        self.blob = FileSource(self.store.blob_path(self.manifest.blob_digest))
        self.frames = FrameFetcher([self.blob])
        self.old_index, self.new_index = (load_index(self.store, release) for release in (self.old, self.new))
        self.head = self.manifest.read_head(self.packed_head, self.old, self.new)

    @property
    def packed_head(self) -> bytes:
        return self.blob.read(self.manifest.head_offset, self.manifest.head_length)

    def layer(self, release: Release) -> FrameFetcher:
        return FrameFetcher([FileSource(self.store.blob_path(release.layer_digest))])

    def apply(self, target: Path, contents: FileContents | None = None, head: Delta | None = None,
              full: Any = None, **options: Any) -> delta_apply.Taken:
        target.mkdir(exist_ok=True)
        contents = contents or LayerContents(self.old_index, self.layer(self.old))
        _, taken = delta_apply.apply(head or self.head, self.old_index, self.new_index, target, contents=contents,
                                     frames=self.frames, full=full or self.layer(self.new), **options)
        return taken


class Nothing:
    """A full release that is out of reach."""

    def frame(self, frame: object) -> bytes:
        raise NetworkError("there is no network")


def old_tree(top: Path) -> Path:
    for folder in ("etc", "lib/modules/6.1.0-50", "doc", "bin"):
        (top / folder).mkdir(parents=True)
    (top / "same").write_bytes(noise(1, 300_000))
    (top / "long-same").write_bytes(noise(2, (2 << 20) + 5))
    (top / "bin/tool").write_bytes(noise(3, 200_000))
    (top / "bin/huge").write_bytes(noise(4, 3 << 20))
    (top / "lib/modules/6.1.0-50/ext4.ko").write_bytes(noise(5, 150_000))
    (top / "lib/libz.so.1.2.3").write_bytes(noise(6, 90_000))
    (top / "doc/changelog.gz").write_bytes(zipped(words(7, 60_000)))
    (top / "etc/moved.conf").write_bytes(words(8, 20_000))
    (top / "empty").touch()
    return top


def new_tree(top: Path) -> Path:
    for folder in ("etc", "lib/modules/6.1.0-56", "doc", "bin", "srv"):
        (top / folder).mkdir(parents=True)
    (top / "same").write_bytes(noise(1, 300_000))
    (top / "copy of same").write_bytes(noise(1, 300_000))
    (top / "long-same").write_bytes(noise(2, (2 << 20) + 5))
    (top / "bin/tool").write_bytes(changed(noise(3, 200_000)))
    (top / "bin/huge").write_bytes(changed(noise(4, 3 << 20)))
    (top / "lib/modules/6.1.0-56/ext4.ko").write_bytes(changed(noise(5, 150_000)))
    (top / "lib/libz.so.1.3.1").write_bytes(changed(noise(6, 90_000)))
    (top / "doc/changelog.gz").write_bytes(zipped(b"a new line\n" + words(7, 60_000)))
    (top / "srv/elsewhere").write_bytes(words(8, 20_000) + b"one more")
    (top / "etc/new").write_bytes(b"nobody had this\n" * 10)
    (top / "empty").touch()
    return top


def changed(data: bytes) -> bytes:
    return data[:1000] + b"changed" + data[1000:len(data) // 2] + data[len(data) // 2 + 3:]


def words(seed: int, length: int) -> bytes:
    chosen = random.Random(seed)
    return b"".join(b"%d words in a line of text\n" % chosen.randrange(10**9) for _ in range(length // 30))


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """A file is long, and a frame full, at a fraction of what it is otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_build, "FRAME_BYTES", 1 << 20)
        patch.setattr(delta_build, "GROUP_BYTES", 300_000)
        patch.setattr(delta_apply, "PIECE", 1 << 20)
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    return Pair(folder, old_tree(folder / "old"), new_tree(folder / "new"))


@pytest.mark.parametrize("of", ["layer", "tree"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_delta_makes_what_a_full_restore_makes(pair: Pair, tmp_path: Path, of: str, workers: int) -> None:
    contents = TreeContents(pair.old_tree, pair.old_index) if of == "tree" else None
    taken = pair.apply(tmp_path / "target", contents, full=Nothing(), workers=workers)
    assert verify(pair.new_index, tmp_path / "target") == []
    assert taken.fetched == 0 and taken.missed == ()
    assert taken.copied >= (2 << 20) + 300_000


def test_what_did_not_change_costs_nothing(pair: Pair) -> None:
    assert pair.manifest.blob_size < 12_000, "moved, renumbered, unpacked and edited files are all found again"
    assert sum(bool(content.recipe) for content in pair.head.contents) == 1


def test_the_same_delta_whatever_the_number_of_workers(pair: Pair, tmp_path: Path) -> None:
    again = Pair(tmp_path, pair.old_tree, pair.old_tree.parent / "new", workers=1)
    assert again.manifest == pair.manifest


def test_the_index_comes_out_of_the_delta(pair: Pair) -> None:
    assert delta_apply.new_index(pair.head, pair.old_index, pair.frames) == pair.new_index


@pytest.mark.root
def test_every_kind_of_inode(tmp_path: Path) -> None:
    rich = rich_tree(tmp_path / "new")
    (rich / "socket").unlink()
    (tmp_path / "old").mkdir()
    (tmp_path / "old/medium").write_bytes(changed(noise(2, 700_000)))
    made = Pair(tmp_path, tmp_path / "old", rich)
    assert from_lines(to_lines(made.new_index)) == made.new_index
    made.apply(tmp_path / "target")
    assert verify(made.new_index, tmp_path / "target") == []
    restored, wanted = describe(tmp_path / "target"), describe(rich)
    assert restored == wanted


@pytest.mark.parametrize("path", ["same", "long-same", "bin/tool", "bin/huge", "doc/changelog.gz"])
@pytest.mark.parametrize("how", ["edited", "shortened", "gone", "a fifo"])
def test_an_old_file_that_is_not_as_it_was(pair: Pair, tmp_path: Path, path: str, how: str) -> None:
    """The living root is nobody's word: what it can't give right is fetched, and the rest still comes from it."""
    shutil.copytree(pair.old_tree, tmp_path / "old")
    spoiled = tmp_path / "old" / path
    data = spoiled.read_bytes()
    spoiled.unlink()
    if how == "edited":
        place = len(data) // 3
        spoiled.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1:])
    elif how == "shortened":
        spoiled.write_bytes(data[:-1])
    elif how == "a fifo":
        os.mkfifo(spoiled)
    contents = TreeContents(tmp_path / "old", pair.old_index)
    taken = pair.apply(tmp_path / "target", contents)
    assert verify(pair.new_index, tmp_path / "target") == []
    assert {f"/{path}", "/copy of same" if path == "same" else f"/{path}"} & set(taken.missed)
    assert taken.copied and taken.made
    with pytest.raises(NetworkError):
        pair.apply(tmp_path / "other", contents, full=Nothing())


def test_frames_that_are_damaged_come_from_the_full_release(pair: Pair, tmp_path: Path) -> None:
    wrong = replace(pair.head, frames=tuple(replace(one, raw_digest=bytes(32)) for one in pair.head.frames))
    taken = pair.apply(tmp_path / "target", head=wrong)
    assert taken.made == 0 and taken.fetched > 3 << 20
    assert verify(pair.new_index, tmp_path / "target") == []


def test_a_full_release_that_lies_is_not_believed(pair: Pair, tmp_path: Path) -> None:
    wrong = replace(pair.head, frames=tuple(replace(one, raw_digest=bytes(32)) for one in pair.head.frames))

    class Lying:
        def frame(self, frame: Any) -> bytes:
            return zstandard.ZstdCompressor().compress(bytes(frame.raw_length))

    with pytest.raises(CorruptError):
        pair.apply(tmp_path / "target", head=wrong, full=Lying())


def test_interrupted_it_resumes(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imaging import restore

    monkeypatch.setattr(restore, "SYNC_BYTES", 1)
    done: set[int] = set()

    class Dying(LayerContents):
        left = 4

        def read(self, row: int, offset: int, length: int) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise NetworkError("the cable is out")
            return super().read(row, offset, length)

    attempts = 0
    while True:
        attempts += 1
        contents = Dying(pair.old_index, pair.layer(pair.old))
        contents.left = 4 * attempts
        try:
            pair.apply(tmp_path / "target", contents, full=Nothing(), workers=1, done=done, on_frame=done.add)
            break
        except NetworkError:
            assert attempts < 40
    assert attempts > 1 and done
    assert verify(pair.new_index, tmp_path / "target") == []


def test_a_delta_of_a_release_with_itself_is_refused(pair: Pair) -> None:
    with pytest.raises(UsageError, match="the same release"):
        delta_build.build(pair.store, pair.old, pair.old)


# -- any trees ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c-1", "c-2", "lib.so.1", "lib.so.2", "x.gz"])
CONTENTS = st.one_of(
    st.binary(max_size=300), st.builds(noise, st.integers(0, 3), st.integers(0, 9000)),
    st.builds(lambda seed, n: changed(noise(seed, 5000 + n)), st.integers(0, 3), st.integers(0, 9000)),
    st.builds(lambda data, level: gzip.compress(data * 9, level, mtime=3), st.binary(max_size=99), st.integers(0, 9)))
TREES = st.dictionaries(st.builds("/".join, st.lists(NAMES, min_size=1, max_size=2)), CONTENTS, max_size=7)


def plant(top: Path, files: dict[str, bytes]) -> Path:
    top.mkdir(parents=True)
    for path, data in files.items():
        if not any(str(one) in files for one in Path(path).parents) and not (top / path).is_dir():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(data)
    return top


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES, TREES)
def test_any_two_trees(tmp_path_factory: pytest.TempPathFactory, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("any")
    made = Pair(folder, plant(folder / "old", old), plant(folder / "new", {**new, "only new": b"1"}))
    assert delta_apply.new_index(made.head, made.old_index, made.frames) == made.new_index
    made.apply(folder / "target", TreeContents(folder / "old", made.old_index), full=Nothing())
    assert verify(made.new_index, folder / "target") == []


# -- hostile heads ------------------------------------------------------------------------------------------------


def head_json(pair: Pair) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(zstandard.decompress(pair.packed_head))
    return value


def pressed(value: object) -> bytes:
    return zstandard.ZstdCompressor().compress(json.dumps(value).encode())


def test_a_head_is_read_back_as_it_was(pair: Pair) -> None:
    assert delta.decode(delta.encode(pair.head)) == pair.head
    delta.check(pair.head, pair.old_index, pair.new_index)


HOSTILE: dict[str, Callable[[Any], object]] = {
    "another format": lambda v: v.update(format="tar"),
    "a newer version": lambda v: v.update(version=2),
    "no index": lambda v: v.update(index=[]),
    "an endless index": lambda v: v["index"].__setitem__(1, 1 << 40),
    "a frame too long": lambda v: v["raw_length"].__setitem__(0, (8 << 20) + 1),
    "an empty frame": lambda v: v["length"].__setitem__(0, 0),
    "a length that is text": lambda v: v["length"].__setitem__(0, "1"),
    "a length that is true": lambda v: v["length"].__setitem__(0, True),
    "digests that are short": lambda v: v.update(blake3=v["blake3"][:-4]),
    "digests that are no base64": lambda v: v.update(raw_blake3="*" * len(v["raw_blake3"])),
    "a run of a frame that comes later": lambda v: v["runs"].__setitem__(0, [2, 1, 0, 1]),
    "a run of the frame itself": lambda v: v["runs"].__setitem__(0, [2, 0, 0, 1]),
    "a run of a frame that needs one": lambda v: (v["runs"].__setitem__(1, [2, 0, 0, 1]),
                                                v["runs"].__setitem__(2, [2, 1, 0, 1])),
    "a run beyond its frame": lambda v: v["runs"].__setitem__(1, [2, 0, 1, v["raw_length"][0]]),
    "a run without length": lambda v: v["runs"].__setitem__(0, [0, 0, 0, 0]),
    "an unknown base": lambda v: v["runs"].__setitem__(0, [3, 0, 0, 1]),
    "half a run": lambda v: v["runs"].__setitem__(0, [0, 0]),
    "a dictionary too long": lambda v: v["runs"].__setitem__(0, [0, 0, 0, 20 << 20] * 2),
    "an extent beyond its frame": lambda v: v["extents"][0].__setitem__(2, 9 << 20),
    "an extent of no frame": lambda v: v["extents"][0].__setitem__(0, 999),
    "extents that overlap": lambda v: v["extents"].__setitem__(1, v["extents"][0]),
    "rows that go back": lambda v: v["row"].reverse(),
    "a content without extents": lambda v: v["extents"].__setitem__(0, []),
    "a recipe of nothing": lambda v: v["recipe"].append([999, [1]]),
    "two recipes of one content": lambda v: v["recipe"].extend(v["recipe"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_head_that_lies(pair: Pair, name: str) -> None:
    value = head_json(pair)
    HOSTILE[name](value)
    with pytest.raises(CorruptError):
        delta.decode(pressed(value))


def test_a_head_that_does_not_fit_the_releases(pair: Pair) -> None:
    first = pair.head.frames[0]
    for wrong in (
        replace(pair.head, frames=(replace(first, runs=(Run(Base.OLD, 999, 0, 1),)), *pair.head.frames[1:])),
        replace(pair.head, frames=(replace(first, runs=(Run(Base.OLD, 0, 0, 20 << 20),)), *pair.head.frames[1:])),
        replace(pair.head, contents=pair.head.contents[1:]),
        replace(pair.head, contents=(*pair.head.contents[:-1], replace(pair.head.contents[-1], row=9999))),
        replace(pair.head, contents=tuple(replace(one, recipe=()) for one in pair.head.contents)),
    ):
        with pytest.raises(CorruptError):
            delta.check(wrong, pair.old_index, pair.new_index)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_spoiled_head_is_refused_or_harmless(pair: Pair, data: st.DataObject) -> None:
    """Any value in any place of the head: it is refused, or all of it stays inside the releases' contents."""
    value = head_json(pair)
    name = data.draw(st.sampled_from(sorted(value)))
    junk = st.recursive(st.none() | st.booleans() | st.integers(-5, 1 << 66) | st.text(max_size=4),
                        lambda inner: st.lists(inner, max_size=4), max_leaves=6)
    if isinstance(value[name], list) and value[name] and data.draw(st.booleans()):
        value[name][data.draw(st.integers(0, len(value[name]) - 1))] = data.draw(junk)
    else:
        value[name] = data.draw(junk)
    try:
        head = delta.decode(pressed(value))
        delta.check(head, pair.old_index, pair.new_index)
    except CorruptError:
        return
    for content in head.contents:
        assert all(extent.offset + extent.length <= head.frames[extent.frame].frame.raw_length
                   for extent in content.extents)


@given(st.binary(max_size=200))
def test_a_head_or_lines_that_are_none(data: bytes) -> None:
    for read in (delta.decode, from_lines):
        with pytest.raises(CorruptError):
            read(data)


@contextmanager
def tracing() -> Iterator[Callable[[], int]]:
    """Give what says how many bytes Python had at most since."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_spoiled_lines_are_refused_or_an_index(pair: Pair, data: st.DataObject) -> None:
    text = bytearray(to_lines(pair.new_index))
    start = data.draw(st.integers(0, len(text) - 1))
    text[start:start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=4))
    try:
        found = from_lines(bytes(text))
    except CorruptError:
        return
    assert isinstance(found, Index) and all(b".." not in entry.path.split(b"/") for entry in found.entries)


@pytest.mark.parametrize("sizes", [(1 << 40,), (1 << 36, -(1 << 36))])
def test_lines_with_sizes_that_no_frames_hold_are_refused_at_once(sizes: tuple[int, ...]) -> None:
    """Thousands of pieces, or as many as memory holds, would be laid out before anything is compared."""
    head = {"format": "dev.reroot.index", "version": 1, "cuts": [1, 1, 1, 1]}
    rows = [["d", ".", 0o755, 0, 0, 0], *(["f", f"{number}", 0o644, 0, 0, 0, size, "00" * 32, 0]
                                          for number, size in enumerate(sizes))]
    lines = "\n".join(map(json.dumps, [head, [0, 20, 1024, "00" * 32], "", *rows])).replace('\n""\n', "\n\n")
    with tracing() as peak, pytest.raises(CorruptError, match="not written as lines"):
        from_lines(lines.encode())
    assert peak() < 1 << 20


def test_lines_with_an_acl_that_is_none_are_refused(tmp_path: Path) -> None:
    made = Captured(tmp_path, old_tree(tmp_path / "tree"))
    lines = to_lines(made.index).split(b"\n")
    top = lines.index(b"") + 1
    lines[top] = lines[top][:-1] + b',{"xattrs":[["system.posix_acl_access","AAAA"]]}]'
    with pytest.raises(CorruptError):
        from_lines(b"\n".join(lines))


@pytest.mark.parametrize("spoil", [
    lambda m: m.update(artifactType="x"), lambda m: m["layers"].append(m["layers"][0]), lambda m: m.pop("annotations"),
    lambda m: m["annotations"].update({"dev.reroot.old": "../.."}), lambda m: m["layers"][0].update(size=1),
    lambda m: m["layers"][0].update(digest="sha256:00"),
    lambda m: m["layers"][0]["annotations"].update({"dev.reroot.head": "1:2:3"}),
])
def test_a_manifest_that_is_none(pair: Pair, spoil: Any) -> None:
    value = json.loads(pair.manifest.manifest())
    spoil(value)
    with pytest.raises(CorruptError):
        DeltaManifest.parse(json.dumps(value).encode())


def test_a_head_of_other_builds(pair: Pair) -> None:
    with pytest.raises(CorruptError, match="other builds"):
        pair.manifest.read_head(pair.packed_head, pair.new, pair.old)
    with pytest.raises(CorruptError, match="not the one its manifest names"):
        pair.manifest.read_head(pair.packed_head[:-1] + b"\0", pair.old, pair.new)


# -- the parts ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=4000), st.integers(0, 9), st.integers(1, 9))
def test_a_recipe_makes_the_same_file(data: bytes, level: int, memory: int) -> None:
    packer = zlib.compressobj(level, zlib.DEFLATED, 31, memory)
    packed = packer.compress(data) + packer.flush()
    found = repack.unpack(packed, 1 << 20)
    if found is not None:
        assert found[0] == data and repack.pack(data, found[1]) == packed
    else:
        assert level not in repack.LEVELS.values() or memory not in repack.MEMORY_LEVELS or not data


@given(st.binary(max_size=300))
def test_what_is_no_gzip_file_has_no_recipe(data: bytes) -> None:
    assert repack.unpack(data, 1 << 20) is None
    assert repack.unpack(zipped(b"some") + data, 1 << 20) is None or not data


def files_at(*named: tuple[bytes, int]) -> list[Entry]:
    return [Entry(path, EntryType.FILE, 0o644, 0, 0, 0, size=size) for path, size in named]


def test_which_old_file_is_like_a_new_one() -> None:
    old = files_at((b"lib/6.1.0-50/nfs.ko", 900), (b"lib/6.1.0-50/nfsv2.ko", 500), (b"lib/6.1.0-50/nfsv4.ko", 100),
                   (b"usr/lib/libz.so.1.2.3", 70), (b"etc/motd", 10), (b"opt/tool-1", 50), (b"empty", 0))
    new = files_at((b"lib/6.1.0-56/nfsv4.ko", 110), (b"lib/6.1.0-56/nfsv3.ko", 480), (b"usr/lib/libz.so.1.3.1", 70),
                   (b"etc/motd", 999), (b"usr/tool-2", 55), (b"nowhere", 5), (b"link", 70), (b"empty", 9))
    found = matched(old, new, {b"link": b"etc/motd"})
    assert found == {b"lib/6.1.0-56/nfsv4.ko": 2, b"lib/6.1.0-56/nfsv3.ko": 1, b"usr/lib/libz.so.1.3.1": 3,
                     b"etc/motd": 4, b"usr/tool-2": 5, b"link": 4}


def test_files_that_say_the_same_are_alike() -> None:
    old = {1: lambda: words(1, 9000), 2: lambda: words(2, 9000)}
    new = {b"one": lambda: b"new\n" + words(1, 9000), b"three": lambda: words(3, 9000)}
    assert alike(old, new) == {b"one": 1}
    assert len(samples(words(1, 9000))) > 20


@given(st.binary(min_size=1, max_size=300_000))
@settings(max_examples=20)
def test_stored_frames_are_zstd(data: bytes) -> None:
    for content in (data, data * 3, bytes(131072), bytes(131073)):
        frame = delta_apply.stored(content)
        assert zstandard.frame_content_size(frame) == len(content)
        assert zstandard.decompress(frame) == content


def test_a_captured_index_is_derived(tmp_path: Path) -> None:
    made = Captured(tmp_path, old_tree(tmp_path / "tree"))
    lines = to_lines(made.index)
    assert b'"cuts":[262144,' in lines
    other = replace(made.index, entries=tuple(
        replace(one, digest=blake3(b"x").digest()) if one.path == b"same" else one for one in made.index.entries))
    assert from_lines(to_lines(other)) == other


# -- gzip's own files ---------------------------------------------------------------------------------------------


def cpio_archive(members: dict[str, bytes]) -> bytes:
    parts = list[bytes]()
    for name, data in {**members, "TRAILER!!!": b""}.items():
        fields = (0, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def gzipped_by_program(data: bytes, *options: str) -> bytes:
    return run(["gzip", *options], stdin=data).stdout


def with_gzip(top: Path) -> Path:
    """Put this machine's gzip into a tree, as Debian has it."""
    for place in ("usr/bin/gzip", "lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6"):
        (top / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path("/", place).resolve(), top / place)
    return top


def modules(version: int) -> dict[str, bytes]:
    return {f"module{number}.ko": noise(100 + number, 150_000) + words(version, 3000) for number in range(12)}


@pytest.fixture(scope="module")
def booting(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two systems with an initramfs of several frames that holds their modules, and a long changelog, made by gzip."""
    folder = tmp_path_factory.mktemp("booting")
    for name, version in (("old", 1), ("new", 2)):
        top = with_gzip(folder / name)
        for path, data in modules(version).items():
            (top / "usr/lib/modules").mkdir(parents=True, exist_ok=True)
            (top / "usr/lib/modules" / path).write_bytes(data)
        (top / "boot").mkdir()
        archive = cpio_archive({**modules(version), "init": b"#!/bin/sh\n" * version})
        (top / f"boot/initrd.img-{version}").write_bytes(gzipped_by_program(archive))
        (top / "changelog.gz").write_bytes(gzipped_by_program(b"%d" % version + words(9, 600_000), "-9n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repack, "MEMORY_LEVELS", ())  # zlib makes it of none of them
        return Pair(folder, folder / "old", folder / "new")


def test_what_gzip_made_costs_nothing(booting: Pair, tmp_path: Path) -> None:
    recipes = {content.recipe[:2] for content in booting.head.contents if content.recipe}
    assert recipes == {(repack.PROGRAM, 6), (repack.PROGRAM, 9)}
    assert any(run.base is Base.FRAME for frame in booting.head.frames for run in frame.runs)
    assert booting.manifest.blob_size < 60_000, "an initramfs of 1.8 MB of noise is made of the modules"
    taken = booting.apply(tmp_path / "target", full=Nothing(), scratch=tmp_path)
    assert verify(booting.new_index, tmp_path / "target") == [] and taken.missed == ()
    assert [path.name for path in tmp_path.iterdir()] == ["target"], "nothing is left behind"


def test_a_gzip_that_makes_other_bytes(booting: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or none, or that does not start, or never ends: the files come from the full release."""
    from imaging import packer

    scripts = {
        "other": b"#!/bin/sh\nexec /usr/bin/gzip -1n\n", "nothing": b"#!/bin/sh\n",
        "fails": b"#!/bin/sh\ncat; exit 3\n", "is none": b"not a program", "hangs": b"#!/bin/sh\nexec sleep 1000\n",
        "never ends": b"#!/bin/sh\nprintf '\\037\\213\\010\\0\\0\\0\\0\\0\\0\\3'; exec cat /dev/zero\n"}
    monkeypatch.setattr(packer, "PATIENCE_S", 0.3)
    real = packer.Packer.__init__
    for name, script in scripts.items():
        with monkeypatch.context() as patch:
            patch.setattr(packer.Packer, "__init__",
                          lambda self, parts, script=script: real(self, {**parts, "loader": script}))
            taken = booting.apply(tmp_path / name)
        assert verify(booting.new_index, tmp_path / name) == []
        assert taken.missed == ("/boot/initrd.img-2", "/changelog.gz")


def test_a_living_root_s_gzip_is_never_run(booting: Pair, tmp_path: Path) -> None:
    shutil.copytree(booting.old_tree, tmp_path / "old")
    (tmp_path / "old/usr/bin/gzip").write_bytes(b"#!/bin/sh\ntouch %s/ran\n" % os.fsencode(tmp_path))
    taken = booting.apply(tmp_path / "target", TreeContents(tmp_path / "old", booting.old_index))
    assert verify(booting.new_index, tmp_path / "target") == []
    assert taken.missed == ("/usr/bin/gzip",)
    assert not (tmp_path / "ran").exists()


def test_members_of_an_archive() -> None:
    archive = cpio_archive({"a": b"one", "lib/b": b"", "c": b"four"})
    both = archive + bytes(300) + archive
    assert [(name, both[at:at + size]) for name, at, size in members(both)] == [
        (b"a", b"one"), (b"c", b"four")] * 2
    assert list(members(b"070701" + b"z" * 200)) == []


@given(st.binary(max_size=400), st.integers(0, 400))
def test_members_stay_inside(junk: bytes, place: int) -> None:
    archive = cpio_archive({"a": b"one", "b": b"four" * 20})
    data = archive[:place] + junk + archive[place + len(junk):]
    assert all(start > 0 and start + size <= len(data) for _, start, size in members(data))


def test_what_becomes_too_long_is_stopped() -> None:
    pieces = iter([b"four", b"four", b"four"])
    with pytest.raises(CorruptError, match="longer than the file was"):
        list(delta_apply._up_to(7, pieces))
    assert next(pieces) == b"four", "nothing more was asked for"


@pytest.mark.parametrize("size", [(1 << 31) + 1, (1 << 32) + 1, 1 << 40])
def test_old_files_beyond_four_gigabytes(pair: Pair, size: int) -> None:
    """A run is as far into a file as the file is long, and not a byte further."""
    first, *others = pair.head.frames
    row = next(row for row, one in enumerate(delta.files(pair.old_index)) if one.path == b"bin/huge")
    old = replace(pair.old_index, entries=tuple(
        replace(one, size=size) if one.path == b"bin/huge" else one for one in pair.old_index.entries))
    for offset, good in ((size - 10, True), (size - 9, False)):
        head = replace(pair.head, frames=(replace(first, runs=(Run(Base.OLD, row, offset, 10),)), *others))
        again = delta.decode(delta.encode(head))
        assert again == head
        if good:
            delta.check(again, old, pair.new_index)
        else:
            with pytest.raises(CorruptError, match="beyond the end of its file"):
                delta.check(again, old, pair.new_index)
