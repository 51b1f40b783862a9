"""What losses say of a rollout's hosts: whose reports are wanted, who waits for an answer, who may go on; I/O.

Reads policies, reports and answers; asks hosts for reports. What it comes to are events for rollout.executor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from control import losses
from control.database import Database, OrderRow
from control.lossgate import Gate
from control.orders import Issuer
from fleet.hosts import Host, Hosts
from plumbing import clock
from rollout.executor import Event, Freed, Held, State, candidates

LOOKED_AT = 25
"""How many hosts one look is about: so many whose turn it is, and so many of those that wait."""
PHASE = "loss"
"""What a host's agent names as phase when it ends an order because of a loss that nobody answered for."""


class LossWatch:
    """Looks at hosts for all rollouts; `ring` wakes a host that waits."""

    def __init__(self, database: Database, issuer: Issuer, ring: Callable[[str], None]) -> None:
        self._database, self._issuer, self._ring = database, issuer, ring
        self._looked: dict[str, float] = {}
        """Host -> when it was looked at, monotonic seconds; none for one that something happened to since."""

    def ask(self, members: Sequence[Host], now: float) -> None:
        """Have hosts make the reports that are wanted now, so that a person can answer before their turn comes."""
        wanting = [host.name for host in members if self._issuer.verdict(host, now).wants]
        losses.ask(self._database, wanting, now)
        for name in wanting:
            self._ring(name)

    def look_again(self, host: str) -> None:
        """Something happened to a host's losses; from any thread."""
        self._looked.pop(host, None)

    def look(self, state: State, knob_s: float | None, hosts: Hosts, now: float) -> tuple[list[Event], set[str]]:
        """Return what became of hosts that wait and of those whose turn it is, and which of them may be triggered."""
        found, ready = list[Event](), set[str]()
        held = sorted(state.held, key=lambda name: self._looked.get(name, 0.0))[:LOOKED_AT]
        for name in [*held, *candidates(state, now, knob_s, LOOKED_AT)]:
            host = hosts.by_name.get(name)
            self._looked[name] = clock.monotonic()
            event = None if host is None else self._held(host, now)
            if event is None:
                ready.add(name)
                found += [Freed(name)] if name in state.held else []
            elif state.held.get(name) != event.reason:
                found.append(event)
        return found, ready

    def _held(self, host: Host, now: float) -> Held | None:
        """Return what keeps a host; None: nothing, or what the making of its order will tell."""
        verdict = self._issuer.gate(host, now)
        if verdict.wants:
            self._ring(host.name)
        if verdict.gate in {Gate.CLEAR, Gate.REFUSED}:
            return None
        return Held(host.name, verdict.why)


def unanswered(order: OrderRow) -> bool:
    """Say whether an order ended because its host found a loss that nobody had answered for."""
    return order.state == "failed" and order.phase == PHASE
