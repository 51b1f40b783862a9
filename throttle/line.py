"""The line before a service: first come, first served, also for hosts that go away between two questions. Pure.

`now` is monotonic seconds. A host *waits* while its request is held, and is *away* after it was told to come back at
some time. Its place stays its own until KEEP_S after that time. A free slot goes to the waiting host that came first;
one that is away and ahead of it goes before it only if it was told to come back soon, and is due within CALL_S: so a
slot never idles for longer than that, and hosts in front that ask at the right time are served in the order in which
they came.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from dataclasses import dataclass

KEEP_S = 60.0
"""How long after the time it was told a host still finds its place, in seconds."""
CALL_S = 2.0
"""How long before and after that time a free slot is kept for it, in seconds."""
MOST_KEPT = 2
"""Free slots that are kept at once, at most: a pool of many must not idle for those who are late."""
SOON_S = 3.0
"""Nothing is kept for hosts that were told to stay away for longer, in seconds: nobody knows when they come."""


@dataclass(slots=True)
class Place:
    """A host's place: numbers grow in the order in which hosts came. `due_s` is None while it waits.

    `soon` says that it was told to come back within SOON_S.
    """

    host: str
    number: int
    since_s: float
    due_s: float | None = None
    soon: bool = False


class Line:
    """Who waits for one service. Every operation costs a logarithm of the line's length at most."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._last = 0
        self._waiting: list[tuple[int, str]] = []  # heap by number; may hold hosts that wait no more
        self._due: list[tuple[float, int, str]] = []  # heap by due time, of those not called yet
        self._called: list[tuple[int, str]] = []  # sorted by number
        self._lapse: list[tuple[float, str]] = []  # heap by due time
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._places)

    def get(self, host: str) -> Place | None:
        """Return the place of `host`."""
        return self._places.get(host)

    def places(self) -> list[Place]:
        """Return all places in order."""
        return sorted(self._places.values(), key=lambda place: place.number)

    def ahead(self, place: Place) -> int:
        """Return how many are ahead of `place`, at most: those who left from the middle are counted still."""
        first = next(iter(self._places.values()), place)
        return max(0, min(place.number - first.number, len(self._places) - 1))

    def wait(self, host: str, now: float) -> Place:
        """Have `host` wait, at the place it has or at the end."""
        place = self._places.get(host)
        if place is None:
            self._last += 1
            place = self._places[host] = Place(host, self._last, now)
        elif place.due_s is None:
            return place
        place.due_s = None
        self.waiting += 1
        heapq.heappush(self._waiting, (place.number, host))
        return place

    def away(self, host: str, due_s: float, now: float) -> None:
        """Have `host`, which waits, go away until `due_s`."""
        place = self._places[host]
        if place.due_s is None:
            self.waiting -= 1
        place.due_s, place.soon = due_s, due_s - now <= SOON_S
        self._expect(place, due_s)

    def leave(self, host: str) -> Place | None:
        """Take `host` out of the line."""
        place = self._places.pop(host, None)
        if place is not None and place.due_s is None:
            self.waiting -= 1
        return place

    def put_back(self, place: Place) -> None:
        """Undo a `leave`."""
        self._places[place.host] = place
        if place.due_s is None:
            self.waiting += 1
            heapq.heappush(self._waiting, (place.number, place.host))
        else:
            self._expect(place, place.due_s)

    def _expect(self, place: Place, due_s: float) -> None:
        if place.soon:
            heapq.heappush(self._due, (due_s, place.number, place.host))
        heapq.heappush(self._lapse, (due_s, place.host))

    def lapse(self, now: float) -> None:
        """Forget those that did not come back."""
        while self._lapse and self._lapse[0][0] + KEEP_S <= now:
            due_s, host = heapq.heappop(self._lapse)
            place = self._places.get(host)
            if place is not None and place.due_s == due_s:
                del self._places[host]

    def next(self, free: int, now: float) -> str | None:
        """Return who may have one of `free` slots now; None when nobody waits, or those ahead are just coming."""
        while self._waiting:
            number, host = self._waiting[0]
            place = self._places.get(host)
            if place is None or place.due_s is not None or place.number != number:
                heapq.heappop(self._waiting)
                continue
            return host if free > MOST_KEPT or self._coming(number, free, now) < free else None
        return None

    def _coming(self, number: int, enough: int, now: float) -> int:
        """Count those ahead of `number` that are due about now, up to `enough`."""
        while self._due and self._due[0][0] <= now + CALL_S:
            _, their, host = heapq.heappop(self._due)
            at = bisect_left(self._called, (their, host))
            if self._called[at:at + 1] != [(their, host)]:
                self._called.insert(at, (their, host))
        count = place = 0
        while count < enough and place < len(self._called) and self._called[place][0] < number:
            if self._is_called(*self._called[place], now):
                count += 1
                place += 1
            else:
                del self._called[place]
        return count

    def _is_called(self, number: int, host: str, now: float) -> bool:
        place = self._places.get(host)
        return (place is not None and place.number == number and place.due_s is not None and place.soon
                and place.due_s - CALL_S <= now < place.due_s + CALL_S)
