"""What a rollout does next: state + events + now + knob → state + actions. Pure; drawn in docs/machines/rollout.dot.

The caller keeps the state (rollout.record), feeds every event once, stores the new state before it acts on the actions,
and reads the knob before every step. `now` is wall seconds, so a rollout outlives its server; a clock set forward makes
hosts seem overdue, which halts, and one set back delays the next trigger by an interval at most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from plumbing.errors import UsageError

V = TypeVar("V")

MAX_STEPS = 30
"""Beyond this many halvings any interval is nothing."""


@dataclass(frozen=True)
class Pace:
    """The rules of one rollout.

    Hosts are `start_s` apart at first; every `tighten_every` healthy hosts halve that, down to `target_s`. At most
    `blast_budget` hosts are triggered and not healthy at any time. `failure_budget` failures halt the rollout. A host
    that says nothing for `host_timeout_s` after its trigger has failed.
    """

    target_s: float
    start_s: float
    tighten_every: int
    blast_budget: int
    failure_budget: int
    host_timeout_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.target_s <= self.start_s:
            raise UsageError(f"a rollout starts {self.start_s:g} s apart and tightens to {self.target_s:g} s; "
                             "the first must not be the smaller")
        for name in ("tighten_every", "blast_budget", "failure_budget", "host_timeout_s"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


class Phase(StrEnum):
    """Where a rollout stands; ABORTED and DONE are final."""

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    ABORTED = "aborted"
    DONE = "done"


FINAL = frozenset({Phase.ABORTED, Phase.DONE})
"""Nothing that anybody says moves a rollout out of these."""


@dataclass(frozen=True)
class State:
    """Everything a rollout remembers. A host of `waves` that is in none of the other three is pending."""

    pace: Pace
    waves: tuple[tuple[str, ...], ...]
    phase: Phase = Phase.RUNNING
    reason: str = ""
    in_flight: Mapping[str, float] = field(default_factory=dict)
    healthy: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    accepted: frozenset[str] = frozenset()  # failed hosts that an operator resumed past
    last_trigger: float | None = None
    held: Mapping[str, str] = field(default_factory=dict)
    """Pending hosts that wait for somebody's answer, and for which: neither triggered nor failed, and no budget's."""

    def pending(self) -> list[str]:
        """Return the hosts still to be triggered, in order."""
        return [host for wave in self.waves for host in wave if not self.began(host)]

    def began(self, host: str) -> bool:
        """Say whether `host` was triggered."""
        return host in self.in_flight or host in self.healthy or host in self.failed

    def open_failures(self) -> list[str]:
        """Return the failed hosts that count against the budgets."""
        return [host for host in self.failed if host not in self.accepted]

    def interval_s(self, knob_s: float | None) -> float:
        """Return how far apart triggers are now; the knob, when set, is the answer."""
        if knob_s is not None:
            return knob_s
        steps = min(len(self.healthy) // self.pace.tighten_every, MAX_STEPS)
        return max(self.pace.target_s, self.pace.start_s * 0.5**steps)


@dataclass(frozen=True)
class Healthy:
    """`host` runs the new release and says it is well."""

    host: str


@dataclass(frozen=True)
class Failed:
    """`host` could not be triggered, or reported that it failed."""

    host: str
    reason: str


@dataclass(frozen=True)
class Held:
    """`host` may not be triggered before somebody answered; one whose order ended for that is pending again."""

    host: str
    reason: str


@dataclass(frozen=True)
class Freed:
    """`host` need not wait for an answer any more."""

    host: str


class Command(StrEnum):
    """What an operator may say."""

    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


Event = Healthy | Failed | Held | Freed | Command


@dataclass(frozen=True)
class Trigger:
    """Give this host its order, now."""

    host: str


@dataclass(frozen=True)
class Wait:
    """Nothing more until an event or until `seconds` have passed; None: until an event."""

    seconds: float | None


@dataclass(frozen=True)
class Halt:
    """The rollout stopped by itself; tell people why."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """Every host has a result."""


Action = Trigger | Wait | Halt | Finish


def candidates(state: State, now: float, knob_s: float | None, most: int) -> list[str]:
    """Return up to `most` hosts that a step at `now` could trigger, in order: none before the next trigger is due."""
    if state.phase is not Phase.RUNNING or _due(state, now, knob_s) > now:
        return []
    return [host for host in state.pending() if host not in state.held][:most]


def step(state: State, events: Iterable[Event], now: float, knob_s: float | None = None,
         ready: Collection[str] | None = None) -> tuple[State, list[Action]]:
    """Take in `events`, then say what to do at `now`; `knob_s` is the operator's interval as it stands this moment.

    With `ready` no other hosts are triggered: they were not looked at yet.
    """
    state = _not_in_future(state, now)
    for event in events:
        state = _take(state, event)
    state = _overdue(state, now)
    actions: list[Action] = []
    while state.phase is Phase.RUNNING:
        if reason := _must_halt(state):
            state = replace(state, phase=Phase.HALTED, reason=reason)
            return state, [*actions, Halt(reason)]
        host = _next_host(state)
        if host is None and not state.in_flight and not state.held:
            return replace(state, phase=Phase.DONE), [*actions, Finish()]
        due = _due(state, now, knob_s)
        if host is None or due > now or (ready is not None and host not in ready):
            break
        state = replace(state, in_flight={**state.in_flight, host: now}, last_trigger=now)
        actions.append(Trigger(host))
    return state, [*actions, Wait(_patience(state, now, knob_s))]


def _take(state: State, event: Event) -> State:
    match event:
        case Healthy(host) if host in state.in_flight or host in state.failed:
            return replace(state, healthy=state.healthy | {host}, accepted=state.accepted - {host},
                           in_flight=_without(state.in_flight, host), failed=_without(state.failed, host))
        case Failed(host, reason) if host in state.in_flight:
            return replace(state, in_flight=_without(state.in_flight, host), failed={**state.failed, host: reason})
        case Held(host, reason) if host in state.in_flight or not state.began(host):
            return replace(state, in_flight=_without(state.in_flight, host), held={**state.held, host: reason})
        case Freed(host) if host in state.held:
            return replace(state, held=_without(state.held, host))
        case Command.PAUSE if state.phase is Phase.RUNNING:
            return replace(state, phase=Phase.PAUSED, reason="paused by an operator")
        case Command.RESUME if state.phase is Phase.PAUSED:
            return replace(state, phase=Phase.RUNNING, reason="")
        case Command.RESUME if state.phase is Phase.HALTED:
            return replace(state, phase=Phase.RUNNING, reason="", accepted=frozenset(state.failed))
        case Command.ABORT if state.phase not in FINAL:
            return replace(state, phase=Phase.ABORTED, reason="aborted by an operator")
    return state


def _not_in_future(state: State, now: float) -> State:
    if state.last_trigger is None or state.last_trigger <= now:  # no host was triggered after the last one
        return state
    return replace(state, in_flight={host: min(since, now) for host, since in state.in_flight.items()},
                   last_trigger=now)


def _overdue(state: State, now: float) -> State:
    limit_s = state.pace.host_timeout_s
    for host, since in state.in_flight.items():
        if now - since >= limit_s:
            state = _take(state, Failed(host, f"said nothing for {limit_s:.0f} s"))
    return state


def _must_halt(state: State) -> str:
    failures = state.open_failures()
    if len(failures) >= min(state.pace.failure_budget, state.pace.blast_budget):
        return (f"{len(failures)} hosts failed, which is the budget ({', '.join(failures[:5])}); "
                "mend them or the release, then resume or abort")
    if state.in_flight or not failures:
        return ""
    for number, wave in enumerate(state.waves[:-1], 1):
        down = [host for host in wave if host in failures]
        if down and any(not state.began(host) for later in state.waves[number:] for host in later):
            return f"wave {number} did not come back whole ({', '.join(down[:5])}); mend it, then resume or abort"
    return ""


def _next_host(state: State) -> str | None:
    if len(state.in_flight) + len(state.open_failures()) >= state.pace.blast_budget:
        return None
    for wave in state.waves:
        for host in wave:
            if not state.began(host) and host not in state.held:
                return host
        if any(host not in state.healthy and host not in state.accepted for host in wave):
            return None
    return None


def _due(state: State, now: float, knob_s: float | None) -> float:
    return now if state.last_trigger is None else state.last_trigger + state.interval_s(knob_s)


def _patience(state: State, now: float, knob_s: float | None) -> float | None:
    times = [since + state.pace.host_timeout_s for since in state.in_flight.values()]
    if state.phase is Phase.RUNNING and _next_host(state) is not None:
        times.append(_due(state, now, knob_s))
    return max(0.0, min(times) - now) if times else None


def _without(mapping: Mapping[str, V], host: str) -> dict[str, V]:
    return {name: value for name, value in mapping.items() if name != host}
