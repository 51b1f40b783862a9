"""The outline says of every inode what the index says, and refuses what is no index."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from imaging.entry import Entry, EntryType, Extent
from imaging.index import Frame, Index, encode
from imaging.outline import Comparison, Outline, Row
from imaging.scan import scan
from plumbing.errors import CorruptError


def packed(tree: Path) -> tuple[list[Entry], bytes]:
    entries, offset = [], 0
    for entry in scan(tree):
        if entry.is_file and entry.size:
            content = (tree / os.fsdecode(entry.path)).read_bytes()
            entry = replace(entry, digest=blake3(content).digest(), extents=(Extent(0, offset, entry.size),))  # noqa: PLW2901
            offset += entry.size
        elif entry.is_file:
            entry = replace(entry, digest=blake3(b"").digest())  # noqa: PLW2901
        entries.append(entry)
    return entries, encode(Index(tuple(entries), (Frame(0, 10, max(1, offset), bytes(32)),)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in (b"a/b", b"a-b", b"a.c", b"a/b-c", b"z\xff", b"a/b/c"):
        (root / os.fsdecode(name)).mkdir(parents=True, exist_ok=True)
    (root / "a/b/file").write_bytes(b"content")
    (root / "a/b/empty").write_bytes(b"")
    os.link(root / "a/b/file", root / "a-b/linked")
    (root / "a/link").symlink_to("/etc/passwd")
    os.setxattr(root / "a/b/file", "user.x", b"1")
    os.mkfifo(root / "a/pipe")
    return root


def test_it_has_every_inode_as_the_index_has_it(tree: Path) -> None:
    entries, data = packed(tree)
    outline = Outline(data)
    by_path = {entry.path: entry for entry in entries}
    assert [row.path for row in outline] == [entry.path for entry in entries]
    for row, entry in zip(outline, entries, strict=True):
        of = by_path[entry.link] if entry.type is EntryType.LINK else entry
        assert row == Row(entry.path, of.type.value, entry.mode, entry.uid, entry.gid, entry.mtime_ns, of.size,
                          of.digest, of.link if entry.type is not EntryType.FILE else b"", of.xattrs)


def test_a_walk_finds_its_rows_and_nothing_that_the_release_does_not_have(tree: Path) -> None:
    entries, data = packed(tree)
    for name in (b"a/a", b"a/b/c/new", b"a/b0", b"a-a", b"zz"):
        (tree / os.fsdecode(name)).mkdir(parents=True, exist_ok=True)
    known = Comparison(Outline(data))
    had = {entry.path for entry in entries}
    for entry in scan(tree):
        row = known.at(entry.path)
        assert (row.path if row else None) == (entry.path if entry.path in had else None)


def test_folders_that_were_not_walked_are_passed_over(tree: Path) -> None:
    known = Comparison(Outline(packed(tree)[1]))
    assert known.at(b"a") is not None and known.at(b"a-b/linked") is not None and known.at(b"z\xff") is not None
    assert known.at(b"zzz") is None


@given(st.data())
def test_what_is_no_index_is_refused_with_one_sentence(data: st.DataObject) -> None:
    text = (b'{"format":"dev.reroot.index","version":1,"path":["."],"type":"d","mode":[493],"uid":[0],"gid":[0],'
            b'"mtime_ns":[0],"size":[],"blake3":"","extents":[],"link":[],"rdev":[],"xattrs":[],"holes":[],'
            b'"frames":{"offset":[]}}')
    assert len(Outline(zstandard.compress(text))) == 1
    place = data.draw(st.integers(0, len(text) - 1))
    broken = text[:place] + data.draw(st.binary(max_size=3)) + text[place + data.draw(st.integers(0, 40)):]
    try:
        list(Outline(zstandard.compress(broken)))
    except CorruptError as error:
        assert "unusable" in error.sentence
    with pytest.raises(CorruptError):
        Outline(broken)
