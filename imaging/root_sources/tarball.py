"""A tar of a root tree, compressed or not, as a source. I/O: unpacks it into a scratch folder with GNU tar."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imaging.root_sources.architecture import architecture
from imaging.root_sources.scratch import need_root, scratch_folder
from imaging.root_sources.source import RootTree
from plumbing.errors import CommandError, UsageError
from plumbing.run import run


@dataclass(frozen=True)
class TarSource:
    """The tar at `path`; unpacked below `scratch` ($TMPDIR or /tmp when None)."""

    path: Path
    arch: str | None = None
    scratch: Path | None = None

    @contextmanager
    def opened(self) -> Iterator[RootTree]:
        """Unpack the tar and give its tree; needs root. See RootSource."""
        need_root(f"unpacking {self.path.name} with its owners and devices")
        with scratch_folder(self.scratch) as folder:
            tree = folder / "root"
            tree.mkdir(mode=0o755)
            _unpack(self.path.absolute(), tree)
            yield RootTree(tree, self.arch or architecture(tree))


def _unpack(tar: Path, tree: Path) -> None:
    try:  # in the folder rather than with -C: it is gone when somebody replays the command
        run(["tar", "-xpf", tar, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls"],
            timeout_s=None, cwd=tree, env={**os.environ, "LC_ALL": "C"})
    except CommandError as error:
        if "This does not look like a tar archive" in error.sentence:
            raise UsageError(f"{tar} is not a tar or a directory, nor a disk image with a Linux filesystem; name a "
                             "root tree, a tar of one, a raw or qcow2 image, or oci:LAYOUT") from error
        raise
