"""What reports mean for an order: every transition, and the drawing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from control import progress
from control.api.hosts import ReportBody
from control.progress import RECOVERY_PHASES, TRANSITIONS, Goal, Report, Standing, is_current, judge, overdue

GOAL = Goal("upgrade", "sha256:aa", "debian/13.1/amd64")
DRAWING = Path(__file__).resolve().parents[3] / "docs/machines/order.dot"

states = st.sampled_from(["active", "running", "completed", "failed", "cancelled"])
phases = st.sampled_from([*sorted(RECOVERY_PHASES), "stage", "reboot", "health"])
data = st.fixed_dictionaries({}, optional={
    "final": st.booleans(), "wiped": st.booleans(), "digest": st.sampled_from(["sha256:aa", "sha256:bb", ""]),
    "release": st.sampled_from(["debian/13.1/amd64", "debian/12/amd64", 7])})
events = st.sampled_from(get_args(ReportBody.model_fields["event"].annotation))
reports = st.builds(Report, phases, events, data, st.text(max_size=5))
standings = st.builds(Standing, states, phases, st.booleans())


def test_drawing_is_the_table() -> None:
    drawn: dict[tuple[str, str], set[str]] = {}
    for source, target, word in re.findall(r'(\w+) -> (\w+) \[label="(\w+)"\]', DRAWING.read_text()):
        drawn.setdefault((source, word), set()).add(target)
    assert drawn == {key: set(after) for key, after in TRANSITIONS.items()}


@given(standings, reports)
def test_only_the_transitions_of_the_table(standing: Standing, report: Report) -> None:
    word = {"healthy": "healthy", "failed": "failed"}.get(report.event, "begun")
    after = judge(standing, GOAL, report)
    if report.event == "inventory":
        assert after.state == standing.state
    else:
        assert after.state in TRANSITIONS.get((standing.state, word), {standing.state})


@given(standings, reports)
def test_completed_only_by_the_release_that_was_ordered(standing: Standing, report: Report) -> None:
    after = judge(standing, GOAL, report)
    if after.state == "completed" and standing.state != "completed":
        assert report.event == "healthy"
        assert report.data.get("digest") == GOAL.digest or report.data.get("release") == GOAL.release


@given(st.lists(reports, max_size=8))
def test_every_transition_can_be_reached_and_repeats_change_nothing(told: list[Report]) -> None:
    standing = Standing("active")
    for report in told:
        standing = judge(standing, GOAL, report)
    if told:
        assert judge(standing, GOAL, told[-1]).state == standing.state or told[-1].event in {"healthy", "failed"}


@given(standings, st.sampled_from(["upgrade", "install", "rescue"]), st.floats(0, 100), st.floats(0, 100),
       st.floats(0, 100))
def test_overdue(standing: Standing, mode: str, now: float, deadline: float, expires: float) -> None:
    after = overdue(standing, mode, now, deadline, expires)
    if after.state != standing.state:
        assert now >= min(deadline, expires)
        assert after.state in TRANSITIONS[(standing.state, "overdue")]
        assert (after.state == "cancelled") == (mode == "rescue")
        assert after.message


def test_a_living_host_is_not_given_a_failed_order_again() -> None:
    running = Standing("running", "preserve", recovering=True)
    went_back = judge(running, GOAL, Report("preserve", "failed", {"final": True, "wiped": False}))
    assert not is_current(went_back, 0, 1)
    lost = judge(running, GOAL, Report("restore", "failed", {"final": True, "wiped": True}))
    assert is_current(lost, 0, 1)
    assert not is_current(lost, 1, 1)
    unwell = judge(lost, GOAL, Report("health", "failed", {}))
    assert not is_current(unwell, 0, 1)
    bare = judge(running, Goal("install", None, None), Report("disks", "failed", {"final": True, "wiped": False}))
    assert is_current(bare, 0, 1)


def test_withdrawal() -> None:
    for state in ("active", "running", "failed"):
        after = progress.cancelled(Standing(state), "why")
        assert after is not None
        assert after.state == "cancelled"
    assert progress.cancelled(Standing("completed"), "why") is None
