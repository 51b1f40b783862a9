"""What reroot is measured against: casync, GNU tar with zstd, b3sum, each as one function. I/O: starts them.

Each writes what it made out (syncfs of that one filesystem), as reroot does, so that both pay for the disk.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from imaging.folders import sync_filesystem
from plumbing.run import run

TAR = ("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls")


def fresh(folder: Path) -> Path:
    """Return `folder`, made anew and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_out(folder: Path) -> None:
    """Write out the filesystem that `folder` is on, and no other."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_filesystem(handle)
    finally:
        os.close(handle)


def evict(tree: Path) -> None:
    """Drop the pages of every file below `tree`, which must have been written out."""
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                handle = os.open(path, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)


def casync_make(tree: Path, store: Path, index: Path) -> None:
    """Make a casync archive of `tree` in an empty store."""
    fresh(store)
    run(["casync", "make", f"--store={store}", index, tree], timeout_s=None)
    write_out(store)


def casync_extract(store: Path, index: Path, target: Path) -> None:
    """Unpack a casync archive, which verifies every chunk."""
    run(["casync", "extract", f"--store={store}", index, fresh(target)], timeout_s=None)
    write_out(target)


def tar_zstd(tree: Path, archive: Path, level: int, threads: int) -> None:
    """Make a tar.zst of `tree` as one stream."""
    run([*TAR, f"-Izstd -{level} -T{threads}", "-cf", archive, "-C", tree, "."], timeout_s=None)
    write_out(archive.parent)


def tar_extract(archive: Path, target: Path) -> None:
    """Unpack a tar.zst, unverified."""
    run([*TAR, "-Izstd", "-xpf", archive, "-C", fresh(target)], timeout_s=None)
    write_out(target)


def b3sum(tree: Path) -> None:
    """Hash every file below `tree`, with as many threads as b3sum takes by itself."""
    run(["find", tree, "-xdev", "-type", "f", "-exec", "b3sum", "--no-names", "{}", "+"], timeout_s=None)


def chunks(store: Path) -> dict[str, int]:
    """Return the chunks of a casync store and their compressed sizes in bytes."""
    return {path.name: path.stat().st_size for path in store.rglob("*.cacnk")}
