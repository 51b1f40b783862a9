"""Reading a stored release back: what is whole passes, and every kind of damage is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from trees import noise, rich_tree

from imaging import capture as capturing
from imaging import tarstream
from imaging.audit import audit, load_index
from imaging.capture import capture
from imaging.index import Index, encode
from imaging.release import Release
from imaging.store import Store
from plumbing.errors import CorruptError, NotFoundError

REF = "p/1/amd64"


def build(tmp_path: Path) -> tuple[Store, Release]:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(5):
        (tree / f"{number}").write_bytes(noise(number, 700_000))
    store = Store(tmp_path / "store")
    return store, Release.parse(capture(tree, store, name="p", version="1", arch="amd64"))


@pytest.mark.root
def test_a_rich_release_is_whole(tmp_path: Path) -> None:
    store, told = Store(tmp_path / "store"), list[int]()
    tree = rich_tree(tmp_path / "tree")
    release = Release.parse(capture(tree, store, name="p", version="1", arch="amd64", excludes=()))
    found = audit(store, REF, lambda _what, done, _total: told.append(done))
    assert found.release == release
    assert found.files == sum(entry.is_file for entry in load_index(store, release).entries)
    assert told[-1] == release.raw_bytes


@pytest.mark.root
def test_a_release_in_tree_order_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As releases were built before their entries lay in the order of times."""
    tree, store = rich_tree(tmp_path / "tree"), Store(tmp_path / "store")
    with monkeypatch.context() as before:
        before.setattr(tarstream, "place", lambda _entry, row, _inode: (False, 0, row))
        release = Release.parse(capture(tree, store, name="p", version="1", arch="amd64", excludes=()))
    assert audit(store, REF).release == release


@pytest.mark.parametrize(("where", "complaint"), [
    (lambda release: 20, "frame 0 at byte 0"),
    (lambda release: release.index_offset - 5, "as a whole"),
    (lambda release: release.index_offset - 20, r"frame \d+ at byte"),
    (lambda release: release.index_offset + 9, "not the one its manifest names"),
    (lambda release: release.layer_size - 3, "as a whole"),
])
def test_one_flipped_bit_anywhere(tmp_path: Path, where: Callable[[Release], int], complaint: str) -> None:
    store, release = build(tmp_path)
    path = store.blob_path(release.layer_digest)
    data = bytearray(path.read_bytes())
    data[where(release)] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=complaint):
        audit(store, REF)


def test_truncated_and_lengthened(tmp_path: Path) -> None:
    store, release = build(tmp_path)
    path = store.blob_path(release.layer_digest)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    with pytest.raises(CorruptError, match="as a whole"):
        audit(store, REF)
    path.write_bytes(whole[:-1000])
    with pytest.raises(CorruptError):
        audit(store, REF)
    path.unlink()
    with pytest.raises(NotFoundError, match="build it again, or restore"):
        audit(store, REF)


LIES: dict[str, tuple[Callable[[Index], Index], str]] = {
    "another mode": (lambda i: _entry(i, 1, mode=0o4755), "header of /0"),
    "another digest": (lambda i: _entry(i, 2, digest=bytes(32)), "content of /1"),
    "a file too few": (lambda i: Index(i.entries[:-1], i.frames), r"header of /\."),
    "a file swapped": (lambda i: Index(
        (*i.entries[:4], replace(i.entries[4], extents=(), size=0), i.entries[5]), i.frames), "header of /3"),
}


def _entry(index: Index, row: int, **changes: object) -> Index:
    entries = list(index.entries)
    entries[row] = replace(entries[row], **changes)  # type: ignore[arg-type]
    return Index(tuple(entries), index.frames)


@pytest.mark.parametrize("name", LIES)
def test_an_index_that_tells_another_story_than_the_tar(
        tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, complaint = LIES[name]
    monkeypatch.setattr(capturing, "encode", lambda index: encode(change(index)))
    store, _ = build(tmp_path)
    fewer = replace(Release.parse(store.manifest(REF)), version="2", entries=5)
    store.put_manifest("p/2/amd64", fewer.manifest())  # the manifest lies along
    with pytest.raises(CorruptError, match=complaint):
        audit(store, "p/2/amd64" if name == "a file too few" else REF)
