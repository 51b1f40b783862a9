"""A tree made into a release in a store of its own, for the tests of what is made of it again."""

from __future__ import annotations

import os
from pathlib import Path

from trees import rich_tree

from imaging.capture import capture
from imaging.fetch import FrameFetcher
from imaging.release import Release
from imaging.sources import FileSource
from imaging.store import Store


class Captured:
    """A release of `tree`, to be restored from the store's own file."""

    def __init__(self, folder: Path, tree: Path) -> None:
        self.tree = tree
        store = Store(folder / "store")
        self.manifest = capture(tree, store, name="p", version="1", arch="amd64", excludes=())
        release = Release.parse(self.manifest)
        self.source = FileSource(store.blob_path(release.layer_digest))
        self.index = release.read_index(self.source.read(release.index_offset, release.index_length))
        self.fetcher = FrameFetcher([self.source])


def rich(folder: Path) -> Captured:
    """Make and capture a tree with everything a release keeps (no socket: none is kept); needs root."""
    tree = rich_tree(folder / "tree")
    (tree / "socket").unlink()
    os.utime(tree, ns=(0, 1_600_000_000_000_000_001))
    return Captured(folder, tree)
