"""A directory, or what is mounted on one, as a source. I/O: reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imaging.root_sources.architecture import architecture
from imaging.root_sources.source import RootTree


@dataclass(frozen=True)
class DirectorySource:
    """The tree at `path`; its programs tell the architecture unless `arch` does."""

    path: Path
    arch: str | None = None

    @contextmanager
    def opened(self) -> Iterator[RootTree]:
        """Give the directory itself; see RootSource."""
        yield RootTree(self.path, self.arch or architecture(self.path))
