"""The estimate of a tar's length against the tar."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import rich_tree

from imaging.capture import capture
from imaging.excludes import DEFAULT_EXCLUDES, Exclude
from imaging.release import Release
from imaging.sizing import tree_bytes
from imaging.store import Store
from plumbing.run import run


def length(tree: Path, store: Path, excludes: tuple[Exclude, ...]) -> int:
    return Release.parse(capture(tree, Store(store), name="d", version="1", arch="amd64", excludes=excludes)).raw_bytes


@pytest.mark.root
def test_everything_a_tree_can_hold(tmp_path: Path) -> None:
    tree = rich_tree(tmp_path / "tree")
    mine = (Exclude.parse("files:/etc"), Exclude.parse("content:/exact"))
    for number, excludes in enumerate(((), DEFAULT_EXCLUDES, mine)):
        assert tree_bytes(tree, excludes=excludes) == pytest.approx(
            length(tree, tmp_path / str(number), excludes), rel=0.01)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3000), max_size=20))
def test_plain_files_are_counted_to_the_byte(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for number, size in enumerate(sizes):
            (tree / str(number)).write_bytes(bytes(size))
            os.utime(tree / str(number), ns=(0, 10**18))
        os.utime(tree, ns=(0, 10**18))
        assert tree_bytes(tree) == length(tree, Path(folder) / "store", ())


@pytest.mark.root
def test_what_is_mounted_inside_counts_when_it_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    run(["mount", "-t", "tmpfs", "none", tmp_path / "mnt"])
    try:
        (tmp_path / "mnt/f").write_bytes(bytes(100_000))
        assert tree_bytes(tmp_path, one_file_system=True) < 10_000
        assert tree_bytes(tmp_path) > 100_000
    finally:
        run(["umount", tmp_path / "mnt"])


def test_what_cannot_be_read_counts_nothing(tmp_path: Path) -> None:
    assert tree_bytes(tmp_path / "gone") == 0
