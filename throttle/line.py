"""The line before a service: first come, first served, also for hosts that go away between two questions. Pure.

`now` is monotonic seconds. A host *waits* while its request is held, and is *away* after it was told to come back. Its
place stays its own until KEEP_S after the latest time at which it should. A free slot goes to the waiting host that
came first, and is kept for nobody: that the front of the line waits when slots come free is `waiting`'s.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass
from operator import attrgetter

KEEP_S = 60.0
"""How long after it should have come back a host still finds its place, in seconds."""


@dataclass(slots=True)
class Place:
    """A host's place: numbers grow in the order in which hosts came. `due_s` is None while it waits."""

    host: str
    number: int
    since_s: float
    due_s: float | None = None


_number = attrgetter("number")


class Line:
    """Who waits for one service.

    Every operation costs a logarithm of the line's length; who comes or goes also moves 8 bytes for each host behind.
    """

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._order: list[Place] = []
        self._last = 0
        self._waiting: list[tuple[int, str]] = []  # heap; may hold hosts that wait no more
        self._lapse: list[tuple[float, str]] = []  # heap by due time
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._order)

    def get(self, host: str) -> Place | None:
        """Return the place of `host`."""
        return self._places.get(host)

    def places(self) -> list[Place]:
        """Return all places in order."""
        return list(self._order)

    def ahead(self, place: Place) -> int:
        """Return how many are ahead of `place`."""
        return bisect_left(self._order, place.number, key=_number)

    def wait(self, host: str, now: float) -> Place:
        """Have `host` wait, at the place it has or at the end."""
        place = self._places.get(host)
        if place is None:
            self._last += 1
            place = Place(host, self._last, now)
            self._enter(place)
        elif place.due_s is None:
            return place
        place.due_s = None
        self._waits(place)
        return place

    def away(self, host: str, due_s: float) -> None:
        """Have `host`, which waits, go away until `due_s` at the latest."""
        place = self._places[host]
        if place.due_s is None:
            self.waiting -= 1
        place.due_s = due_s
        heapq.heappush(self._lapse, (due_s, host))

    def leave(self, host: str) -> Place | None:
        """Take `host` out of the line."""
        place = self._places.pop(host, None)
        if place is not None:
            del self._order[self.ahead(place)]
            self.waiting -= place.due_s is None
        return place

    def put_back(self, place: Place) -> None:
        """Undo a `leave`."""
        self._enter(place)
        if place.due_s is None:
            self._waits(place)
        else:
            heapq.heappush(self._lapse, (place.due_s, place.host))

    def lapse(self, now: float) -> None:
        """Forget those that did not come back."""
        while self._lapse and self._lapse[0][0] + KEEP_S <= now:
            due_s, host = heapq.heappop(self._lapse)
            place = self._places.get(host)
            if place is not None and place.due_s == due_s:
                self.leave(host)

    def next(self) -> str | None:
        """Return who may have a free slot, None when nobody waits."""
        while self._waiting:
            number, host = self._waiting[0]
            place = self._places.get(host)
            if place is not None and place.due_s is None and place.number == number:
                return host
            heapq.heappop(self._waiting)
        return None

    def _enter(self, place: Place) -> None:
        self._places[place.host] = place
        insort(self._order, place, key=_number)

    def _waits(self, place: Place) -> None:
        self.waiting += 1
        heapq.heappush(self._waiting, (place.number, place.host))
