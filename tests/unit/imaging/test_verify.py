"""Every way in which a restored tree can differ is seen and named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import captured
import pytest
from captured import Captured
from loopdevice import taking
from trees import rich_tree

from imaging import verify as verifying
from imaging.index import Index
from imaging.verify import verify
from plumbing.errors import DiskError
from plumbing.run import run

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def tree_and_index(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    made = captured.rich(tmp_path_factory.mktemp("verify"))
    return made.tree, made.index


def found(index: Index, tree: Path) -> set[tuple[str, str]]:
    return {(os.fsdecode(mismatch.path), mismatch.what) for mismatch in verify(index, tree)}


def test_the_tree_itself_is_right(tree_and_index: tuple[Path, Index]) -> None:
    tree, index = tree_and_index
    told: list[tuple[str, int, int]] = []
    assert verify(index, tree, lambda *said: told.append(said)) == []
    assert told[-1] == ("verify", index.content_bytes, index.content_bytes)


def test_reading_leaves_the_access_times(tree_and_index: tuple[Path, Index]) -> None:
    tree, index = tree_and_index
    before = {path: path.lstat().st_atime_ns for path in tree.rglob("*") if path.is_file()}
    verify(index, tree)
    assert {path: path.lstat().st_atime_ns for path in before} == before


def flip(path: Path) -> None:
    times = path.stat()
    with path.open("r+b") as stream:
        stream.seek(times.st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def grow(path: Path) -> None:
    times = path.stat()
    with path.open("ab") as stream:
        stream.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def in_place(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else where `path` is, its folder's time kept."""
    above, own = path.parent.stat(), path.lstat()
    path.unlink()
    make(path)
    os.utime(path, ns=(0, own.st_mtime_ns), follow_symlinks=False)
    os.utime(path.parent, ns=(0, above.st_mtime_ns))


def relink(path: Path) -> None:
    in_place(path, lambda p: p.symlink_to("elsewhere"))
    os.setxattr(path, "trusted.on-a-symlink", b"1", follow_symlinks=False)
    os.lchown(path, 1000, 1001)


def extra(path: Path) -> None:
    above = path.parent.stat()
    path.write_bytes(b"")
    os.utime(path.parent, ns=(0, above.st_mtime_ns))


DAMAGE: list[tuple[str, Callable[[Path], None], set[tuple[str, str]]]] = [
    ("etc/file010", flip, {("etc/file010", "content")}),
    ("large", flip, {("large", "content")}),
    ("exact", grow, {("exact", "size")}),
    ("empty", grow, {("empty", "size")}),
    ("empty", lambda p: p.chmod(0o600), {("empty", "mode")}),
    ("setuid", lambda p: p.chmod(0o755), {("setuid", "mode")}),
    ("sticky", lambda p: p.chmod(0o777), {("sticky", "mode")}),
    ("etc", lambda p: os.chown(p, 5, 6), {("etc", "owner")}),
    ("etc/file001", lambda p: os.utime(p, ns=(0, 1)), {("etc/file001", "time")}),
    ("etc", lambda p: os.setxattr(p, "user.folder", b"no"), {("etc", "attribute user.folder")}),
    ("exact", lambda p: os.setxattr(p, "user.new", b""), {("exact", "attribute user.new")}),
    ("medium", lambda p: os.removexattr(p, "security.capability"),
     {("etc/a hard link", "attribute security.capability")}),
    ("symlink", lambda p: os.removexattr(p, "trusted.on-a-symlink", follow_symlinks=False),
     {("symlink", "attribute trusted.on-a-symlink")}),
    ("dangling", lambda p: in_place(p, lambda q: q.symlink_to("elsewhere")), {("dangling", "link")}),
    ("symlink", relink, {("symlink", "link"), ("symlink-twice", "link")}),
    ("char", lambda p: in_place(p, lambda q: os.mknod(q, 0o20620, os.makedev(4, 65))), {("char", "device")}),
    ("zz-link", lambda p: in_place(p, lambda q: q.write_bytes(b"")), {("zz-link", "link")}),
    ("fifo", lambda p: in_place(p, lambda q: q.write_bytes(b"")), {("fifo", "type"), ("fifo", "owner")}),
    ("exact", lambda p: in_place(p, lambda q: q.symlink_to("large")), {("exact", "presence")}),
    ("exact", lambda p: in_place(p, os.mkfifo), {("exact", "type")}),
    ("unlisted", extra, {("unlisted", "presence")}),
    ("etc/unlisted", extra, {("etc/unlisted", "presence")}),
]


@pytest.mark.parametrize(("name", "damage", "expected"), DAMAGE)
def test_each_kind_of_damage(tmp_path: Path, name: str, damage: Callable[[Path], None],
                             expected: set[tuple[str, str]]) -> None:
    tree = small_tree(tmp_path / "tree")
    index = Captured(tmp_path, tree).index
    assert verify(index, tree) == []
    damage(tree / name)
    assert found(index, tree) == expected


def small_tree(top: Path) -> Path:
    rich_tree(top)
    (top / "socket").unlink()
    os.utime(top, ns=(0, 1))
    return top


def test_missing_things(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/c").write_bytes(b"1")
    index = Captured(tmp_path, tree).index
    (tree / "a").rename(tmp_path / "a")
    os.utime(tree, ns=(0, index.entries[0].mtime_ns))
    assert found(index, tree) == {("a", "presence"), ("a/b", "presence"), ("a/b/c", "presence")}
    (tree / "a").symlink_to(tmp_path / "a")
    os.utime(tree, ns=(0, index.entries[0].mtime_ns))
    assert found(index, tree) == {("a", "presence"), ("a/b", "presence"), ("a/b/c", "presence")}


def test_a_mismatch_reads_as_a_sentence(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a\nb").write_bytes(b"1")
    (tree / "a\nb").chmod(0o644)
    index = Captured(tmp_path, tree).index
    (tree / "a\nb").chmod(0o600)
    (mismatch,) = verify(index, tree)
    assert str(mismatch) == r"/a\nb: mode is -rw-------, not -rw-r--r--"


def test_what_mkfs_made_is_expected(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    index = Captured(tmp_path, tree).index
    times = {path: path.stat().st_mtime_ns for path in (tree, tree / "sub")}
    (tree / "lost+found").mkdir()
    (tree / "sub/lost+found").mkdir()
    for path, time_ns in times.items():
        os.utime(path, ns=(0, time_ns))
    assert found(index, tree) == {("sub/lost+found", "presence")}


def test_what_is_compared_comes_from_the_disk(tmp_path: Path) -> None:
    """The disk under a mounted filesystem is changed; the page cache still holds what was written."""
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    run(["mkfs.ext4", "-q", "-O", "^has_journal", image])
    with taking():
        run(["mount", "-o", "loop", image, mounted])
    try:
        (mounted / "lost+found").rmdir()
        content = b"what was written to the disk" * 1000
        (mounted / "file").write_bytes(content)
        index = Captured(tmp_path, mounted).index
        assert verify(index, mounted) == []
        os.sync()
        device = run(["findmnt", "-no", "SOURCE", mounted]).text.strip()
        with open(device, "r+b") as disk:  # noqa: PTH123 - a device
            data = disk.read()
            place = data.index(content[:4096])
            disk.seek(place + 100)
            disk.write(b"\0\0\0\0")
            disk.flush()
            os.fsync(disk.fileno())
        assert (mounted / "file").read_bytes() == content, "the cache hides it"
        assert found(index, mounted) == {("file", "content")}
    finally:
        run(["umount", mounted])


def test_a_lost_write_is_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    index = Captured(tmp_path, tree).index

    def failing(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verifying, "sync_filesystem", failing)
    with pytest.raises(DiskError, match="replace it"):
        verify(index, tree)
    with pytest.raises(DiskError, match="mounted"):
        verify(index, tmp_path / "none")
