import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plumbing.errors import CorruptError, UsageError
from rollout import record
from rollout.executor import (
    Command,
    Event,
    Failed,
    Finish,
    Freed,
    Halt,
    Healthy,
    Held,
    Pace,
    Phase,
    State,
    Trigger,
    Wait,
    candidates,
    step,
)

PACE = Pace(target_s=10, start_s=40, tighten_every=2, blast_budget=4, failure_budget=2, host_timeout_s=300)


def hosts(*waves: int) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"w{w}h{n}" for n in range(count)) for w, count in enumerate(waves))


def run(state: State, now: float, *events: Event, knob: float | None = None) -> tuple[State, list[object]]:
    state, actions = step(state, events, now, knob)
    return record.from_json(json.loads(json.dumps(record.to_json(state)))), list(actions)


def test_hosts_go_an_interval_apart() -> None:
    state, actions = run(State(PACE, hosts(3)), 0.0)
    assert actions == [Trigger("w0h0"), Wait(40.0)]
    state, actions = run(state, 39.0)
    assert actions == [Wait(1.0)]
    state, actions = run(state, 41.0)
    assert actions == [Trigger("w0h1"), Wait(40.0)]


def test_it_tightens_in_steps_as_hosts_come_back_healthy() -> None:
    state, seen, now = State(PACE, hosts(8)), [], 0.0
    while state.phase is not Phase.DONE:
        state, actions = run(state, now, *[Healthy(host) for host in state.in_flight])
        seen.append(state.interval_s(None))
        now += next((a.seconds for a in actions if isinstance(a, Wait) and a.seconds is not None), 0.0)
    assert seen == [40, 40, 20, 20, 10, 10, 10, 10, 10]
    assert actions == [Finish()]


def test_the_knob_is_the_interval_at_once_and_gives_the_pace_back() -> None:
    state, _ = run(State(PACE, hosts(9)), 0.0)
    state, actions = run(state, 5.0, knob=4.0)
    assert actions == [Trigger("w0h1"), Wait(4.0)]
    state, actions = run(state, 9.0, knob=100.0)
    assert actions == [Wait(96.0)]
    assert run(state, 9.0)[1] == [Wait(36.0)]


def test_a_knob_at_nothing_still_stops_at_the_blast_budget() -> None:
    state, actions = run(State(PACE, hosts(9)), 0.0, knob=0.0)
    assert actions == [*(Trigger(f"w0h{n}") for n in range(4)), Wait(300.0)]
    state, actions = run(state, 1.0, Healthy("w0h0"), Failed("w0h1", "no network"), knob=0.0)
    assert actions == [Trigger("w0h4"), Wait(299.0)]


def test_failures_halt_inside_the_budget_and_a_resume_accepts_them() -> None:
    state, _ = run(State(PACE, hosts(9)), 0.0, knob=0.0)
    state, actions = run(state, 1.0, Failed("w0h0", "panic"), Failed("w0h1", "panic"), knob=0.0)
    assert state.phase is Phase.HALTED
    assert isinstance(actions[0], Halt)
    assert "2 hosts failed, which is the budget (w0h0, w0h1)" in actions[0].reason
    state, actions = run(state, 2.0, Healthy("w0h2"), knob=0.0)
    assert [a for a in actions if isinstance(a, Trigger)] == []
    state, actions = run(state, 3.0, Command.RESUME, knob=0.0)
    assert [a.host for a in actions if isinstance(a, Trigger)] == ["w0h4", "w0h5", "w0h6"]


def test_a_host_that_never_returns_is_charged() -> None:
    state, _ = run(State(PACE, hosts(2)), 0.0)
    state, _ = run(state, 300.0)
    assert state.failed == {"w0h0": "said nothing for 300 s"}
    state, _ = run(state, 900.0)
    assert state.phase is Phase.HALTED


def test_a_failed_host_that_heals_is_healthy() -> None:
    state, _ = run(State(PACE, hosts(1)), 0.0)
    state, actions = run(state, 1.0, Failed("w0h0", "hung"))
    assert actions == [Finish()]
    state, _ = run(state, 2.0, Healthy("w0h0"))
    assert (dict(state.failed), set(state.healthy), state.phase) == ({}, {"w0h0"}, Phase.DONE)


def test_words_of_hosts_that_were_not_triggered_change_nothing() -> None:
    state, _ = run(State(PACE, hosts(3)), 0.0)
    assert run(state, 1.0, Healthy("w0h2"), Failed("w0h1", "x"), Healthy("stranger"))[0] == state


def test_the_next_wave_waits_for_the_whole_of_this_one() -> None:
    state, actions = run(State(PACE, hosts(2, 2)), 0.0, knob=0.0)
    assert [a.host for a in actions if isinstance(a, Trigger)] == ["w0h0", "w0h1"]
    state, actions = run(state, 1.0, Healthy("w0h0"), knob=0.0)
    assert [type(a) for a in actions] == [Wait]
    assert run(state, 2.0, Healthy("w0h1"), knob=0.0)[1][:2] == [Trigger("w1h0"), Trigger("w1h1")]
    state, actions = run(state, 2.0, Failed("w0h1", "disk"), knob=0.0)
    assert actions == [Halt("wave 1 did not come back whole (w0h1); mend it, then resume or abort")]
    state, actions = run(state, 3.0, Command.RESUME, knob=0.0)
    assert actions[:2] == [Trigger("w1h0"), Trigger("w1h1")]


def test_pause_keeps_counting_and_resume_does_not_forgive() -> None:
    state, _ = run(State(PACE, hosts(9)), 0.0, knob=0.0)
    state, actions = run(state, 1.0, Command.PAUSE, knob=0.0)
    assert (state.phase, [type(a) for a in actions]) == (Phase.PAUSED, [Wait])
    state, _ = run(state, 2.0, Failed("w0h0", "x"), Failed("w0h1", "x"), knob=0.0)
    state, actions = run(state, 3.0, Command.RESUME, knob=0.0)
    assert isinstance(actions[0], Halt)


@pytest.mark.parametrize("before", [[], [Command.PAUSE], [Failed("w0h0", "x"), Failed("w0h1", "x")]])
def test_abort_is_final(before: list[Event]) -> None:
    state, _ = run(State(PACE, hosts(9)), 0.0, knob=0.0)
    state, _ = run(state, 1.0, *before)
    state, _ = run(state, 2.0, Command.ABORT)
    state, actions = run(state, 1000.0, Command.RESUME, Command.PAUSE, knob=0.0)
    assert state.phase is Phase.ABORTED
    assert actions == [Wait(None)]


def test_a_clock_set_back_delays_by_an_interval_and_no_more() -> None:
    state, _ = run(State(PACE, hosts(3)), 1_000_000.0)
    state, actions = run(state, 100.0)
    assert actions == [Wait(40.0)]
    assert run(state, 140.0)[1][0] == Trigger("w0h1")


def test_nobody_to_update_is_done() -> None:
    assert run(State(PACE, ()), 0.0) == (State(PACE, (), Phase.DONE), [Finish()])


@pytest.mark.parametrize("wrong", [{"start_s": 5}, {"target_s": -1}, {"blast_budget": 0}, {"tighten_every": 0},
                                   {"failure_budget": 0}, {"host_timeout_s": 0}])
def test_rules_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(PACE, **wrong)


@pytest.mark.parametrize("kept", [{}, {"spec": 2}, {**record.to_json(State(PACE, ())), "phase": "flying"},
                                  {**record.to_json(State(PACE, ())), "in_flight": [1]}])
def test_a_record_that_cannot_be_read(kept: dict[str, object]) -> None:
    with pytest.raises(CorruptError):
        record.from_json(kept)


def test_the_view() -> None:
    state, _ = run(State(PACE, hosts(3, 2)), 0.0, knob=0.0)
    state, _ = run(state, 1.0, Healthy("w0h0"), Failed("w0h1", "panic"))
    told = record.view(state, 5.0, 20.0)
    assert told == {
        "phase": "running", "reason": "", "interval_s": 20.0, "knob_s": 20.0, "target_s": 10, "wave": 2, "waves": 2,
        "hosts": 5, "pending": 2, "healthy": 1, "in_flight": [{"host": "w0h2", "since_s": 5.0}],
        "held": [],
        "failed": [{"host": "w0h1", "reason": "panic", "accepted": False}], "blast_budget": 4, "failure_budget": 2,
        "next": ["w1h0", "w1h1"]}


def test_a_held_host_is_gone_round_and_taken_when_it_is_free() -> None:
    state, actions = run(State(PACE, hosts(2)), 0.0, Held("w0h0", "an answer"))
    assert actions == [Trigger("w0h1"), Wait(300.0)] and state.pending() == ["w0h0"]
    state, actions = run(state, 50.0, Healthy("w0h1"))
    assert (state.phase, actions) == (Phase.RUNNING, [Wait(None)]), "it is not over before everybody has a result"
    assert record.view(state, 50.0)["held"] == [{"host": "w0h0", "reason": "an answer"}]
    state, actions = run(state, 9_000.0)
    assert state.failed == {} and actions == [Wait(None)], "however long it takes"
    state, actions = run(state, 9_001.0, Freed("w0h0"))
    assert actions[0] == Trigger("w0h0") and state.held == {}


def test_a_held_host_keeps_the_next_wave_back() -> None:
    _, actions = run(State(PACE, hosts(1, 1)), 0.0, Held("w0h0", "an answer"))
    assert actions == [Wait(None)]


def test_a_host_in_flight_whose_order_ended_for_an_answer_is_pending_again() -> None:
    state, _ = run(State(PACE, hosts(2)), 0.0)
    state, actions = run(state, 1.0, Held("w0h0", "an answer"))
    assert (dict(state.in_flight), state.failed, actions) == ({}, {}, [Wait(39.0)]), "the pace is as it was"
    state, actions = run(state, 40.0, Freed("w0h0"))
    assert actions[0] == Trigger("w0h0")


def test_only_hosts_that_were_looked_at_are_triggered() -> None:
    state = State(PACE, hosts(3))
    assert candidates(state, 0.0, None, 2) == ["w0h0", "w0h1"]
    assert step(state, [], 0.0, 0.0, {"w0h0"})[1] == [Trigger("w0h0"), Wait(0.0)]
    state, _ = run(state, 0.0, Held("w0h0", "an answer"))
    assert candidates(state, 39.0, None, 9) == [], "none is due"
    assert candidates(state, 40.0, None, 9) == ["w0h2"]


class AnyNight(RuleBasedStateMachine):
    """Hosts, operators and clocks do what they like; the budgets hold."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State(PACE, hosts(3, 2, 6))
        self.now, self.told, self.knob = 0.0, [], None
        self.failures: set[str] = set()

    told: list[str]
    knob: float | None

    def advance(self, *events: Event) -> None:
        before = self.state
        self.state, actions = step(before, events, self.now, self.knob)
        triggered = [action.host for action in actions if isinstance(action, Trigger)]
        if triggered:
            assert self.state.phase in {Phase.RUNNING, Phase.HALTED}
            gap = self.now - before.last_trigger if before.last_trigger is not None else None
            assert gap is None or gap < 0 or gap >= before.interval_s(self.knob) - 1e-9 or \
                gap >= self.state.interval_s(self.knob) - 1e-9
        self.told += triggered
        for host in triggered:
            wave = next(n for n, members in enumerate(self.state.waves) if host in members)
            for earlier in self.state.waves[:wave]:
                assert all(one in self.state.healthy or one in self.state.accepted for one in earlier)

    @rule(seconds=st.floats(0, 120))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.advance()

    @rule(seconds=st.floats(0, 1000))
    def clock_set_back(self, seconds: float) -> None:
        self.now -= seconds
        self.advance()

    @rule(data=st.data(), well=st.booleans())
    def a_host_reports(self, data: st.DataObject, well: bool) -> None:
        host = data.draw(st.sampled_from([host for wave in self.state.waves for host in wave]))
        self.advance(Healthy(host) if well else Failed(host, "x"))

    @rule(data=st.data(), free=st.booleans())
    def a_host_waits_for_an_answer(self, data: st.DataObject, free: bool) -> None:
        pending = self.state.pending()
        if pending:
            host = data.draw(st.sampled_from(pending))
            self.advance(Freed(host) if free else Held(host, "an answer"))
            assert free or host not in self.state.in_flight

    @rule(word=st.sampled_from([Command.PAUSE, Command.RESUME, Command.RESUME]))
    def operator(self, word: Command) -> None:
        self.advance(word)

    @rule(knob=st.one_of(st.none(), st.floats(0, 50)))
    def turn(self, knob: float | None) -> None:
        self.knob = knob
        self.advance()

    @invariant()
    def nobody_is_triggered_twice(self) -> None:
        assert len(self.told) == len(set(self.told))

    @invariant()
    def blast_budget(self) -> None:
        assert len(self.state.in_flight) + len(self.state.open_failures()) <= PACE.blast_budget

    @invariant()
    def failures_halt(self) -> None:
        if self.state.phase is Phase.RUNNING:
            assert len(self.state.open_failures()) < PACE.failure_budget

    @invariant()
    def each_host_has_one_fate(self) -> None:
        fates = [*self.state.in_flight, *self.state.healthy, *self.state.failed, *self.state.pending()]
        assert sorted(fates) == sorted(host for wave in self.state.waves for host in wave)

    @invariant()
    def kept_and_read_back_it_is_the_same(self) -> None:
        assert record.from_json(json.loads(json.dumps(record.to_json(self.state)))) == self.state


TestAnyNight = AnyNight.TestCase
TestAnyNight.settings = settings(max_examples=60, stateful_step_count=60)
