"""Whether release and precious files fit into the root that is about to be made (I/O: reads an archive's index).

Asked before the wipe, where the answer still helps; and again when the filesystem is made, for its number of inodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imaging.footprint import Footprint, footprint
from recovery import filesystems
from recovery.session import Session

if TYPE_CHECKING:
    from precious.keep import Kept


def needed(session: Session, kept: Kept | None = None) -> Footprint:
    """Return what the new root will hold: the release, and what of `kept` is put back."""
    assert session.index is not None
    release = footprint(session.index.entries)
    if kept is None:
        return release
    return release + kept.footprint


def require(session: Session, size: int, kept: Kept | None = None) -> None:
    """Raise DiskError when a root of `size` bytes does not take the release and what is put back."""
    assert session.release is not None
    what = f"release {session.release.ref}" + (" with the precious files" if kept is not None else "")
    filesystems.require_room(session.ordered.fstype("root"), size, needed(session, kept), what)


def inodes(session: Session, size: int, archive: Path | None) -> int | None:
    """Return how many inodes the new root must be made with, None when mkfs makes enough by itself."""
    from precious import keep

    return filesystems.inodes_to_make(
        session.ordered.fstype("root"), size, needed(session, None if archive is None else keep.load(archive)))
