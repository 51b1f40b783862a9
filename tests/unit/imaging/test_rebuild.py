"""Frames made from an older tree: bit for bit, and never believed when they are not."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from pathlib import Path

import captured
import pytest
from blake3 import blake3
from captured import Captured
from trees import describe, noise

from imaging import fetch, rebuild
from imaging.ahead import Ahead
from imaging.fetch import FrameFetcher
from imaging.frames import Packed
from imaging.rebuild import TreeSource, known_content
from imaging.restore import restore
from plumbing.errors import CorruptError, NotFoundError

LEVEL = 3


def source_of(tree: Path, made: Captured, level: int = LEVEL) -> TreeSource:
    return TreeSource(made.index, known_content(tree, made.index.entries), level)


@pytest.mark.root
def test_every_frame_comes_out_as_it_is_in_the_release(tmp_path: Path) -> None:
    """From a copy with other times, names and owners: content is all that counts."""
    made = captured.rich(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for number, path in enumerate(path for path in made.tree.rglob("*") if path.is_file() and not path.is_symlink()):
        shutil.copyfile(path, other / f"{number}")
    source = source_of(other, made)
    for number, frame in enumerate(made.index.frames):
        assert source.has(number)
        assert blake3(source.read(frame.offset, frame.length)).digest() == frame.digest
    first, second = made.index.frames[:2]
    assert source.read(first.offset, first.length + second.length) == made.source.read(
        first.offset, first.length + second.length)


@pytest.mark.root
def test_an_upgrade_fetches_only_what_has_new_content(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "usr").mkdir(parents=True)
    for number in range(400):
        (tree / f"usr/{number:03}").write_bytes(noise(number, 10_000))
    (tree / "usr/large").write_bytes(noise(9999, 9 << 20))
    old = tmp_path / "old"
    shutil.copytree(tree, old)
    (tree / "usr/200").write_bytes(b"new")
    for path in tree.rglob("*"):
        os.utime(path, ns=(0, 7))  # as when a package is built again
    made = Captured(tmp_path, tree)
    local = source_of(old, made)
    fetcher = FrameFetcher([local, made.source], pause_s=0)
    target = tmp_path / "target"
    target.mkdir()
    restore(made.index, fetcher, target)
    assert describe(target) == describe(tree)
    here, there = fetcher.report()
    assert (here.lies, here.failures, there.frames) == (0, 0, 1)
    lacking = [frame for number, frame in enumerate(made.index.frames) if not local.has(number)]
    assert len(lacking) == 1


@pytest.mark.root
@pytest.mark.parametrize("change", ["content", "gone", "link"])
def test_a_tree_that_changes_afterwards_is_not_believed(tmp_path: Path, change: str) -> None:
    made = captured.rich(tmp_path)
    old = tmp_path / "old"
    shutil.copytree(made.tree, old, symlinks=True, ignore=lambda *_: ["fifo", "char", "block"])
    source = source_of(old, made)
    large = old / "large"
    status = large.stat()
    if change == "content":  # its length and time stay, only bytes tell
        large.write_bytes(noise(77, status.st_size))
        os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        large.unlink()
        (old / "zz-link").unlink()
        if change == "link":
            large.symlink_to("exact")
    fetcher = FrameFetcher([source, made.source], pause_s=0)
    target = tmp_path / "target"
    target.mkdir()
    with Ahead(fetcher, made.index.frames) as ahead:
        restore(made.index, ahead, target)
    assert describe(target) == describe(made.tree)


def bytes_read() -> int:
    """Return how many bytes this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_piece_of_a_large_file_costs_no_more_than_its_own_bytes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(noise(1, 48 << 20))
    made = Captured(tmp_path, tree)
    source = source_of(tree, made)
    before = bytes_read()
    for frame in made.index.frames:
        assert blake3(source.read(frame.offset, frame.length)).digest() == frame.digest
    assert bytes_read() - before < 50 << 20


def test_of_many_files_with_the_same_content_one_is_read(tmp_path: Path) -> None:
    tree, many = tmp_path / "tree", tmp_path / "many"
    for folder, count in ((tree, 1), (many, 9)):
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}").write_bytes(noise(1, 4 << 20))
    made = Captured(tmp_path, tree)
    before = bytes_read()
    assert len(known_content(many, made.index.entries)) == 1
    assert bytes_read() - before < 5 << 20


@pytest.mark.root
def test_what_is_mounted_in_the_tree_is_not_even_looked_at(tmp_path: Path) -> None:
    """Neither a user's FUSE, which root may not see, nor one that nobody answers for: looking would wait for ever."""
    tree = tmp_path / "tree"
    libc, points = ctypes.CDLL(None, use_errno=True), [tree / "a user's *[x] \r\udcff", tree / "gone/dead server"]
    for point in points:
        point.mkdir(parents=True)
    (tree / "file").write_bytes(noise(1, 5000))
    made = Captured(tmp_path, tree)
    with Path("/dev/fuse").open("r+b", buffering=0) as one, Path("/dev/fuse").open("r+b", buffering=0) as other:
        for stream, point, user in ((one, points[0], 1000), (other, points[1], 0)):
            options = f"fd={stream.fileno()},rootmode=40000,user_id={user},group_id={user}".encode()
            assert libc.mount(b"fuse", os.fsencode(point), b"fuse", 0, options) == 0
        with pytest.raises(PermissionError):
            points[0].stat()
        found = list[object]()
        looking = threading.Thread(target=lambda: found.append(known_content(tree, made.index.entries)), daemon=True)
        looking.start()
        looking.join(30)
        for point in points:
            assert libc.umount2(os.fsencode(point), 2) == 0
    assert found and len(found) == 1


def test_holes_that_no_content_has_are_not_read(tmp_path: Path) -> None:
    tree, many = tmp_path / "tree", tmp_path / "many"
    for folder, name in ((tree, "dense"), (tree, "sparse"), *((many, f"{number}") for number in range(20))):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(noise(1, 10_000))
        os.truncate(folder / name, (6 if name == "sparse" else 4) << 20)
    (tree / "dense").write_bytes(noise(2, 4 << 20))
    shutil.copyfile(tree / "sparse", many / "sparse")
    os.truncate(many / "sparse", 10_000)
    os.truncate(many / "sparse", 6 << 20)
    made = Captured(tmp_path, tree)
    before = bytes_read()
    assert [there.entry.path for there in known_content(many, made.index.entries).values()] == [b"sparse"]
    assert bytes_read() - before < 8 << 20


@pytest.mark.root
def test_another_compressor_is_found_out_and_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = captured.rich(tmp_path)
    source = source_of(made.tree, made)
    monkeypatch.setattr(rebuild, "compress", lambda raw, level: Packed(raw, b"", False))
    with pytest.raises(CorruptError, match="another zstd made the release"):
        source.read(made.index.frames[0].offset, made.index.frames[0].length)
    monkeypatch.setattr(fetch, "RETRY_S", 0.0)
    fetcher = FrameFetcher([source, made.source], pause_s=0)
    for frame in made.index.frames:
        assert blake3(fetcher.frame(frame)).digest() == frame.digest
    report = fetcher.report()[0]
    assert "another zstd" in str(report.dropped) and report.lies == 2


@pytest.mark.root
def test_ranges_that_are_no_frames_are_not_here(tmp_path: Path) -> None:
    made = captured.rich(tmp_path)
    source = source_of(made.tree, made)
    frame = made.index.frames[1]
    for offset, length in [(frame.offset + 1, 10), (frame.offset, frame.length - 1), (1 << 50, 1)]:
        with pytest.raises(NotFoundError):
            source.read(offset, length)
