from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from throttle.windows import DAY_S, DAYS, HORIZON_S, WEEK_S, Windows, parse

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [UTC, BERLIN, ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Asia/Kathmandu")]
minutes = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02d}:{minute % 60:02d}")
ends = minutes | st.just("24:00")
days = st.sampled_from(DAYS)
texts = (st.tuples(minutes, ends).map("-".join)
         | st.tuples(days, minutes, days, ends).map(lambda four: "{} {}-{} {}".format(*four)))


def has_length(text: str) -> bool:
    try:
        return bool(parse(text))
    except ValueError as error:
        assert "ends when it begins" in str(error)
        return False


def at(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def windows(*texts: str, zone: ZoneInfo = BERLIN) -> Windows:
    return Windows(tuple(span for text in texts for span in parse(text)), zone)


@pytest.mark.parametrize(("text", "inside", "outside"), [
    ("Sat 14:00-Sun 06:00", ["2026-11-28T14:00", "2026-11-28T23:59:59", "2026-11-29T05:59:59"],
     ["2026-11-28T13:59:59", "2026-11-29T06:00", "2026-11-30T03:00"]),
    ("Sun 22:00-Mon 04:00", ["2026-11-29T22:00", "2026-11-30T00:00"], ["2026-11-30T04:00", "2026-11-29T21:59"]),
    ("Sat 14:00-18:00", ["2026-11-28T17:59"], ["2026-11-28T18:00", "2026-11-27T15:00"]),
    ("Sun 22:00-02:00", ["2026-11-30T01:59"], ["2026-11-29T01:59", "2026-11-30T02:00"]),
    ("22:00-04:00", ["2026-11-30T22:00", "2026-12-01T03:59", "2026-11-30T03:59"], ["2026-12-01T04:00"]),
    ("00:00-24:00", ["2026-11-30T00:00", "2026-12-01T23:59:59"], []),
    ("mon 00:00-MON 24:00", ["2026-11-30T00:00", "2026-11-30T23:59"], ["2026-12-01T00:00", "2026-11-29T23:59"]),
    (" Wed  08:00 - Tue 08:00 ", ["2026-12-02T08:00", "2026-12-01T07:59"], ["2026-12-01T08:00", "2026-12-02T07:59"]),
])
def test_what_is_in_a_window(text: str, inside: list[str], outside: list[str]) -> None:
    found = windows(text)
    assert [found.open(at(one)) for one in inside] == [True] * len(inside)
    assert [found.open(at(one)) for one in outside] == [False] * len(outside)


def test_the_same_hours_are_others_in_another_zone() -> None:
    moment = at("2026-11-28T14:30")
    assert windows("Sat 14:00-15:00").open(moment)
    assert not windows("Sat 14:00-15:00", zone=ZoneInfo("America/New_York")).open(moment)


def test_an_hour_that_is_skipped_does_not_come() -> None:
    found = windows("Sun 02:00-03:00")  # on 29 March the clock goes from 02:00 to 03:00
    assert found.change(at("2026-03-28T12:00")) == at("2026-04-05T02:00")
    assert windows("Sun 02:30-05:00").change(at("2026-03-28T12:00")) == at("2026-03-29T03:00")


def test_an_hour_that_comes_twice_counts_twice() -> None:
    found = windows("Sun 02:00-03:00")  # on 25 October it goes from 03:00 back to 02:00
    first, again, end = at("2026-10-25T02:00"), at("2026-10-25T02:00", fold=1), at("2026-10-25T03:00", fold=1)
    assert (again - first, end - again) == (3600, 3600)
    assert found.change(first) == end
    half = windows("Sun 01:00-02:30")
    assert half.change(at("2026-10-25T02:10")) == at("2026-10-25T02:30")
    assert half.change(at("2026-10-25T02:40")) == again


def test_without_windows_it_is_always_open_and_one_that_is_a_whole_week_never_closes() -> None:
    assert (Windows().open(0.0), Windows().change(0.0)) == (True, None)
    assert windows("00:00-24:00").change(at("2026-11-30T00:00")) is None


@given(st.lists(texts.filter(has_length), min_size=1, max_size=4), st.sampled_from(ZONES),
       st.integers(1_767_225_600, 1_830_000_000))
def test_it_changes_when_looking_every_minute_would_see_it(found: list[str], zone: ZoneInfo, now: int) -> None:
    some = windows(*found, zone=zone)
    change = some.change(now)
    first = now // 60 * 60 + 60
    seen = next((one for one in range(first, now + HORIZON_S, 60) if some.open(one) != some.open(now)), None)
    assert change == seen or (seen is None and change is not None and change >= now + HORIZON_S)


@given(days, minutes, days, minutes, st.integers(0, WEEK_S - 1))
def test_what_is_not_in_a_window_is_in_the_one_from_its_end_to_its_begin(
    first: str, begin: str, last: str, end: str, second: int,
) -> None:
    assume((first, begin) != (last, end))
    (one,), (other,) = parse(f"{first} {begin}-{last} {end}"), parse(f"{last} {end}-{first} {begin}")
    assert one.holds(second) != other.holds(second)
    assert one.length_s + other.length_s == WEEK_S


@given(texts.filter(has_length))
def test_a_window_is_longer_than_nothing_and_no_longer_than_a_week(text: str) -> None:
    spans = parse(text)
    assert all(0 <= span.begin_s < WEEK_S and 0 < span.length_s <= WEEK_S for span in spans)
    assert len(spans) == (7 if text[0].isdigit() else 1)
    assert len(spans) == 1 or spans[0].length_s <= DAY_S


@pytest.mark.parametrize(("text", "needles"), [
    ("", ("'' has no end",)), ("Sat 14:00", ("'Sat 14:00' has no end", "22:00-04:00")),
    ("Sat 14.00-Sun 06:00", ("'14.00' is no time",)), ("Sta 14:00-Sun 06:00", ("'Sta' is no day", "Mon Tue")),
    ("Sat 14:00-Sun 25:00", ("'25:00'",)), ("Sat 14:00-Sun 6:00", ("'6:00'", "two digits")),
    ("14:00-Sun 06:00", ("'14:00' has no day",)), ("Sat 14:00-Sat 14:00", ("ends when it begins",)),
    ("08:00-08:00", ("ends when it begins",)), ("24:00-08:00", ("begins at '24:00'",)),
    ("Sat 14:00-Sun-06:00", ("'Sun-06:00'",)), ("-", ("''",)), ("Sat the 5th 14:00-15:00", ("'Sat the 5th 14:00'",)),
    ("Sat ١٤:00-15:00", ("no time",)), ("Sat 14:60-15:00", ("'14:60'",)),
])
def test_what_is_no_window_names_the_word(text: str, needles: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text)
    assert all(needle in str(caught.value) for needle in needles), caught.value
