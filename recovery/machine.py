"""The machine recovery follows, as a table. Pure: where it stands and what happened in, where it goes next out.

The drawing is docs/machines/recovery.dot; a test keeps it and `TABLE` the same. What each state does is in
`recovery.phases`; `recovery.drive` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from plumbing.errors import Kind


class State(StrEnum):
    """The phases, in the order they run, and the ways out."""

    NETWORK = "network"
    ORDER = "order"
    DISKS = "disks"
    PRESERVE = "preserve"
    WIPE = "wipe"
    RESTORE = "restore"
    VERIFY = "verify"
    PUTBACK = "putback"
    BOOTLOADER = "bootloader"
    FINISH = "finish"
    RETRY = "retry"
    """Wait a little, then begin again with a fresh order."""
    FAILED = "failed"
    """Nothing was wiped: boot default back to the old system, tell the control server."""
    GASP = "gasp"
    """Nothing more can be done here: tell people by mail."""
    RESCUE = "rescue"
    """The menu on the console."""
    REBOOT = "reboot"
    """The end: whatever the boot default says comes next."""


class Event(StrEnum):
    """What a state's action came to."""

    DONE = "done"
    AGAIN = "again"
    """It failed, or a person asked, and another attempt is allowed."""
    UNTOUCHED = "untouched"
    """It failed for good; the old system is whole and can boot."""
    LOST = "lost"
    """It failed for good; there is no system to go back to."""
    NO_ORDER = "no_order"
    """There is no order for this machine, or the order is to show the menu."""
    FRUITLESS = "fruitless"
    """The root was wiped, and too many boots since then brought nothing: people are told, and it goes slowly on."""


PHASES: tuple[State, ...] = (
    State.NETWORK, State.ORDER, State.DISKS, State.PRESERVE, State.WIPE,
    State.RESTORE, State.VERIFY, State.PUTBACK, State.BOOTLOADER, State.FINISH,
)
"""The way through, in order."""

BEFORE_WIPE = frozenset(PHASES[:5])
"""States in which the old system may still be whole; wipe is the border and belongs to both sides."""

AFTER_WIPE = frozenset(PHASES[4:])
"""States in which there may be no system to go back to when there was one at the start."""

PASSING = frozenset({Kind.NETWORK, Kind.BUSY, Kind.CORRUPT, Kind.COMMAND})
"""Kinds that may be gone at the next attempt; with an old system to go back to only these are tried again."""

BACKOFF_BASE_S = 5.0
BACKOFF_CAP_S = 300.0
MOST_FRUITLESS = 10
"""How many starts after the border may bring no progress before a boot begins with gasp and pause."""
RESCUE_EVERY_S = 900.0
"""How often the rescue menu of a lost machine runs the order again by itself, before jitter."""


def _table() -> dict[tuple[State, Event], State]:
    table: dict[tuple[State, Event], State] = {}
    for state, following in zip(PHASES, (*PHASES[1:], State.REBOOT), strict=True):
        table[state, Event.DONE] = following
        table[state, Event.AGAIN] = State.RETRY
        table[state, Event.LOST] = State.GASP
        if state in BEFORE_WIPE:
            table[state, Event.UNTOUCHED] = State.FAILED
    table[State.ORDER, Event.NO_ORDER] = State.RESCUE
    table[State.ORDER, Event.FRUITLESS] = State.GASP
    table[State.RETRY, Event.DONE] = State.NETWORK
    table[State.FAILED, Event.DONE] = State.REBOOT
    table[State.FAILED, Event.LOST] = State.GASP
    table[State.GASP, Event.DONE] = State.RESCUE
    table[State.RESCUE, Event.AGAIN] = State.NETWORK
    table[State.RESCUE, Event.DONE] = State.REBOOT
    return table


TABLE: dict[tuple[State, Event], State] = _table()
"""(state, event) -> next state; a pair that is not here cannot happen."""


@dataclass(frozen=True)
class Standing:
    """What decides how a failure is met: the attempt (from 1), how many there are, and what is left of the host."""

    attempt: int
    attempts: int
    wiped: bool
    has_system: bool


def after_failure(state: State, kind: Kind, standing: Standing) -> Event:
    """Say what a failure of `kind` in `state` comes to."""
    untouched = standing.has_system and not standing.wiped and state in BEFORE_WIPE
    if standing.attempt < standing.attempts and (not untouched or kind in PASSING):
        return Event.AGAIN
    return Event.UNTOUCHED if untouched else Event.LOST


def is_fruitless(starts: int, *, wiped: bool, slowed: bool) -> bool:
    """Whether a boot is to tell people and pause before it goes on.

    `starts` are the attempts in the journal since the last progress; `slowed` says that this boot has paused before.
    """
    return wiped and not slowed and starts > MOST_FRUITLESS


def following(state: State, event: Event) -> State:
    """Return the next state; raises KeyError for a pair the table does not have, which is a defect."""
    return TABLE[state, event]


def backoff_s(attempt: int, jitter: float) -> float:
    """Return the pause in seconds after failed attempt number `attempt` (from 1); `jitter` is in [0, 1)."""
    return min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempt - 1, 16)) * (0.5 + jitter)


def rescue_pause_s(jitter: float) -> float:
    """Return how long a lost machine's menu waits for a person before it runs the order again; `jitter` in [0, 1)."""
    return RESCUE_EVERY_S * (0.5 + jitter)


def draw() -> str:
    """Return the table as a Graphviz drawing: what docs/machines/recovery.dot must hold."""
    lines = [
        "// Written by recovery.machine.draw(); a test compares. dot -Tsvg recovery.dot > recovery.svg",
        "digraph recovery {",
        "  rankdir=LR; node [shape=box, fontname=\"Helvetica\"]; edge [fontname=\"Helvetica\", fontsize=10];",
    ]
    for state in State:
        look = "shape=doublecircle" if state is State.REBOOT else (
            "style=filled, fillcolor=\"#fde0dd\"" if state in AFTER_WIPE else
            "style=filled, fillcolor=\"#e5f5e0\"" if state in BEFORE_WIPE else "style=rounded")
        lines.append(f"  {state.value} [{look}];")
    lines.extend(f"  {state.value} -> {to.value} [label=\"{event.value}\"];" for (state, event), to in TABLE.items())
    return "\n".join([*lines, "}", ""])
