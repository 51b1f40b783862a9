"""How long each step of recovery may take. Pure: what process 1 hears and `now` in, a verdict out.

The worker says each step's beginning and each bit of progress by one byte on a pipe (no byte can be half read). A step
has two limits: how long it may go without progress, and how long it may take in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Limit:
    """Seconds without any progress, and seconds in all."""

    stall_s: float
    total_s: float


MINUTE_S, HOUR_S = 60.0, 3600.0
SLOWEST_PROGRAM_S = 35 * MINUTE_S
"""More than mkfs, e2fsck and a sync may take (disks.MKFS_TIMEOUT_S), which say nothing while they work."""

LIMITS: Mapping[str, Limit] = {
    "start": Limit(5 * MINUTE_S, 15 * MINUTE_S),
    "network": Limit(SLOWEST_PROGRAM_S, HOUR_S),  # /local may have to be checked
    "order": Limit(5 * MINUTE_S, 15 * MINUTE_S),
    "disks": Limit(10 * MINUTE_S, 4 * HOUR_S),  # reads all that is staged
    "preserve": Limit(SLOWEST_PROGRAM_S, 12 * HOUR_S),
    "wipe": Limit(SLOWEST_PROGRAM_S, 3 * HOUR_S),
    "restore": Limit(SLOWEST_PROGRAM_S, 24 * HOUR_S),
    "verify": Limit(SLOWEST_PROGRAM_S, 12 * HOUR_S),
    "putback": Limit(SLOWEST_PROGRAM_S, 12 * HOUR_S),
    "bootloader": Limit(SLOWEST_PROGRAM_S, HOUR_S),
    "finish": Limit(SLOWEST_PROGRAM_S, HOUR_S),
    "retry": Limit(5 * MINUTE_S, 15 * MINUTE_S),
    "failed": Limit(10 * MINUTE_S, 30 * MINUTE_S),
    "gasp": Limit(5 * MINUTE_S, 15 * MINUTE_S),
    "rescue": Limit(SLOWEST_PROGRAM_S, math.inf),  # a person may be at it; the menu itself goes on
    "reboot": Limit(SLOWEST_PROGRAM_S, HOUR_S),
}
"""Step -> its limits: the states of recovery.machine, and `start`, which is drivers and mounts."""

PROGRESS = b"."
_MARKS = {65 + number: step for number, step in enumerate(LIMITS)}


def mark(step: str) -> bytes:
    """Return the byte that says that `step` begins."""
    return bytes([next(byte for byte, name in _MARKS.items() if name == step)])


@dataclass(frozen=True)
class Watched:
    """What is known of the worker: its step, when that began, when it was last heard of (monotonic seconds)."""

    began_s: float
    heard_s: float
    step: str = "start"
    limits: Mapping[str, Limit] = field(default_factory=lambda: LIMITS)

    def hear(self, data: bytes, now: float) -> Watched:
        """Return what is known after the worker wrote `data`."""
        steps = [_MARKS[byte] for byte in data if byte in _MARKS]
        if steps:
            return replace(self, step=steps[-1], began_s=now, heard_s=now)
        return replace(self, heard_s=now) if data else self

    @property
    def due_s(self) -> float:
        """When its patience ends."""
        limit = self.limits[self.step]
        return min(self.heard_s + limit.stall_s, self.began_s + limit.total_s)

    def overdue(self, now: float) -> str | None:
        """Return a sentence when the step is over one of its limits at `now`."""
        if now < self.due_s:
            return None
        limit = self.limits[self.step]
        if now >= self.heard_s + limit.stall_s:
            return f"{self.step} stood still for {limit.stall_s:.0f} s"
        return f"{self.step} took more than {limit.total_s:.0f} s"
