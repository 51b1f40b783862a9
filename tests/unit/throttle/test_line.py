from hypothesis import given
from hypothesis import strategies as st

from throttle import line
from throttle.line import CALL_S, KEEP_S, Line


def waits(*hosts: str, at: float = 0.0) -> Line:
    made = Line()
    for host in hosts:
        made.wait(host, at)
    return made


def test_first_come_first_served() -> None:
    queue = waits("a", "b", "c")
    served = []
    while (host := queue.next(1, 0.0)) is not None:
        queue.leave(host)
        served.append(host)
    assert served == ["a", "b", "c"]
    assert (len(queue), queue.waiting) == (0, 0)


def test_a_place_is_kept_while_its_host_is_away() -> None:
    queue = waits("a", "b")
    queue.away("a", 30.0, 0.0)
    assert queue.wait("a", 30.0).since_s == 0.0
    assert queue.next(1, 30.0) == "a"


def test_a_slot_is_kept_for_who_is_just_coming_and_not_for_who_is_not() -> None:
    queue = waits("a", "b")
    queue.away("a", 10.0, 8.0)
    assert queue.next(1, 10.0 - CALL_S - 0.1) == "b"
    assert queue.next(1, 9.0) is None
    assert queue.next(2, 9.0) == "b"
    assert queue.next(1, 10.0 + CALL_S) == "b"
    assert queue.wait("a", 13.0).number == 1


def test_nothing_is_kept_for_who_was_told_to_stay_away_for_long() -> None:
    queue = waits("a", "b")
    queue.away("a", 10.0, 10.0 - line.SOON_S - 0.1)
    assert queue.next(1, 10.0) == "b"
    assert queue.wait("a", 10.5).number == 1


def test_of_many_free_slots_few_are_kept() -> None:
    queue = waits("a", "b", "c", "d")
    for host in "abc":
        queue.away(host, 1.0, 0.0)
    assert queue.next(line.MOST_KEPT, 1.0) is None
    assert queue.next(line.MOST_KEPT + 1, 1.0) == "d"


def test_who_comes_behind_goes_before_nobody() -> None:
    queue = waits("a", "b")
    queue.away("b", 1.0, 0.0)
    assert queue.next(1, 0.5) == "a"


def test_coming_and_going_counts_once() -> None:
    queue = waits("a", "b")
    for _ in range(5):
        queue.away("a", 1.0, 0.0)
        assert queue.next(1, 0.5) is None
        queue.wait("a", 0.6)
        queue.away("a", 1.5, 0.6)
        assert queue.next(2, 0.7) == "b"


def test_who_does_not_come_back_is_forgotten() -> None:
    queue = waits("a", "b")
    queue.away("a", 1.0, 0.0)
    queue.away("b", 1.0, 0.0)
    queue.wait("b", 2.0)
    queue.lapse(1.0 + KEEP_S)
    assert [place.host for place in queue.places()] == ["b"]
    assert queue.wait("a", 100.0).number == 3


def test_an_undone_grant_has_its_place_back() -> None:
    queue = waits("a", "b", "c")
    place = queue.leave("a")
    assert place is not None
    queue.put_back(place)
    assert queue.next(1, 0.0) == "a"
    assert queue.waiting == 3


@given(st.lists(st.tuples(st.sampled_from("wagl"), st.integers(0, 5), st.floats(0, 90)), max_size=60))
def test_any_order_of_coming_and_going(steps: list[tuple[str, int, float]]) -> None:
    """Whoever is served came before everybody else who waits, and nobody is counted twice."""
    queue, now = Line(), 0.0
    for what, number, seconds in steps:
        host, now = f"h{number}", now + seconds / 10
        place = queue.get(host)
        if what == "w":
            queue.wait(host, now)
        elif what == "a" and place is not None and place.due_s is None:
            queue.away(host, now + seconds, now)
        elif what == "l":
            queue.leave(host)
        elif what == "g":
            queue.lapse(now)
            chosen = queue.next(1, now)
            waiting = [one for one in queue.places() if one.due_s is None]
            coming = [one for one in queue.places() if one.due_s is not None
                      and one.soon and one.due_s - CALL_S <= now < one.due_s + CALL_S]
            if chosen is not None:
                assert chosen == waiting[0].host
            elif waiting:
                assert any(one.number < waiting[0].number for one in coming)
        assert queue.waiting == sum(one.due_s is None for one in queue.places())


def test_a_hundred_thousand_places_cost_the_same_each() -> None:
    """No operation walks the line: 100,000 hosts come, are called and go in far less than a quadratic walk takes."""
    queue = Line()
    for number in range(100_000):
        queue.wait(f"h{number}", 0.0)
        queue.away(f"h{number}", 1.0 + number / 100, number / 100)
    touched = 0
    for number in range(100_000):
        now = 1.0 + number / 100
        queue.wait(f"h{number}", now)
        assert queue.next(1, now) == f"h{number}"
        queue.leave(f"h{number}")
        touched = max(touched, len(queue._called))
    assert touched <= 100 * (2 * line.CALL_S + 1)
