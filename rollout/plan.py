"""A plan: what a rollout would take, whether it is refused, and in which order hosts go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from plumbing.errors import RefusedError
from rollout import capacity, sortaddrs, waves
from rollout.capacity import Bound, Capacity, Load
from rollout.duration import show
from rollout.executor import Pace

START_FACTOR = 4
"""How many times slower than the calculated interval a rollout starts ("a larger delay than is really necessary")."""

TIMEOUT_FACTOR = 3
"""After how many times its usual length an update has failed."""


@dataclass(frozen=True)
class Plan:
    """The paper's questions answered; `refused` is a sentence, empty when nothing speaks against it."""

    capacity: Capacity
    deadline_s: float | None
    blast_budget: int | None
    refused: str

    @property
    def meets_deadline(self) -> bool | None:
        """Whether the servers there are suffice for the deadline; None without one."""
        needed = self.capacity.servers_needed
        return None if needed is None else needed <= self.capacity.load.servers

    def to_json(self) -> dict[str, object]:
        """Return the plan for a script; seconds throughout."""
        return {
            **asdict(self.capacity.load), "whole_time": asdict(self.capacity.whole),
            "download": asdict(self.capacity.download), "in_flight": self.capacity.download.in_flight,
            "deadline_s": self.deadline_s, "servers_needed": self.capacity.servers_needed,
            "meets_deadline": self.meets_deadline, "blast_budget": self.blast_budget, "refused": self.refused or None,
        }

    def text(self) -> str:
        """Return the numbers for a person; a refusal is the caller's to raise."""
        load, quick = self.capacity.load, self.capacity.download
        lines = [
            f"{load.hosts} hosts, {show(load.update_s)} each, {show(load.download_s)} of it downloading; "
            f"{load.servers} servers × {load.per_server} hosts at once",
            "",
            _line("whole-time bound", self.capacity.whole),
            _line("download bound", quick),
            "",
            f"in flight before the first result is seen: {quick.in_flight} hosts"
            + ("" if self.blast_budget is None else f" (blast budget {self.blast_budget})"),
        ]
        if self.deadline_s is not None and self.capacity.servers_needed is not None:
            verdict = "met" if self.meets_deadline else f"missed with {load.servers}"
            lines.append(f"servers needed for {show(self.deadline_s)}: {self.capacity.servers_needed} ({verdict})")
        return "\n".join(lines)


def plan(load: Load, *, deadline_s: float | None = None, blast_budget: int | None = None) -> Plan:
    """Answer for `load`; a plan over its blast budget or with a hopeless deadline comes back refused."""
    refused, answer = "", capacity.capacity(load)
    try:
        if deadline_s is not None:
            answer = capacity.capacity(load, deadline_s=deadline_s)
        if blast_budget is not None:
            capacity.check_blast(load, answer.download, blast_budget)
    except RefusedError as error:
        refused = error.sentence
    return Plan(answer, deadline_s, blast_budget, refused)


def order(
    hosts: Sequence[tuple[str, str]], serves: Mapping[str, Collection[str]], minimum: Mapping[str, int] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Turn (host, subnet) pairs into waves, each interleaved by subnet; see rollout.waves for the rest."""
    nets = dict(hosts)
    return tuple(tuple(sortaddrs.interleave((host, nets[host]) for host in wave))
                 for wave in waves.waves(list(nets), serves, minimum))


def pace(
    load: Load, *, blast_budget: int, failure_budget: int, interval_s: float | None = None,
    start_interval_s: float | None = None,
) -> Pace:
    """Return the rules for running `load`: by default as quick as the servers bear and the blast budget allows."""
    target_s = interval_s if interval_s is not None else max(
        capacity.bound(load, load.download_s).interval_s, load.update_s / blast_budget)
    start_s = START_FACTOR * target_s if start_interval_s is None else max(start_interval_s, target_s)
    return Pace(target_s, start_s, tighten_every=max(1, min(10, load.hosts // 20)), blast_budget=blast_budget,
                failure_budget=failure_budget, host_timeout_s=TIMEOUT_FACTOR * load.update_s)


def _line(name: str, found: Bound) -> str:
    return (f"{name:<17} a host every {show(found.interval_s):<6} total {_about(found.total_s):<9} "
            f"evenly spaced, the last is done after {show(found.last_done_s)}")


def _about(seconds: float) -> str:
    return show(round(seconds / 60) * 60) if seconds >= 3600 else show(seconds)
