"""How fast something goes and how long it will take, from what is done when. Pure."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
"""The speed is that of the last so many seconds: what was fast once says little about now."""


class Rate:
    """Amounts done at moments of one clock; neither goes back."""

    def __init__(self, now: float) -> None:
        self._seen: deque[tuple[float, int]] = deque([(now, 0)])

    def at(self, now: float, done: int) -> float | None:
        """Take note that `done` is done at `now` (seconds) and return the speed per second, None when none is known."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        began, before = self._seen[0]
        return (done - before) / (now - began) if now > began and done > before else None


def seconds_left(done: int, total: int, rate: float | None) -> float | None:
    """Return how long the rest takes at `rate` per second; None while that is not known."""
    return max(0, total - done) / rate if rate and total else None
