from __future__ import annotations

import os
from pathlib import Path

import pytest
from old_and_new import disk, index_of, rules, write

from imaging.entry import ROOT, Entry, EntryType, Hole
from precious import keep
from precious.returning import disk_bytes, inodes


def entry(path: bytes, kind: EntryType = EntryType.FILE, **more: object) -> Entry:
    return Entry(path, kind, 0o644, 0, 0, 0, **more)  # type: ignore[arg-type]


def test_every_file_takes_whole_blocks_and_an_inode() -> None:
    top = entry(ROOT, EntryType.DIRECTORY)
    assert disk_bytes([top]) == 4096
    assert disk_bytes([top, entry(b"a", size=1), entry(b"b", size=4097)]) == 4096 * 4
    assert inodes([top, entry(b"a", size=1), entry(b"b"), entry(b"c", EntryType.LINK, link=b"a")]) == 3


def test_holes_take_nothing_and_what_is_between_them_whole_blocks() -> None:
    top = entry(ROOT, EntryType.DIRECTORY)
    assert disk_bytes([top, entry(b"a", size=1 << 30, holes=(Hole(0, (1 << 30) - 10),))]) == 4096 * 2
    assert disk_bytes([top, entry(b"a", size=9000, holes=(Hole(1024, 7000),))]) == 4096 * 4


def test_links_attributes_and_many_names_take_blocks_too() -> None:
    top = entry(ROOT, EntryType.DIRECTORY)
    assert disk_bytes([top, entry(b"a", EntryType.SYMLINK, link=b"x" * 59)]) == 4096
    assert disk_bytes([top, entry(b"a", EntryType.SYMLINK, link=b"x" * 60)]) == 4096 * 2
    assert disk_bytes([top, entry(b"a", xattrs=((b"user.x", b"y" * 200),))]) == 4096 * 2
    names = [entry(b"%0200d" % number, EntryType.FIFO) for number in range(100)]
    assert disk_bytes([top, *names]) == 4096 * (1 + 100 * 208 // 4096)


@pytest.mark.root
def test_an_archive_says_what_its_return_takes(tmp_path: Path) -> None:
    for number in range(300):
        write(tmp_path / "old", f"srv/{number}", b"x")
    write(tmp_path / "old", "etc/unlisted", b"x" * 10_000)
    kept = keep.collect(tmp_path / "old", rules('keep = ["/srv/**"]'), tmp_path / "kept")
    assert kept.returning_inodes == 302  # with srv and the top
    assert kept.returning_bytes >= 300 * 4096


@pytest.mark.root
def test_a_real_filesystem_takes_no_more(tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as made:
        before = os.statvfs(made.root)
        tree = made.root / "tree"
        for number in range(500):
            write(tree, f"folder{number % 7}/a file with a name of its own {number}", b"x" * (number * 37))
        (tree / "link").symlink_to("x" * 100)
        os.setxattr(tree, b"user.large", b"y" * 500)
        os.sync()
        after = os.statvfs(made.root)
        entries = index_of(tree).entries
        taken = (before.f_bfree - after.f_bfree) * after.f_frsize
        assert taken <= disk_bytes(entries) <= taken * 1.2
        assert inodes(entries) == before.f_ffree - after.f_ffree
