"""How fast one ticket may be served: bytes and `now` in, seconds to wait out. Pure.

A leaky bucket as a clock: what was sent moves the moment at which the next byte is due (GCRA, ITU-T I.371).
"""

from __future__ import annotations

BURST_S = 0.25
"""What was not used of the last so many seconds may be made up for."""


class Pace:
    """The allowance of one ticket, in bytes per second, over all its transfers."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._next_s = float("-inf")

    def send(self, count: int, now: float) -> float:
        """Take note that `count` bytes are sent and return how many seconds to wait before that."""
        start = max(self._next_s, now - BURST_S)
        self._next_s = start + count / self.rate
        return max(0.0, start - now)
