"""Requests for tickets that are held until a slot comes free: who waits for what until when. In memory; no I/O.

The order in which they are served is `line`'s. This adds the requests themselves, how many may be held at once, and
when those that are not are told to come back.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from throttle.line import Line, Place
from throttle.records import Lease
from throttle.semaphore import Asker

MAX_HELD = 2000
"""Requests of one server that are held at once, wherever they stand; the front of each line is held beyond this."""
MAX_FRONT = 2000
"""Hosts of one line, at most, that are its front: as many as there are slots, and whose turn comes within FRONT_S."""
FRONT_S = 20.0
HOLD_SPREAD = 0.25
"""Requests are held up to this part shorter than was asked for: who came together does not leave together."""
MAX_RETRY_S = 300.0
"""Nobody is told to stay away for longer, in seconds: a slot may come back at any time."""
SHORT_RETRY_S = 10.0
"""Nor longer than this, in seconds, unless so many wait that they would ask more than POLLS times a second, or its turn
is more than ten times as far."""
POLLS = 500.0
STRETCH = 1.5
"""Clients add up to half of what they are told (docs/protocols/tickets.md). Who is early waits at the server, who is
late is overtaken."""
_WEIGHT = 0.05
"""What the last ticket counts in the mean of how long they are held."""


def _any_share() -> float:
    return os.urandom(1)[0] / 255


@dataclass(eq=False, slots=True)
class Request:
    """One request for a ticket, held until `deadline_s` on the monotonic clock."""

    service: str
    asker: Asker
    deadline_s: float
    answer: asyncio.Future[Lease]
    joined: bool = False


@dataclass
class _Queue:
    line: Line = field(default_factory=Line)
    requests: dict[str, list[Request]] = field(default_factory=dict)
    began_s: float = 0.0  # when somebody began to wait
    hold_s: float | None = None  # how long a ticket is held, of late

    def rate(self, slots: int, now: float) -> float:
        """Return how many of so many slots come back each second, as far as that is known, POLLS at most.

        Before any did, it is what would be if the first one came now.
        """
        hold_s = now - self.began_s if self.hold_s is None else self.hold_s
        count = max(slots, 0.1)
        return count / max(hold_s, count / POLLS)


class Waiting:
    """All lines of one server, and the requests in them."""

    def __init__(self, spread: Callable[[], float] = _any_share) -> None:
        """Begin without lines; `spread` returns shares from 0 to 1 that no two hosts can know beforehand."""
        self._spread = spread
        self._queues: dict[str, _Queue] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._count = 0
        self.held = 0

    def line(self, service: str) -> Line:
        """Return the line before a service."""
        return self._queue(service).line

    def services(self) -> Iterator[tuple[str, Line]]:
        """Return the services for which requests are held."""
        return ((name, queue.line) for name, queue in list(self._queues.items()) if queue.line.waiting)

    def join(self, request: Request, now: float, slots: Callable[[str], int]) -> None:
        """Have a request wait at its host's place, or be answered at once when too many are held.

        `slots` tells how many slots a service has.
        """
        if request.joined:
            return
        queue = self._queue(request.service)
        if not len(queue.line):
            queue.began_s = now
        place = queue.line.wait(request.asker.host, now)
        queue.requests.setdefault(request.asker.host, []).append(request)
        request.joined = True
        request.deadline_s -= (request.deadline_s - now) * self._spread() * HOLD_SPREAD
        self.held += 1
        if self.held > MAX_HELD:
            count = slots(request.service)
            if queue.line.ahead(place) >= _front(count, queue.rate(count, now)):
                request.deadline_s = now
        self.end_at(request, request.deadline_s)

    def end_at(self, request: Request, deadline_s: float) -> None:
        """Have a request end at `deadline_s` at the latest."""
        self._count += 1
        request.deadline_s = min(request.deadline_s, deadline_s)
        heapq.heappush(self._deadlines, (request.deadline_s, self._count, request))

    def end_all(self) -> None:
        """Have every held request end now: the server stops."""
        for queue in self._queues.values():
            for requests in queue.requests.values():
                for request in requests:
                    self.end_at(request, 0.0)

    def of(self, service: str, host: str) -> list[Request]:
        """Return the requests of one host."""
        return self._queue(service).requests.get(host, [])

    def answered(self, request: Request) -> None:
        """Take out a request that has its ticket."""
        if not request.joined:
            return
        queue = self._queue(request.service)
        if self._take(queue, request):
            queue.line.leave(request.asker.host)

    def returned(self, service: str, hold_s: float) -> None:
        """Take note that a ticket came back after `hold_s`: how soon the next one does follows from that."""
        queue = self._queues.get(service)
        if queue is not None:
            queue.hold_s = hold_s if queue.hold_s is None else queue.hold_s + _WEIGHT * (hold_s - queue.hold_s)

    def ended(self, now: float, slots: Callable[[str], int]) -> Iterator[tuple[Request, float, int]]:
        """Take out the requests whose time is over; yield each with when to come back (s) and how many are ahead.

        `slots` is `join`'s.
        """
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, request = heapq.heappop(self._deadlines)
            queue = self._queue(request.service)
            place = queue.line.get(request.asker.host)
            if not request.joined or place is None:
                continue
            ahead = queue.line.ahead(place)
            count = slots(request.service)
            retry_s = _retry_s(ahead, len(queue.line), count, queue.rate(count, now), self._spread())
            if self._take(queue, request):
                queue.line.away(request.asker.host, now + STRETCH * retry_s)
            yield request, retry_s, ahead
        for name, queue in list(self._queues.items()):
            queue.line.lapse(now)
            if not len(queue.line) and not queue.requests:
                del self._queues[name]

    def next_end(self) -> float | None:
        """Return when the next request ends."""
        return self._deadlines[0][0] if self._deadlines else None

    def put_back(self, service: str, place: Place) -> None:
        """Undo that a host left its line."""
        self._queue(service).line.put_back(place)

    def _queue(self, service: str) -> _Queue:
        return self._queues.setdefault(service, _Queue())

    def _take(self, queue: _Queue, request: Request) -> bool:
        """Forget a request; say whether it was its host's last one."""
        host = request.asker.host
        left = queue.requests.get(host, [])
        if request in left:
            left.remove(request)
            request.joined = False
            self.held -= 1
        if left:
            return False
        queue.requests.pop(host, None)
        return True


def _front(slots: int, rate: float) -> int:
    """Return how many hosts are the front of a line: they are held, so that a free slot finds the first of them."""
    return min(MAX_FRONT, slots + int(rate * FRONT_S))


def _retry_s(ahead: int, length: int, slots: int, rate: float, share: float) -> float:
    """Return after how many seconds a host should come back, within 1 to MAX_RETRY_S.

    That is when it is in the middle of the front, if `rate` tickets come back each second; `length` is the line's.
    Up to a quarter less, as `share` says, so that hosts that were told together do not come back together.
    """
    turn_s = max(0.0, ahead - _front(slots, rate) / 2) / rate
    most_s = min(max(SHORT_RETRY_S, length / POLLS, turn_s / 10), MAX_RETRY_S)
    return max(1.0, min(turn_s / STRETCH, most_s) * (1 - share / 4))
