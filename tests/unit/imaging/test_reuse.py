"""Frames of a base: taken when they hold the same bytes, never when they do not, without a trace in the result."""

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import noise, rich_tree

from imaging.audit import audit, load_index
from imaging.capture import capture
from imaging.frames import COARSE, PIECE, WORKERS_MEMORY, LayerWriter, compress, compression, workers_for
from imaging.release import COMPRESSION, Release
from imaging.reuse import frame_keys, newest_base, opened_base
from imaging.store import Store
from plumbing.errors import NotFoundError


def build(tree: Path, store: Path, base: tuple[Store, Release] | None = None, *, version: str = "2", level: int = 3,
          ) -> tuple[bytes, tuple[int, int]]:
    told: list[tuple[int, int]] = []
    def keep(count: int, length: int) -> None:
        told.append((count, length))

    def made(frames: object) -> bytes:
        return capture(tree, Store(store), name="p", version=version, arch="amd64", excludes=(), level=level,
                       base=frames, on_reuse=keep)  # type: ignore[arg-type]

    if base is None:
        return made(None), told[0]
    with opened_base(*base) as frames:
        return made(frames), told[0]


def first(tree: Path, store: Path, **options: object) -> tuple[Store, Release]:
    return Store(store), Release.parse(build(tree, store, version="1", **options)[0])  # type: ignore[arg-type]


def some_tree(top: Path) -> Path:
    top.mkdir()
    for number in range(80):
        (top / f"{number:02}").write_bytes(noise(number, 60_000) + b"text" * number)
    (top / "big").write_bytes(noise(99, 3 * PIECE + 5))
    return top


def test_an_unchanged_tree_is_copied_whole(tmp_path: Path) -> None:
    tree = some_tree(tmp_path / "tree")
    base = first(tree, tmp_path / "store")
    index = load_index(*base)
    again, (count, length) = build(tree, tmp_path / "again", base)
    assert again == build(tree, tmp_path / "alone")[0]
    assert count == len(index.frames) - 2  # directories and the tar's end have no content to know them by
    assert length == index.layer_bytes - sum(frame.length for frame in index.frames[-2:])


@pytest.mark.root
def test_every_feature_and_no_trace(tmp_path: Path) -> None:
    tree = rich_tree(tmp_path / "tree")
    base = first(tree, tmp_path / "store")
    (tree / "etc/file030").write_bytes(b"changed")
    (tree / "zz-link").unlink()
    with (tree / "large").open("r+b") as stream:
        stream.seek(5 << 20)
        stream.write(b"!")
    again, (count, _) = build(tree, tmp_path / "again", base)
    assert again == build(tree, tmp_path / "alone")[0]
    assert count > 0
    assert audit(Store(tmp_path / "again"), "p/2/amd64").frames > count


def test_a_changed_piece_of_a_large_file_leaves_the_others(tmp_path: Path) -> None:
    tree = some_tree(tmp_path / "tree")
    base = first(tree, tmp_path / "store")
    times = (tree / "big").stat().st_mtime_ns
    with (tree / "big").open("r+b") as stream:
        stream.seek(PIECE + 9)
        stream.write(b"!")
    os.utime(tree / "big", ns=(times, times))
    again, (count, _) = build(tree, tmp_path / "again", base)
    assert again == build(tree, tmp_path / "alone")[0]
    assert count == len(load_index(*base).frames) - 3


def test_a_base_that_lies_or_rots_gets_nothing_in(tmp_path: Path) -> None:
    tree = some_tree(tmp_path / "tree")
    store, release = first(tree, tmp_path / "store")
    alone = build(tree, tmp_path / "alone")[0]
    other = some_tree(tmp_path / "other")
    for path in other.iterdir():
        path.write_bytes(path.read_bytes()[::-1])
    foreign = first(other, tmp_path / "foreign")
    with opened_base(store, release) as honest, opened_base(*foreign) as frames:
        liar = replace(honest, handle=frames.handle)  # the right index over other bytes
        assert build_with(tree, tmp_path / "liar", liar) == (alone, 0)
        liar = replace(honest, handle=frames.handle, frames=tuple(  # even when its digests fit those bytes
            replace(frames.frames[number % len(frames.frames)], raw_length=said.raw_length)
            for number, said in enumerate(honest.frames)))
        assert build_with(tree, tmp_path / "liar2", liar) == (alone, 0)
    layer = store.blob_path(release.layer_digest)
    data = bytearray(layer.read_bytes())
    data[100] ^= 1
    layer.write_bytes(data)
    again, (count, _) = build(tree, tmp_path / "rot", (store, release))
    assert again == alone
    assert count == len(load_index(store, release).frames) - 3


def build_with(tree: Path, store: Path, base: object) -> tuple[bytes, int]:
    told: list[int] = []
    manifest = capture(tree, Store(store), name="p", version="2", arch="amd64", excludes=(), base=base,  # type: ignore[arg-type]
                       on_reuse=lambda count, _: told.append(count))
    return manifest, told[0]


def test_a_base_of_another_level_shows_and_is_reproducible(tmp_path: Path) -> None:
    tree = some_tree(tmp_path / "tree")
    base = first(tree, tmp_path / "store", level=1)
    mixed, (count, _) = build(tree, tmp_path / "mixed", base)
    assert count > 0
    assert mixed == build(tree, tmp_path / "again", base)[0] != build(tree, tmp_path / "alone")[0]
    notes = json.loads(mixed)["annotations"]
    assert COMPRESSION not in notes and Release.parse(mixed).compression is None
    assert base[1].compression == compression(1) and base[1].compression.endswith("-1")
    (tree / "big").unlink()
    for path in tree.iterdir():
        path.write_bytes(b"nothing known" + path.name.encode())
    pure, (count, _) = build(tree, tmp_path / "pure", base)
    assert count == 0 and Release.parse(pure).compression == compression(3)


def test_which_base_is_the_newest(tmp_path: Path) -> None:
    tree, store = some_tree(tmp_path / "tree"), Store(tmp_path / "store")
    for name, version, arch, level in (("p", "9", "amd64", 3), ("p", "10", "amd64", 3), ("p", "11", "amd64", 1),
                                       ("p", "12", "arm64", 3), ("q", "13", "amd64", 3)):
        capture(tree, store, name=name, version=version, arch=arch, level=level)
    def newest() -> str | None:
        found = newest_base(store, "p", "amd64", compression(3))
        return found.ref if found else None

    stamps = {ref: store.blob_path(row.digest) for ref, row in store.refs().items()}
    for number, ref in enumerate(("p/10/amd64", "p/9/amd64")):
        os.utime(stamps[ref], ns=(0, 10**18 + number))
    assert newest() == "p/9/amd64"
    stamps["p/9/amd64"].write_bytes(b"{}")
    assert newest() == "p/10/amd64"
    assert newest_base(store, "none", "amd64", compression(3)) is None
    release = Release.parse(store.manifest("p/10/amd64"))
    store.blob_path(release.layer_digest).unlink()
    with pytest.raises(NotFoundError, match="root dump"), opened_base(store, release):
        pass


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 400_000)), max_size=12), st.data())
def test_whatever_changes_the_result_is_the_same_as_without(
        files: list[tuple[int, int, int]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        tree = top / "tree"
        tree.mkdir()
        for number, seed, size in files:
            (tree / f"{number:02}").write_bytes(noise(seed, size) * (5 if seed == 0 else 1))
        base = first(tree, top / "store")
        for path in sorted(tree.iterdir()):
            change = data.draw(st.sampled_from(["keep", "keep", "touch", "edit", "grow", "remove"]))
            if change == "touch":
                os.utime(path, ns=(1, 1))
            elif change == "edit" and path.stat().st_size:
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 255
                path.write_bytes(content)
            elif change == "grow":
                path.write_bytes(path.read_bytes() + b"more")
            elif change == "remove":
                path.unlink()
        again, _ = build(tree, top / "again", base)
        assert again == build(tree, top / "alone")[0]
        release = Release.parse(again)
        assert Store(top / "again").blob_path(release.layer_digest).read_bytes() == Store(
            top / "alone").blob_path(release.layer_digest).read_bytes()


def test_keys_of_a_release_find_every_frame_with_content(tmp_path: Path) -> None:
    index = load_index(*first(some_tree(tmp_path / "tree"), tmp_path / "store"))
    assert set(frame_keys(index).values()) == set(range(len(index.frames) - 2))


def test_workers_stay_within_their_memory() -> None:
    assert workers_for(3, 2) == 2 and workers_for(3, 1) == 1
    for level in range(1, 20):
        most = workers_for(level, 1000)
        assert 1 <= most < 20
        assert workers_for(level, most) == most
    assert WORKERS_MEMORY + COARSE.longest < 192 << 20


def test_compress_without_a_base_is_what_it_was(tmp_path: Path) -> None:
    raw = noise(1, 1000) * 100
    with (tmp_path / "layer").open("w+b") as out, LayerWriter(out, level=3, workers=1) as writer:
        writer.add(raw, b"unknown")
        (frame,) = writer.frames()
        assert writer.reused == (0, 0)
    assert frame.digest == compress(raw, 3).digest
