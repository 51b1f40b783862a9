"""Fault 4: no room, or a failing disk, while precious files are saved: nothing was wiped, nothing says it was kept.

The table of outcomes stands in the test's output (pytest -rP).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from loopdevice import attached
from old_and_new import disk, rules, write

from imaging import capture
from plumbing.errors import CorruptError, DiskError, RerootError
from plumbing.run import run
from precious import keep
from recovery import disks

pytestmark = pytest.mark.root

POLICY = rules('keep = ["/srv/**"]')
MIB = 1 << 20


@contextmanager
def tmpfs(at: Path, size: int) -> Iterator[Path]:
    at.mkdir(parents=True)
    run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", at])
    try:
        yield at
    finally:
        run(["umount", "--lazy", at])


@contextmanager
def small(folder: Path, _: Path) -> Iterator[Path]:
    """ENOSPC, foreseen: a filesystem that the archive does not fit on."""
    with disk(folder / "small", 24 * MIB) as made:
        yield made.root


@contextmanager
def filling(folder: Path, _: Path) -> Iterator[Path]:
    """ENOSPC amid writing: there was room when it was asked, and somebody else took it."""
    with tmpfs(folder / "filling", 64 * MIB) as root, pytest.MonkeyPatch.context() as changed:
        real = capture.write_layer

        def late(*args: object, **more: object) -> object:
            with (root / "somebody's").open("wb") as stream:
                stream.write(bytes(60 * MIB))
            return real(*args, **more)  # type: ignore[arg-type]

        changed.setattr(keep, "write_layer", late)
        yield root


@contextmanager
def failing(folder: Path, _: Path) -> Iterator[Path]:
    """An error of the device when pages are written out: the filesystem has room, its disk takes no more."""
    with tmpfs(folder / "device", 12 * MIB) as place, ExitStack() as stack:
        image, root = place / "image", folder / "failing"
        root.mkdir()
        with image.open("wb") as stream:
            stream.truncate(96 * MIB)
        run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=1", image])
        device = stack.enter_context(attached(image))
        stack.enter_context(disks.mounted(device, root, "ext4"))
        yield root


@contextmanager
def limited(folder: Path, _: Path) -> Iterator[Path]:
    """EFBIG: no file may be longer than the kernel's limit says."""
    (folder / "limited").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, before[1]))
    try:
        yield folder / "limited"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def forget(path: Path) -> None:
    """Drop what memory has of a file."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


@contextmanager
def unreadable(folder: Path, old: Path) -> Iterator[Path]:
    """EIO while the old root is read: its disk ends where a file's content should be."""
    with disk(folder / "rotten", 48 * MIB) as made:
        write(made.root, "srv/file", os.urandom(16 * MIB))
        os.sync()
        run(["mount", "--bind", made.root, old])
        try:
            os.truncate(made.image, 8 * MIB)
            forget(made.root / "srv/file")
            (folder / "room").mkdir()
            yield folder / "room"
        finally:
            os.truncate(made.image, 48 * MIB)
            run(["umount", "--lazy", old])


Fault = Callable[[Path, Path], AbstractContextManager[Path]]
FAULTS: list[tuple[Fault, str]] = [
    (small, r"MiB free and keeping the precious files takes"), (filling, "No space left on device"),
    (failing, r"No space left on device|Input/output error"), (limited, "File too large"),
    (unreadable, "Input/output error")]


@pytest.mark.parametrize(("fault", "why"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_fault_4_no_archive_is_ever_taken_for_a_whole_one(tmp_path: Path, fault: Fault, why: str) -> None:
    """Each is a sentence of the disk kind, which ends the order before the wipe; what is left there is no archive."""
    old = tmp_path / "old"
    data = os.urandom(24 * MIB)
    write(old, "srv/file", data)
    with fault(tmp_path, old) as place:
        with pytest.raises(DiskError, match=why) as raised:
            keep.collect(old, POLICY, place / "kept")
        with pytest.raises(RerootError):
            keep.verify(place / "kept")
    print(f"{fault.__name__:<12} {raised.value.kind.value:<6} {raised.value.sentence}")
    with pytest.raises(CorruptError):
        keep.load(tmp_path / "nowhere")
    assert (old / "srv/file").read_bytes() == data, "the old root is as it was"
    kept = keep.collect(old, POLICY, tmp_path / "kept")
    assert keep.verify(kept.folder).index == kept.index, "and with room it goes"


def test_fault_4_an_archive_that_cannot_be_read_back_is_none(tmp_path: Path) -> None:
    """EIO once it was written and synced: the disk under /local lost it before anything was wiped."""
    write(tmp_path / "old", "srv/file", os.urandom(16 * MIB))
    with disk(tmp_path / "local", 64 * MIB) as local:
        kept = keep.collect(tmp_path / "old", POLICY, local.root / "kept")
        os.sync()
        size = local.image.stat().st_size
        data = local.image.read_bytes()
        place = data.index(kept.archive.read_bytes()[8 * MIB:8 * MIB + 64])
        os.truncate(local.image, place // 4096 * 4096)
        forget(kept.archive)
        try:
            with pytest.raises((DiskError, CorruptError), match=r"not to be trusted|Input/output error"):
                keep.verify(kept.folder)
        finally:
            os.truncate(local.image, size)


def test_a_hole_takes_no_room_in_the_archive(tmp_path: Path) -> None:
    """A virtual machine's disk of 4 GiB, all hole, fits where 4 GiB do not."""
    with write(tmp_path / "old", "srv/disk").open("r+b") as stream:
        stream.truncate(256 * MIB)
        stream.write(os.urandom(100_000))
    with disk(tmp_path / "local", 48 * MIB) as local:
        kept = keep.collect(tmp_path / "old", POLICY, local.root / "kept")
        assert kept.archive.stat().st_size < MIB
        keep.verify(kept.folder)


def test_a_path_too_long_for_any_archive_is_refused_before_the_wipe(tmp_path: Path) -> None:
    folder = os.open(write(tmp_path, "srv/file").parent, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 240, dir_fd=folder)
        below = os.open("d" * 240, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    with pytest.raises(RerootError, match=r"is a path of 4823 bytes and an archive holds up to 4095") as raised:
        keep.collect(tmp_path, POLICY, tmp_path / "kept")
    assert len(raised.value.sentence) < 400
    run(["rm", "-rf", tmp_path / "srv"])
