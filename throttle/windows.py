"""When a service may be used: windows of the week on a local clock. Pure; docs/protocols/fleetlock.md has the syntax.

A window is compared with what a clock on the wall of its time zone shows. So an hour that the clock skips does not
come, one that comes twice counts twice, and nothing else needs to be known of daylight saving time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_S = 86_400
WEEK_S = 7 * DAY_S
HORIZON_S = 2 * WEEK_S
"""How far ahead a change is looked for, in seconds: a skipped hour may swallow a week's only window."""
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d|24:00", re.ASCII)
_SYNTAX = "write it as Sat 14:00-Sun 06:00, Sat 14:00-18:00, or 22:00-04:00 for every day"


@dataclass(frozen=True)
class Span:
    """Some hours of every week: from `begin_s`, seconds after Monday 00:00 on the wall clock, for `length_s`."""

    begin_s: int
    length_s: int

    def holds(self, at_s: int) -> bool:
        """Tell whether a second of the week is in it."""
        return (at_s - self.begin_s) % WEEK_S < self.length_s


@dataclass(frozen=True)
class Windows:
    """All windows of one group; without any it is always open."""

    spans: tuple[Span, ...] = ()
    zone: tzinfo = UTC

    def open(self, now: float) -> bool:
        """Tell whether it is open at `now`, wall seconds."""
        return not self.spans or any(span.holds(self._shown(now)) for span in self.spans)

    def change(self, now: float) -> float | None:
        """Return when it opens or closes next, wall seconds; None when it does neither within HORIZON_S."""
        was, at = self.open(now), float(int(now))
        while self.spans and at < now + HORIZON_S:
            shown = self._shown(at)
            edges = (edge - shown for span in self.spans for edge in (span.begin_s, span.begin_s + span.length_s))
            at = self._until_moved(at, at + min(away % WEEK_S or WEEK_S for away in edges))
            if self.open(at) != was:
                return at
        return None

    def _until_moved(self, at: float, then: float) -> float:
        """Return the moment in which the clock is put forward or back before `then`, or `then`."""
        before = self._offset(at)
        while self._offset(then) != before:
            middle = (at + then) // 2
            if middle == at:
                break
            at, then = (middle, then) if self._offset(middle) == before else (at, middle)
        return then

    def _offset(self, at: float) -> timedelta | None:
        return datetime.fromtimestamp(at, self.zone).utcoffset()

    def _shown(self, at: float) -> int:
        wall = datetime.fromtimestamp(at, self.zone)
        return wall.weekday() * DAY_S + wall.hour * 3600 + wall.minute * 60 + wall.second


def parse(text: str) -> tuple[Span, ...]:
    """Return what one window means, a span for each day that it begins on; raises ValueError naming the word."""
    begin, dash, end = text.partition("-")
    if not dash:
        raise ValueError(f"{text!r} has no end; {_SYNTAX}")
    first_day, begin_s = _moment(begin)
    last_day, end_s = _moment(end)
    if first_day is None and last_day is not None:
        raise ValueError(f"{begin.strip()!r} has no day and {end.strip()!r} has one; {_SYNTAX}")
    if begin_s == DAY_S:
        raise ValueError(f"nothing begins at {begin.strip()!r}; write 00:00 of the next day")
    days = range(7) if first_day is None else (first_day,)
    length_s = end_s - begin_s
    if first_day is not None and last_day is not None:
        length_s += (last_day - first_day) * DAY_S
        length_s += WEEK_S if length_s < 0 else 0
    elif length_s < 0:
        length_s += DAY_S
    if not length_s:
        raise ValueError(f"{text!r} ends when it begins; {_SYNTAX}")
    return tuple(Span(day * DAY_S + begin_s, length_s) for day in days)


def _moment(text: str) -> tuple[int | None, int]:
    """Return the day of the week, if it is told, and the seconds of that day."""
    match text.split():
        case [time]:
            day = None
        case [word, time] if word.capitalize() in DAYS:
            day = DAYS.index(word.capitalize())
        case [word, _]:
            raise ValueError(f"{word!r} is no day; they are {' '.join(DAYS)}")
        case _:
            raise ValueError(f"{text.strip()!r} is no time of a day; {_SYNTAX}")
    if not _TIME.fullmatch(time):
        raise ValueError(f"{time!r} is no time; write it with two digits each, from 00:00 to 24:00")
    hour, minute = time.split(":")
    return day, int(hour) * 3600 + int(minute) * 60
