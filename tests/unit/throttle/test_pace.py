from hypothesis import given
from hypothesis import strategies as st

from throttle.pace import BURST_S, Pace


def test_what_is_sent_makes_the_next_wait() -> None:
    pace = Pace(1000)
    assert pace.send(250, 100.0) == 0.0  # a quarter of a second's worth was not used before
    assert pace.send(1000, 100.0) == 0.0
    assert pace.send(1, 100.0) == 1.0
    assert pace.send(1, 200.0) == 0.0


@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 3)), min_size=1, max_size=50))
def test_never_more_than_the_allowance_in_any_stretch(sends: list[tuple[int, float]]) -> None:
    pace, now, starts = Pace(10_000), 0.0, []
    for count, pause in sends:
        now += pause
        starts.append((now + pace.send(count, now), count))
    for place in range(len(starts)):
        sent = 0
        for later, count in starts[place:]:
            # What is sent up to here, without the last piece, had to fit.
            assert sent <= 10_000 * (later - starts[place][0] + BURST_S) + 1
            sent += count
