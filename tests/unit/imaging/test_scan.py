"""Walking and reading a tree that may be changing, hostile, or partly another filesystem."""

import os
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imaging.entry import ROOT, Entry, EntryType, Hole
from imaging.excludes import Exclude
from imaging.scan import FileChangedError, TreeReader, scan
from plumbing.errors import DiskError
from plumbing.run import run


def paths(tree: Path, **options: object) -> list[bytes]:
    return [entry.path for entry in scan(tree, **options)]  # type: ignore[arg-type]


def test_order_is_depth_first_with_names_as_bytes(tmp_path: Path) -> None:
    for name in ("b/z", "b/a", "a", "b-", "b.d/x", "B", "é"):
        (tmp_path / name).mkdir(parents=True)
    assert paths(tmp_path) == [ROOT, b"B", b"a", b"b", b"b/a", b"b/z", b"b-", b"b.d", b"b.d/x", "é".encode()]


def test_the_tree_is_not_touched(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_bytes(b"content")
    os.utime(tree / "f", ns=(1, 1))
    before = (tree / "f").stat()
    with TreeReader(tree) as reader:
        assert [b"".join(reader.pieces(entry)) for entry in scan(tree) if entry.is_file] == [b"content"]
    assert (tree / "f").stat() == before


def test_more_levels_than_a_process_may_recurse_or_a_path_may_have(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 20, dir_fd=handle)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    found = paths(tmp_path)
    assert len(found) == 301 and len(found[-1]) == 300 * 21 - 1
    run(["rm", "-rf", tmp_path / ("d" * 20)])


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/f").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    walk = scan(tmp_path)
    for entry in walk:
        if entry.path == b"a/b":
            break
    walk.close()  # type: ignore[attr-defined]
    with TreeReader(tmp_path) as reader:
        (entry,) = (entry for entry in scan(tmp_path) if entry.is_file)
        next(iter(reader.pieces(entry)))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
def test_another_filesystem_is_a_mount_point(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    run(["mount", "-t", "tmpfs", "none", tmp_path / "mnt"])
    try:
        (tmp_path / "mnt/x").touch()
        notes: list[str] = []
        assert paths(tmp_path, one_file_system=True, note=notes.append) == [ROOT, b"mnt"]
        assert notes == ["/mnt is another filesystem; its content is left out"]
        assert paths(tmp_path) == [ROOT, b"mnt", b"mnt/x"]
    finally:
        run(["umount", tmp_path / "mnt"])


def test_sockets_are_noted_unless_excluded(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "s"))
    notes: list[str] = []
    assert paths(tmp_path, note=notes.append) == [ROOT]
    assert notes == ["/s is a socket; it is left out"]
    notes.clear()
    assert paths(tmp_path, note=notes.append, excludes=(Exclude("/s"),)) == [ROOT]
    assert notes == []


def test_a_hard_link_whose_first_name_is_left_out_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    os.link(tmp_path / "a", tmp_path / "b")
    os.link(tmp_path / "a", tmp_path / "c")
    found = {entry.path: (entry.type, entry.link) for entry in scan(tmp_path, excludes=(Exclude("/a"),))}
    assert found[b"b"] == (EntryType.FILE, b"") and found[b"c"] == (EntryType.LINK, b"b")


@pytest.mark.parametrize(("pieces", "size", "holes"), [
    ([], 1 << 20, (Hole(0, 1 << 20),)),
    ([(0, 4096)], 1 << 20, (Hole(4096, (1 << 20) - 4096),)),
    ([(65536, 4096)], 65536 + 4096, (Hole(0, 65536),)),
    ([(0, 4096), (65536, 4096)], 1 << 20, (Hole(4096, 61440), Hole(69632, (1 << 20) - 69632))),
    ([(0, 5000)], 5000, ()),
])
def test_holes(tmp_path: Path, pieces: list[tuple[int, int]], size: int, holes: tuple[Hole, ...]) -> None:
    with (tmp_path / "f").open("wb") as stream:
        for offset, length in pieces:
            stream.seek(offset)
            stream.write(b"x" * length)
        stream.truncate(size)
    _, entry = scan(tmp_path)
    assert entry.holes == holes
    with TreeReader(tmp_path) as reader:
        assert b"".join(reader.pieces(entry, 5000)) == (tmp_path / "f").read_bytes()


def file_entry(tree: Path) -> Entry:
    (entry,) = (entry for entry in scan(tree) if entry.is_file)
    return entry


def test_a_file_that_changed_since_the_walk(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"one")
    entry = file_entry(tmp_path)
    (tmp_path / "f").write_bytes(b"three")
    with TreeReader(tmp_path) as reader:
        with pytest.raises(FileChangedError, match="/f keeps changing"):
            list(reader.pieces(entry))
        again = reader.again(entry)
        assert b"".join(reader.pieces(again)) == b"three"
        assert (again.path, again.size) == (b"f", 5)


def test_a_file_that_changes_under_the_reader(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    entry = file_entry(tmp_path)
    with TreeReader(tmp_path) as reader:
        pieces = reader.pieces(entry, 50)
        assert next(pieces) == b"x" * 50
        with (tmp_path / "f").open("r+b") as stream:
            stream.write(b"y")
        os.utime(tmp_path / "f", ns=(entry.mtime_ns, entry.mtime_ns))  # even one that hides it
        with pytest.raises(FileChangedError):
            list(pieces)
        (tmp_path / "f").write_bytes(b"short")
        with pytest.raises(FileChangedError):
            list(reader.pieces(entry))


def test_a_file_that_became_something_else(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "g").write_bytes(b"y")
    entry, other = (entry for entry in scan(tmp_path) if entry.is_file)
    def pipe() -> None:
        (tmp_path / "f").unlink()
        os.mkfifo(tmp_path / "f")

    changes: tuple[Callable[[], None], ...] = ((tmp_path / "f").unlink, lambda: (tmp_path / "f").symlink_to("g"), pipe)
    for change in changes:
        change()
        with TreeReader(tmp_path) as reader:
            with pytest.raises(FileChangedError):
                list(reader.pieces(entry))
            with pytest.raises(FileChangedError):
                reader.again(entry)
            assert list(reader.pieces(other)) == [b"y"]


def test_a_hard_link_looked_at_alone_is_its_inode(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "s").symlink_to("f")
    os.link(tmp_path / "f", tmp_path / "f2")
    os.link(tmp_path / "s", tmp_path / "s2", follow_symlinks=False)
    found = {entry.path: entry for entry in scan(tmp_path)}
    with TreeReader(tmp_path) as reader:
        for name in ("f", "s"):
            second = found[f"{name}2".encode()]
            assert second.type is EntryType.LINK
            assert reader.again(second) == replace(found[name.encode()], path=second.path)


def test_descend_keeps_out_of_folders_nobody_wants(tmp_path: Path) -> None:
    for name in ("a/b/c", "x/y"):
        (tmp_path / name).mkdir(parents=True)
    assert paths(tmp_path, descend=lambda path: path == b"a") == [ROOT, b"a", b"a/b", b"x"]


def test_a_directory_swapped_for_a_symlink_leads_nowhere(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    for folder in (tree / "home/joe", outside):
        folder.mkdir(parents=True)
        (folder / "f").write_bytes(b"x")
        os.utime(folder / "f", ns=(0, 0))
    entry = file_entry(tree)
    (tree / "home/joe").rename(tree / "home/old")
    (tree / "home/joe").symlink_to(outside)
    with TreeReader(tree) as reader, pytest.raises(FileChangedError):
        list(reader.pieces(entry))
    assert b"home/joe/f" not in paths(tree)


def test_walking_while_everything_vanishes_and_returns(tmp_path: Path) -> None:
    """What is found is consistent: no parent missing, no error, whatever a second thread does."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            (tmp_path / "d/e").mkdir(parents=True)
            (tmp_path / "d/e/f").write_bytes(b"x")
            (tmp_path / "d/e/f").unlink()
            (tmp_path / "d/e").rmdir()
            (tmp_path / "d").rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            found = paths(tmp_path, note=lambda _sentence: None)
            assert found[0] == ROOT
            assert found[1:] == [b"d", b"d/e", b"d/e/f"][:len(found) - 1]
    finally:
        stop.set()
        thread.join()


def test_not_a_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for wrong in (tmp_path / "f", tmp_path / "gone"):
        with pytest.raises(DiskError, match="name a directory"):
            paths(wrong)
        with pytest.raises(DiskError, match="name a directory"):
            TreeReader(wrong)


def test_an_excluded_folder_is_not_even_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/f").touch()
    assert paths(tmp_path, excludes=(Exclude("/secret/*"),)) == [ROOT, b"secret"]
    assert paths(tmp_path, excludes=(Exclude("secret"),)) == [ROOT]
    assert stat.S_ISDIR((tmp_path / "secret").stat().st_mode)
