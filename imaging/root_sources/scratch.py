"""A folder to unpack into, which only its owner can enter and which is gone at the end. I/O."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbing.durable import told
from plumbing.errors import RefusedError
from plumbing.run import run


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """Make a folder below `parent` ($TMPDIR or /tmp when None), mode 0700, and remove it with all that is in it."""
    with told(f"the scratch folder {parent or tempfile.gettempdir()}", "nothing was made"):
        folder = Path(tempfile.mkdtemp(prefix="reroot-capture-", dir=parent))
    try:
        yield folder
    finally:
        # shutil.rmtree recurses, and a stranger decides how deep
        run(["rm", "-rf", "--one-file-system", "--", folder], timeout_s=None)


def need_root(doing: str) -> None:
    """Raise RefusedError unless this is root; `doing` begins the sentence."""
    if os.geteuid() != 0:
        raise RefusedError(f"{doing} needs root; run it with sudo")
