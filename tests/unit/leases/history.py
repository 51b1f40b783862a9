"""What hosts saw of a ticket service, judged: was there ever a moment with more live tickets than slots? Pure.

In the manner of Jepsen's tests of locks (Kingsbury; jepsen.io/analyses): the service is a black box, every host writes
down when it asked and when it was answered, and an answer that never came may mean either. From that follow intervals
in which a ticket was live *for certain*; whatever contradicts them is a fault of the service, never of
the network. The rules:

slots       never more tickets certainly live than the provider has slots
lost        a ticket that is certainly live is renewed, returned, found again and shown by the status
twice       a ticket has one holder, a fence is used once
fences      of two grants, one answered before the other was asked for, the later has the higher fence
overtaken   how many hosts that came later were served before one that waited (not a fault; the test says how many are)

A ticket is live for certain from the answer that granted it until a lifetime after the last answered request that
began its lifetime anew was *sent*, or until its return is sent. All times are of one machine's monotonic clock, in
seconds.
"""

from __future__ import annotations

import bisect
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verb = Literal["get", "renew", "return"]
Outcome = Literal["ok", "busy", "refused", "unknown"]


@dataclass(frozen=True)
class Op:
    """One request of one host; `returned_s` is None when no answer ever came."""

    holder: str
    verb: Verb
    invoked_s: float
    returned_s: float | None
    outcome: Outcome
    ticket: str = ""
    lifetime_s: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What the service's status said: the holder of each live ticket."""

    asked_s: float
    answered_s: float
    holders: Mapping[str, str]


@dataclass
class Tenure:
    """One ticket in one host's hands, and when it was live for certain."""

    ticket: str
    holder: str
    asked_s: float
    """The earliest request that may have granted it."""
    acked_s: float
    live: list[tuple[float, float]] = field(default_factory=list)
    given_up: bool = False

    @property
    def provider(self) -> str:
        return self.ticket.rpartition("_")[0]

    @property
    def fence(self) -> int:
        return int(self.ticket.rpartition("_")[2])

    def renewed(self, op: Op) -> None:
        """Begin its lifetime anew by an answered request."""
        assert op.returned_s is not None
        ends = op.invoked_s + op.lifetime_s
        if self.live and op.invoked_s <= self.live[-1][1]:
            self.live[-1] = (self.live[-1][0], max(self.live[-1][1], ends))
        elif op.returned_s < ends:
            self.live.append((op.returned_s, ends))
        self.given_up = False

    def give_up(self, at_s: float) -> None:
        """Be certain of nothing from `at_s` on."""
        self.live = [(begin, min(end, at_s)) for begin, end in self.live if begin < at_s]
        self.given_up = True

    def live_during(self, begin_s: float, end_s: float) -> bool:
        return any(first <= begin_s and end_s <= last for first, last in self.live)


@dataclass(frozen=True)
class Verdict:
    """What was wrong, as sentences, and what the run was worth."""

    faults: tuple[str, ...]
    grants: int
    unknown: int
    most_live: int
    overtaken: int


def parse(lines: Iterable[str]) -> list[Op]:
    """Read what holders wrote: a line when they ask, another when they are answered; the second may be missing."""
    asked: dict[str, dict[str, object]] = {}
    for line in lines:
        if not line.endswith("\n"):  # whoever wrote it was killed over it
            continue
        entry = json.loads(line)
        asked.setdefault(str(entry["id"]), {"returned_s": None, "outcome": "unknown"}).update(entry)
    return sorted((Op(**{name: value for name, value in entry.items() if name != "id"})  # type: ignore[arg-type]
                   for entry in asked.values()), key=lambda op: op.invoked_s)


def judge(ops: Sequence[Op], slots: Mapping[str, int], seen: Sequence[Seen] = (), slack_s: float = 0.25) -> Verdict:
    """Judge the history of a service whose providers have `slots`; hosts that come within `slack_s` come at once."""
    faults: list[str] = []
    tenures: list[Tenure] = []
    by_holder: defaultdict[str, list[Op]] = defaultdict(list)
    for op in ops:
        by_holder[op.holder].append(op)
    for one in by_holder.values():
        tenures += _tenures(one, faults)
    faults += _twice(tenures) + _fences(tenures) + _shown(tenures, seen, slots)
    most = 0
    for provider in {*slots, *(tenure.provider for tenure in tenures)}:
        live, at_s = _most_live([span for tenure in tenures if tenure.provider == provider for span in tenure.live])
        if live > slots.get(provider, 0):
            faults.append(f"slots: {live} tickets of {provider} were live at {at_s:.6f}, and it has "
                          f"{slots.get(provider, 0)}")
        most += live
    return Verdict(tuple(faults), len(tenures), sum(op.outcome == "unknown" for op in ops), most,
                   _overtaken(by_holder.values(), slack_s))


def _tenures(ops: Sequence[Op], faults: list[str]) -> list[Tenure]:
    """Follow one host, which asks for one thing at a time."""
    found: dict[str, Tenure] = {}
    held: Tenure | None = None
    unanswered_s: float | None = None
    last_s = 0.0
    for op in ops:
        assert last_s <= op.invoked_s, f"{op.holder} asked for two things at once"
        last_s = op.invoked_s if op.returned_s is None else op.returned_s
        certain = held is not None and op.returned_s is not None and held.live_during(op.invoked_s, op.returned_s)
        match op:
            case Op(verb="return"):
                if op.outcome == "refused" and certain:
                    faults.append(f"lost: {op.holder} held {op.ticket} and could not return it at {op.invoked_s:.6f}")
                if held is not None:
                    held.give_up(op.invoked_s)
            case Op(outcome="unknown"):
                if op.verb == "get" and unanswered_s is None:
                    unanswered_s = op.invoked_s
            case Op(outcome="ok") if held is not None and op.ticket == held.ticket:
                held.renewed(op)
                unanswered_s = None
            case Op(verb="get", outcome="ok"):
                if certain and held is not None:
                    faults.append(f"lost: {op.holder} held {held.ticket} and got {op.ticket} at {op.invoked_s:.6f}")
                if op.ticket in found:
                    faults.append(f"twice: {op.holder} was given {op.ticket} again after another one")
                assert op.returned_s is not None
                asked_s = op.invoked_s if unanswered_s is None else unanswered_s
                held = Tenure(op.ticket, op.holder, asked_s, op.returned_s)
                held.renewed(op)
                found[op.ticket] = held
                unanswered_s = None
            case Op(outcome="ok"):
                faults.append(f"twice: {op.holder} renewed {op.ticket}, which it does not hold")
            case _:  # busy or refused
                if certain and held is not None:
                    faults.append(f"lost: {op.holder} held {held.ticket} and was told {op.outcome} to {op.verb} at "
                                  f"{op.invoked_s:.6f}")
                if held is not None and op.verb == "renew":
                    held.give_up(op.invoked_s)
    return list(found.values())


def _twice(tenures: Iterable[Tenure]) -> list[str]:
    holders: dict[int, Tenure] = {}
    faults = []
    for tenure in tenures:
        other = holders.setdefault(tenure.fence, tenure)
        if other is not tenure:
            faults.append(f"twice: fence {tenure.fence} was given to {other.holder} and to {tenure.holder}")
    return faults


def _fences(tenures: Iterable[Tenure]) -> list[str]:
    """Find grants that were asked for after a grant with a higher fence had been answered."""
    faults = []
    earliest: Tenure | None = None
    for tenure in sorted(tenures, key=lambda one: -one.fence):
        if earliest is not None and earliest.acked_s < tenure.asked_s:
            faults.append(f"fences: {tenure.ticket} was asked for after {earliest.ticket} had been given")
        if earliest is None or tenure.acked_s < earliest.acked_s:
            earliest = tenure
    return faults


def _shown(tenures: Sequence[Tenure], seen: Iterable[Seen], slots: Mapping[str, int]) -> list[str]:
    faults = []
    for look in seen:
        faults += [f"lost: {one.holder} held {one.ticket} and the status at {look.asked_s:.6f} does not say so"
                   for one in tenures if one.live_during(look.asked_s, look.answered_s)
                   and look.holders.get(one.ticket) != one.holder]
        if len(look.holders) > sum(slots.values()):
            faults.append(f"slots: the status at {look.asked_s:.6f} shows {len(look.holders)} tickets")
    return faults


def _most_live(spans: Iterable[tuple[float, float]]) -> tuple[int, float]:
    """Return how many spans overlap at most, and where first; one that ends where another begins does not."""
    edges = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    live = most = 0
    where = 0.0
    for at_s, step in edges:
        live += step
        if live > most:
            most, where = live, at_s
    return most, where


def _overtaken(hosts: Iterable[Sequence[Op]], slack_s: float) -> int:
    """Return how many came after one host and were served before it, at most; a lost answer ends a wait."""
    waits: list[tuple[float, float]] = []
    for ops in hosts:
        since_s: float | None = None
        for op in ops:
            if op.verb != "get" or op.outcome == "unknown":
                since_s = None
                continue
            since_s = op.invoked_s if since_s is None else since_s
            if op.outcome == "ok" and op.returned_s is not None:
                waits.append((since_s, op.returned_s))
                since_s = None
    waits.sort()
    begins = [begin for begin, _ in waits]
    return max((sum(end < mine_s - slack_s for _, end in waits[bisect.bisect(begins, since_s + slack_s):])
                for since_s, mine_s in waits), default=0)
