from hypothesis import given
from hypothesis import strategies as st

from throttle.line import KEEP_S, Line


def waits(*hosts: str, at: float = 0.0) -> Line:
    made = Line()
    for host in hosts:
        made.wait(host, at)
    return made


def test_first_come_first_served() -> None:
    queue = waits("a", "b", "c")
    served = []
    while (host := queue.next()) is not None:
        queue.leave(host)
        served.append(host)
    assert served == ["a", "b", "c"]
    assert (len(queue), queue.waiting) == (0, 0)


def test_a_place_is_kept_while_its_host_is_away() -> None:
    queue = waits("a", "b")
    queue.away("a", 30.0)
    assert queue.wait("a", 30.0).since_s == 0.0
    assert queue.next() == "a"


def test_nobody_waits_for_who_is_away_and_who_comes_back_is_first_again() -> None:
    queue = waits("a", "b", "c")
    queue.away("a", 10.0)
    assert queue.next() == "b"
    assert [queue.ahead(place) for place in queue.places()] == [0, 1, 2]
    assert queue.wait("a", 10.5).number == 1
    assert queue.next() == "a"
    queue.leave("b")
    assert [(place.host, queue.ahead(place)) for place in queue.places()] == [("a", 0), ("c", 1)]


def test_who_does_not_come_back_is_forgotten() -> None:
    queue = waits("a", "b")
    queue.away("a", 1.0)
    queue.away("b", 1.0)
    queue.wait("b", 2.0)
    queue.lapse(1.0 + KEEP_S)
    assert [place.host for place in queue.places()] == ["b"]
    assert queue.wait("a", 100.0).number == 3


def test_an_undone_grant_has_its_place_back() -> None:
    queue = waits("a", "b", "c")
    place = queue.leave("a")
    assert place is not None
    queue.put_back(place)
    assert queue.next() == "a"
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
            queue.away(host, now + seconds)
        elif what == "l":
            queue.leave(host)
        elif what == "g":
            queue.lapse(now)
            chosen = queue.next()
            waiting = [one for one in queue.places() if one.due_s is None]
            assert chosen == (waiting[0].host if waiting else None)
        assert queue.waiting == sum(one.due_s is None for one in queue.places())


def test_a_hundred_thousand_places_come_and_go_in_order() -> None:
    queue = Line()
    for number in range(100_000):
        queue.wait(f"h{number}", 0.0)
        queue.away(f"h{number}", 1.0 + number / 100)
    for number in range(0, 100_000, 10):
        place = queue.wait(f"h{number}", 1.0)
        assert queue.ahead(place) == number - number // 10
        assert queue.next() == f"h{number}"
        queue.leave(f"h{number}")
