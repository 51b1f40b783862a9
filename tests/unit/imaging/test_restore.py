"""Trees that come back exactly, interrupted or not, and hostile ones that reach nothing outside the target."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import captured
import pytest
import zstandard
from blake3 import blake3
from captured import Captured
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import describe, noise

from imaging import restore as restoring
from imaging.entry import Entry, EntryType, Extent, Hole
from imaging.folders import sync_filesystem
from imaging.index import Frame, Index
from imaging.inodes import segments
from imaging.restore import restore
from imaging.verify import verify
from plumbing.errors import CorruptError, DiskError, NetworkError
from plumbing.run import run

US = (os.geteuid(), os.getegid())


class Packed:
    """Frames made by hand, and how often each was asked for."""

    def __init__(self, *raws: bytes) -> None:
        self.packed = [zstandard.compress(raw) for raw in raws]
        self.raws = raws
        self.asked: list[int] = []

    def frames(self) -> tuple[Frame, ...]:
        starts = [sum(map(len, self.packed[:number])) for number in range(len(self.packed))]
        return tuple(Frame(start, len(data), len(raw), blake3(data).digest())
                     for start, data, raw in zip(starts, self.packed, self.raws, strict=True))

    def frame(self, frame: Frame) -> bytes:
        number = self.frames().index(frame)
        self.asked.append(number)
        return self.packed[number]


def entry(path: bytes, kind: EntryType = EntryType.FILE, mode: int = 0o644, **fields: Any) -> Entry:
    base = Entry(path, kind, mode, *US, 1_000_000_007)
    return replace(base, **fields)


def file(path: bytes, content: bytes, *extents: tuple[int, int, int], **fields: Any) -> Entry:
    return entry(path, size=len(content), digest=blake3(content).digest(), extents=tuple(map(Extent._make, extents)),
                 **fields)


TOP = entry(b".", EntryType.DIRECTORY, 0o755)


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Captured]:
    made = captured.rich(tmp_path_factory.mktemp("rich"))
    return made.tree, made


@pytest.mark.root
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_everything_comes_back(rich: tuple[Path, Captured], tmp_path: Path, workers: int) -> None:
    tree, captured = rich
    told: list[tuple[str, int, int]] = []
    report = restore(captured.index, captured.fetcher, tmp_path, workers=workers,
                     progress=lambda *said: told.append(said))
    assert describe(tmp_path) == describe(tree)
    assert verify(captured.index, tmp_path) == []
    assert report.entries == len(captured.index.entries)
    assert report.frames_reused == 0
    assert told[-1][0] == "restore" and told[-1][1] == told[-1][2] > 0
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.root
def test_holes_stay_holes(rich: tuple[Path, Captured], tmp_path: Path) -> None:
    _, captured = rich
    restore(captured.index, captured.fetcher, tmp_path)
    assert (tmp_path / "sparse").stat().st_blocks * 512 <= 1 << 20


@pytest.mark.root
def test_nothing_depends_on_the_umask(rich: tuple[Path, Captured], tmp_path: Path) -> None:
    tree, captured = rich
    before = os.umask(0o077)
    try:
        restore(captured.index, captured.fetcher, tmp_path)
    finally:
        os.umask(before)
    assert describe(tmp_path) == describe(tree)


@pytest.mark.root
def test_interrupted_anywhere_it_resumes(rich: tuple[Path, Captured], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """The source dies after every number of frames; each attempt begins with the frames reported as durable."""
    monkeypatch.setattr(restoring, "SYNC_BYTES", 1)
    tree, captured = rich
    done: set[int] = set()
    attempts = 0

    class Dying:
        def __init__(self, left: int) -> None:
            self.left = left

        def frame(self, frame: Frame) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise NetworkError("the cable is out")
            return captured.fetcher.frame(frame)

    while True:
        attempts += 1
        try:
            report = restore(captured.index, Dying(2), tmp_path, workers=2, done=done, on_frame=done.add)
            break
        except NetworkError:
            assert attempts < 30
    assert attempts > 2
    assert report.frames_reused > 0
    assert describe(tmp_path) == describe(tree)
    restore(captured.index, captured.fetcher, tmp_path, done=done)
    assert describe(tmp_path) == describe(tree), "a finished restore can be repeated"
    restore(captured.index, captured.fetcher, tmp_path)
    assert describe(tmp_path) == describe(tree), "and be done anew in the same place"


@pytest.mark.root
def test_a_large_file_that_was_lost_is_fetched_again(rich: tuple[Path, Captured], tmp_path: Path) -> None:
    tree, captured = rich
    done: set[int] = set()
    restore(captured.index, captured.fetcher, tmp_path, on_frame=done.add)
    (tmp_path / "large").unlink()
    (tmp_path / "zz-link").unlink()
    report = restore(captured.index, captured.fetcher, tmp_path, done=done)
    assert report.frames == 3
    assert describe(tmp_path) == describe(tree)


def test_frames_are_reported_only_after_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "SYNC_BYTES", 1)
    steps: list[str] = []
    real = sync_filesystem

    def watched(handle: int) -> None:
        real(handle)
        steps.append("sync")

    monkeypatch.setattr(restoring, "sync_filesystem", watched)
    packed = Packed(b"a" * 100, b"b" * 100)
    index = Index((TOP, file(b"a", b"a" * 100, (0, 0, 100)), file(b"b", b"b" * 100, (1, 0, 100))), packed.frames())
    restore(index, packed, tmp_path, workers=1, on_frame=lambda number: steps.append(str(number)))
    assert steps == ["sync", "0", "sync", "1", "sync"]


def test_a_failed_sync_is_fatal_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def failing(handle: int) -> None:
        calls.append(handle)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(restoring, "sync_filesystem", failing)
    packed = Packed(b"a")
    index = Index((TOP, file(b"a", b"a", (0, 0, 1))), packed.frames())
    with pytest.raises(DiskError, match="lost what was written"):
        restore(index, packed, tmp_path, on_frame=lambda number: pytest.fail(f"frame {number} is not durable"))
    assert len(calls) == 1


def test_frames_without_content_are_not_fetched(tmp_path: Path) -> None:
    packed = Packed(b"headers only", b"content", b"\0" * 1024)
    restore(Index((TOP, file(b"a", b"content", (1, 0, 7))), packed.frames()), packed, tmp_path)
    assert packed.asked == [1]
    assert (tmp_path / "a").read_bytes() == b"content"


def test_a_file_in_two_pieces_of_one_frame(tmp_path: Path) -> None:
    packed = Packed(b"..ab....cd", b"ef")
    content = b"abcdef"
    index = Index((TOP, file(b"a", content, (0, 2, 2), (0, 8, 2), (1, 0, 2), mode=0o4755)), packed.frames())
    restore(index, packed, tmp_path)
    assert (tmp_path / "a").read_bytes() == content
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o4755


def test_an_empty_tree(tmp_path: Path) -> None:
    report = restore(Index((TOP,), ()), Packed(), tmp_path)
    assert (report.entries, report.frames) == (1, 0)


# -- hostile or broken input ----------------------------------------------------------------------------------------


def outside_is_untouched(folder: Path, act: Callable[[Path], None]) -> None:
    """Run `act` on a target and assert that nothing beside it changed."""
    outside, target = folder / "outside", folder / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "victim").write_bytes(b"precious")
    before = describe(outside)
    act(target)
    assert describe(outside) == before
    assert sorted(path.name for path in folder.iterdir()) == ["outside", "target"]


@pytest.mark.parametrize("path", [b"../victim", b"a/../../victim", b"/etc/reroot-test", b"..", b"", b"a//b", b"a/",
                                  b"nowhere/b", b"./x", b"a\0b", b"link/victim", b"file/victim"])
def test_paths_that_leave_the_tree_are_refused(tmp_path: Path, path: bytes) -> None:
    packed = Packed(b"x")
    link = entry(b"link", EntryType.SYMLINK, link=os.fsencode(tmp_path / "outside"))
    index = Index((TOP, entry(b"a", EntryType.DIRECTORY, 0o755), file(b"file", b""), link, file(path, b"x", (0, 0, 1))),
                  packed.frames())

    def act(target: Path) -> None:
        with pytest.raises(CorruptError, match="not in a directory of the tree"):
            restore(index, packed, target)
        assert list(target.iterdir()) == []

    outside_is_untouched(tmp_path, act)


@pytest.mark.parametrize("what", ["folder", "file", "large", "empty"])
def test_symlinks_that_lie_in_the_target_are_not_followed(tmp_path: Path, what: str) -> None:
    """A target that was prepared with symlinks where the tree has files or directories."""
    packed = Packed(b"evil", b"evil")
    rows = {
        "folder": (entry(b"name", EntryType.DIRECTORY, 0o777), file(b"name/victim", b"evil", (0, 0, 4))),
        "file": (file(b"name", b"evil", (0, 0, 4)),),
        "large": (file(b"name", b"evilevil", (0, 0, 4), (1, 0, 4)),),
        "empty": (file(b"name", b""),),
    }[what]

    def act(target: Path) -> None:
        (target / "name").symlink_to("../outside" if what == "folder" else "../outside/victim")
        index = Index((TOP, *rows), packed.frames())
        if what == "folder":
            with pytest.raises(DiskError, match="already has something else at /name"):
                restore(index, packed, target)
        else:
            restore(index, packed, target, done={0} if what == "large" else None)
            assert stat.S_ISREG((target / "name").lstat().st_mode)

    outside_is_untouched(tmp_path, act)


@pytest.mark.parametrize("link", [b"../outside/victim", b"/etc/passwd", b"..", b".", b"link/victim",
                                  b"a/../../outside/x"])
def test_hard_links_reach_nothing_outside(tmp_path: Path, link: bytes) -> None:
    def act(target: Path) -> None:
        out = entry(b"link", EntryType.SYMLINK, link=b"../outside")
        index = Index((TOP, out, entry(b"name", EntryType.LINK, link=link)), ())
        with pytest.raises(DiskError):
            restore(index, Packed(), target)

    outside_is_untouched(tmp_path, act)


@pytest.mark.root
def test_devices_and_fifos_are_made_and_never_opened(tmp_path: Path) -> None:
    """A device where an earlier attempt should have left a file is replaced, not written to."""
    packed = Packed(b"evil", b"evil")
    rows = (TOP, entry(b"disk", EntryType.BLOCK, 0o660, rdev=os.makedev(7, 200)), entry(b"pipe", EntryType.FIFO, 0o600),
            file(b"x", b"evil", (0, 0, 4)), file(b"y", b"evilevil", (0, 0, 4), (1, 0, 4)))
    os.mkfifo(tmp_path / "x")
    os.mknod(tmp_path / "y", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    restore(Index(rows, packed.frames()), packed, tmp_path, done={0, 1})
    assert (tmp_path / "y").read_bytes() == b"evilevil"
    assert stat.S_ISBLK((tmp_path / "disk").stat().st_mode)


@pytest.mark.parametrize("extents", [((0, 0, 5),), ((1, 0, 4),), ((0, 2, 4),), ((0, 0, 3),), (), ((0, -1, 4),),
                                     ((0, 0, 2), (0, 3, 2))])
def test_extents_outside_their_frames_are_refused(tmp_path: Path, extents: tuple[tuple[int, int, int], ...]) -> None:
    packed = Packed(b"1234")
    index = Index((TOP, file(b"a", b"abcd", *extents)), packed.frames())
    with pytest.raises(CorruptError, match="not in the frames"):
        restore(index, packed, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_frame_that_unpacks_to_something_else_is_refused(tmp_path: Path) -> None:
    packed = Packed(b"1234")
    frame = packed.frames()[0]
    for lie in (replace(frame, raw_length=3), replace(frame, raw_length=1 << 20)):
        index = Index((TOP, file(b"a", b"123", (0, 0, 3))), (lie,))

        class Given:
            def frame(self, frame: Frame) -> bytes:
                return packed.packed[0]

        with pytest.raises(CorruptError, match="does not have the length"):
            restore(index, Given(), tmp_path)


def test_a_frame_that_is_no_zstd_is_refused(tmp_path: Path) -> None:
    class Junk:
        def frame(self, frame: Frame) -> bytes:
            return b"junk"

    index = Index((TOP, file(b"a", b"123", (0, 0, 3))), (Frame(0, 4, 3, b"\0" * 32),))
    with pytest.raises(CorruptError, match="does not unpack"):
        restore(index, Junk(), tmp_path)


def test_a_missing_target_says_so(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="is the root filesystem mounted"):
        restore(Index((TOP,), ()), Packed(), tmp_path / "none")


@pytest.mark.root
def test_a_full_disk_says_where(tmp_path: Path) -> None:
    packed = Packed(noise(1, 600_000))
    run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", tmp_path])
    try:
        index = Index((TOP, file(b"a", packed.raws[0], (0, 0, 600_000))), packed.frames())
        with pytest.raises(DiskError, match="full at /a"):
            restore(index, packed, tmp_path)
    finally:
        run(["umount", tmp_path])


# -- holes -----------------------------------------------------------------------------------------------------------


@st.composite
def sparse(draw: st.DrawFn) -> tuple[int, tuple[Hole, ...]]:
    size = draw(st.integers(1, 200))
    edges = sorted(draw(st.sets(st.integers(0, size), max_size=8)))
    return size, tuple(Hole(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=False))


@given(sparse(), st.data())
@settings(max_examples=200)
def test_segments_are_what_is_no_hole(case: tuple[int, tuple[Hole, ...]], data: st.DataObject) -> None:
    size, holes = case
    start = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - start))
    covered = [place for offset, run in segments(entry(b"x", size=size, holes=holes), start, length)
               for place in range(offset, offset + run)]
    hollow = {place for hole in holes for place in range(hole.offset, hole.offset + hole.length)}
    assert covered == [place for place in range(start, start + length) if place not in hollow]
