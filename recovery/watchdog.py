"""The hardware watchdog (I/O): what resets the machine when even process 1, or the kernel, does not go on.

Linux watchdog API (Documentation/watchdog/watchdog-api.rst). Process 1 feeds it only while the step under way is within
its limits. It is disarmed before the reboot: the new system may take longer to start than any watchdog waits.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from plumbing import clock

WANTED_S = 60
"""How long without food until the reset, in seconds; hardware that cannot count that far has its own time."""

FEED_EVERY_S = 5.0
"""A third of the shortest time that is usual (15 s)."""

LOOK_EVERY_S = 10.0
"""How often to look for a device: its driver may be loaded later than this starts."""

_SETTIMEOUT = 0xC004_5706
_DISARM = b"V"


class Watchdog:
    """The first watchdog of this machine, from when it shows up; none is no error. `say` is told once what it is."""

    def __init__(self, path: Path = Path("/dev/watchdog"), *, say: Callable[[str], None],
                 now: Callable[[], float] = clock.monotonic) -> None:
        self._path, self._say, self._now = path, say, now
        self._fd: int | None = None
        self._next_s = 0.0

    def feed(self) -> None:
        """Say that all is well; opens the device when it is there and was not."""
        now = self._now()
        if now < self._next_s:
            return
        self._next_s = now + (FEED_EVERY_S if self._fd is not None or self._open() else LOOK_EVERY_S)
        if self._fd is not None:
            with suppress(OSError):  # one that does not take its food resets the machine: what else could be done
                os.write(self._fd, b"\0")

    def leave(self) -> None:
        """Close this process's handle, for a child that has it from its parent; the parent's stays armed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def disarm(self) -> None:
        """Let it rest. One that cannot be disarmed (nowayout) goes on counting."""
        if self._fd is not None:
            with suppress(OSError):
                os.write(self._fd, _DISARM)
            self.leave()

    def _open(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return False
        took = "its own time"
        with suppress(OSError):
            answer = fcntl.ioctl(self._fd, _SETTIMEOUT, struct.pack("i", WANTED_S))
            took = f"{struct.unpack('i', answer)[0]} s"
        self._say(f"the hardware watchdog resets this machine when nothing goes on for {took}")
        return True
