import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import UsageError
from rollout.duration import parse, show


@pytest.mark.parametrize(("text", "seconds"), [
    ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("8h", 28800), ("2d", 172800), ("45", 45), ("1.5s", 1.5),
    (" 1m30s ", 90), ("0s", 0),
])
def test_as_people_write_them(text: str, seconds: float) -> None:
    assert parse(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "30q", "-5s", "1m1h", "1h 30m", "1e3", "٣s", "inf", "9" * 99])
def test_anything_else_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="is not a length of time; write it as 90s, 30m or 1h30m"):
        parse(text)


@given(st.integers(0, 10**9))
def test_what_is_shown_reads_back(tenths: int) -> None:
    assert parse(show(tenths / 10)) == pytest.approx(tenths / 10, abs=1e-6)
