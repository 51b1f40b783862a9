"""A herd before one service in virtual time: how far from its arrival each host is served. Pure but for the command.

`python -m bench.throttle_herd HOSTS [LEAST_S MOST_S]`: a ticket is held for LEAST_S to MOST_S seconds (0.05 0.25).
The lines are throttle's own (`waiting`); hosts, network and clock are made here, the hosts as the protocol wants them.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from throttle.records import Lease
from throttle.semaphore import Asker
from throttle.waiting import STRETCH, Request, Waiting

HOLD_S = 10.0
"""How long the API holds a request, in seconds."""
_NOBODY = cast("asyncio.Future[Lease]", None)  # the lines never touch a request's answer


@dataclass
class Herd:
    """So many hosts that ask within `over_s` seconds, and what became of them."""

    hosts: int
    slots: int
    hold_s: tuple[float, float]
    over_s: float = 5.0
    seed: int = 1
    came: dict[str, int] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    asked: Counter[int] = field(default_factory=Counter)
    """Requests in each second."""
    idle: float = 0.0
    """Slot-seconds that were free while a host had a place that could have had the slot."""
    took_s: float = 0.0

    def run(self) -> Herd:
        """Serve everybody."""
        self._random = random.Random(self.seed)
        self._lines = Waiting(self._random.random)
        self._free = self.slots
        self._events: list[tuple[float, int, str, str, float]] = []
        self._count = 0
        for number in range(self.hosts):
            self._at(self._random.uniform(0, self.over_s), "ask", f"h{number}")
        while self._events and len(self.served) < self.hosts:
            now, _, what, host, since_s = heapq.heappop(self._events)
            self.idle += min(self._free, len(self._lines.line("x"))) * (now - self.took_s)
            self.took_s = now
            if what == "return":
                self._free += 1
                self._lines.returned("x", now - since_s)
            elif what == "ask":
                self._ask(host, now)
            self._serve(now)
            self._end(now)
        return self

    def moved(self) -> list[int]:
        """Return by how many places each host was served off its arrival, the least first."""
        return sorted(abs(place - self.came[host]) for host, place in self.served.items())

    def idle_share(self) -> float:
        """Return the part of all slots' time that was idle while somebody could have had it."""
        return self.idle / self.slots / self.took_s

    def __iter__(self) -> Iterator[float]:
        moved = self.moved()
        yield from (moved[len(moved) // 2], moved[len(moved) * 99 // 100], moved[-1])

    def _at(self, when_s: float, what: str, host: str = "", since_s: float = 0.0) -> None:
        self._count += 1
        heapq.heappush(self._events, (when_s, self._count, what, host, since_s))

    def _way_s(self) -> float:
        """Return how long a message takes: some are lost and sent again."""
        return self._random.uniform(0.001, 0.05) + (self._random.random() < 0.005) * self._random.expovariate(1)

    def _ask(self, host: str, now: float) -> None:
        self.asked[int(now)] += 1
        self.came.setdefault(host, len(self.came))
        request = Request("x", Asker(host), now + HOLD_S, _NOBODY)
        self._end(now)
        self._lines.join(request, now, lambda _: self.slots)
        self._at(request.deadline_s, "look")

    def _serve(self, now: float) -> None:
        line = self._lines.line("x")
        while self._free and (host := line.next()) is not None:
            self._free -= 1
            self.served[host] = len(self.served)
            for request in list(self._lines.of("x", host)):
                self._lines.answered(request)
            self._at(now + 2 * self._way_s() + self._random.uniform(*self.hold_s), "return", host, now)

    def _end(self, now: float) -> None:
        for request, retry_s, _ in self._lines.ended(now, lambda _: self.slots):
            pause_s = max(1, round(retry_s)) * self._random.uniform(1, STRETCH)
            self._at(now + 2 * self._way_s() + pause_s, "ask", request.asker.host)


if __name__ == "__main__":
    words = sys.argv[1:]
    herd = Herd(int(words[0]), 50, (float(words[1]), float(words[2])) if len(words) > 2 else (0.05, 0.25)).run()
    p50, p99, most = herd
    later = [count for second, count in herd.asked.items() if second > herd.over_s]
    print(f"{len(herd.served)} served in {herd.took_s:.0f} s, off by p50 {p50:.0f} p99 {p99:.0f} most {most:.0f} places"
          f", idle {herd.idle_share():.2%}, {sum(herd.asked.values()) / herd.hosts:.1f} requests each, "
          f"{max(later, default=0)} in a second at most")
