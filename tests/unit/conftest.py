"""For all unit tests: Hypothesis judges what a rule does, not how long a busy machine takes over it.

And a filesystem that answers no write, as on a disk that is gone: whoever writes to it cannot be interrupted.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from loopdevice import attached

from plumbing.run import run

settings.register_profile("reroot", deadline=None)
settings.load_profile("reroot")

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
"""ioctl_fsfreeze(2)."""


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """Mount a filesystem and freeze it until the test is over."""
    image, folder = tmp_path / "frozen.img", tmp_path / "frozen"
    folder.mkdir()
    with image.open("wb") as stream:
        stream.truncate(8 << 20)
    run(["mkfs.ext4", "-q", "-F", image])
    with attached(image) as device:
        run(["mount", "-t", "ext4", device, folder])
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, FIFREEZE, 0)
            yield folder
        finally:
            fcntl.ioctl(handle, FITHAW, 0)
            os.close(handle)
            run(["umount", "--lazy", folder])
