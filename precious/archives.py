"""Precious archives of upgrades long past (I/O): the newest few stay, for whoever misses a file weeks later."""

from __future__ import annotations

import shutil
from pathlib import Path

KEPT_ARCHIVES = 3
"""How many archives stay on /local; each may be as large as all that is precious."""


def prune(folder: Path, keep: int = KEPT_ARCHIVES) -> tuple[str, ...]:
    """Remove all but the newest `keep` archives below `folder`, at least one stays; returns the names of those removed.

    Newest by when their summary or putback report was written, whichever is later. What cannot be removed stays.
    """
    if not folder.is_dir():
        return ()
    found = sorted((path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()), key=_written)
    gone = []
    for path in found[:-max(1, keep)]:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            gone.append(path.name)
    return tuple(gone)


def _written(path: Path) -> int:
    return max(item.lstat().st_mtime_ns for item in (path, *path.iterdir()))
