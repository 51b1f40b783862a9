"""Rates and times left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.rate import Rate, seconds_left


def test_steady_and_changing_speed() -> None:
    rate = Rate(0.0)
    assert rate.at(0.0, 0) is None
    for second in range(1, 30):
        assert rate.at(second, second * 100) == pytest.approx(100)
    for second in range(30, 45):
        last = rate.at(second, 2900 + (second - 29) * 10)
    assert last == pytest.approx(10)
    assert seconds_left(50, 100, last) == pytest.approx(5)
    assert seconds_left(50, 0, last) is seconds_left(50, 100, None) is None
    assert seconds_left(120, 100, last) == 0


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 1000)), min_size=1))
def test_a_rate_lies_between_the_slowest_and_the_fastest_step(steps: list[tuple[float, int]]) -> None:
    rate, now, done, speeds = Rate(0.0), 0.0, 0, list[float]()
    for wait, more in steps:
        now, done = now + wait, done + more
        speeds.append(more / wait)
        found = rate.at(now, done)
        assert found is not None
        assert min(speeds) * 0.999 <= found <= max(speeds) * 1.001
