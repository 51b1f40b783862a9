"""Loop devices for tests that run side by side."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbing.run import run

LOCK = Path("/run/lock/reroot-loop-devices")


@contextmanager
def taking() -> Iterator[None]:
    """Hold while a free loop device is taken, by whatever takes one: `mount -o loop` too.

    One process at a time takes one: who reaches for a number that another has just taken claims that device for a
    moment, and the other's mkfs finds it in use.
    """
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def attached(image: Path) -> Iterator[Path]:
    """Attach `image` to a free loop device."""
    with taking():
        device = Path(run(["losetup", "-f", "--show", image]).text.strip())
    try:
        yield device
    finally:
        run(["losetup", "-d", device])
