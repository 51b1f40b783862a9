"""The one interface of everything that a release can be made from. Pure."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class RootTree:
    """A root tree, readable while its source is open; `arch` in Debian's words, such as amd64."""

    path: Path
    arch: str


class RootSource(Protocol):
    """Something that a root tree can be had from."""

    def opened(self) -> AbstractContextManager[RootTree]:
        """Give the tree until the block ends; whatever was unpacked, mounted or made for it is gone then.

        Raises UsageError when the source is not what it should be, RefusedError when it needs root, CorruptError
        when its digests or names are wrong, DiskError and CommandError when it cannot be read or unpacked.
        """
