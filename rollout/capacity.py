"""How quickly hosts may be triggered, how long a rollout takes, how many hosts a mistake hits. Pure.

Source: the SAS paper, section How Many, How Quickly. Its numbers are this module's tests.
Everything is computed in fractions, so that 1500 hosts are 100 in flight and not 100.0000001, rounded up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from plumbing.errors import RefusedError, UsageError
from rollout import duration

MAX_COUNT = 1_000_000
"""Of hosts, servers and slots: more than anybody has, and what floats can still divide."""


@dataclass(frozen=True)
class Load:
    """What is to be done: `update_s` is one host's whole update, `download_s` its part that needs a server."""

    hosts: int
    update_s: float
    download_s: float
    servers: int
    per_server: int

    def __post_init__(self) -> None:
        for name, count in (("hosts", self.hosts), ("servers", self.servers), ("per-server", self.per_server)):
            if count < 1:
                raise UsageError(f"{name} is {count}; it must be at least 1")
            if count > MAX_COUNT:  # which may have hundreds of digits
                raise UsageError(f"{name} is more than {MAX_COUNT}, and nobody has so many; check the number")
        if not 0 < self.download_s <= self.update_s:
            raise UsageError(f"the download takes {duration.show(self.download_s)} of an update of "
                             f"{duration.show(self.update_s)}; it must be more than nothing and no more than the whole")


@dataclass(frozen=True)
class Bound:
    """One reading of the limit: hosts `interval_s` apart, all work done after `total_s`.

    `total_s` is the paper's (servers busy from the first second); evenly spaced, the last host has finished
    after `last_done_s`. `in_flight` hosts have begun before the first result is seen: the blast radius.
    """

    interval_s: float
    total_s: float
    last_done_s: float
    in_flight: int


@dataclass(frozen=True)
class Capacity:
    """The answer: the safe bound, the quick one, and what a deadline would take (None: no deadline was given)."""

    load: Load
    whole: Bound
    download: Bound
    servers_needed: int | None


def capacity(load: Load, *, deadline_s: float | None = None) -> Capacity:
    """Work out both bounds; raises RefusedError when no number of servers can meet the deadline."""
    return Capacity(load, bound(load, load.update_s), bound(load, load.download_s),
                    None if deadline_s is None else servers_needed(load, deadline_s))


def bound(load: Load, held_s: float) -> Bound:
    """Return the bound when each host holds one of the servers' slots for `held_s` seconds."""
    update, held = Fraction(load.update_s), Fraction(held_s)
    interval = held / (load.servers * load.per_server)
    return Bound(
        interval_s=float(interval), total_s=float(load.hosts * interval + update - held),
        last_done_s=float((load.hosts - 1) * interval + update),
        in_flight=min(load.hosts, math.ceil(update / interval)),
    )


def servers_needed(load: Load, deadline_s: float) -> int:
    """Return how many servers let the last of evenly spaced hosts finish in time; raises RefusedError if none do."""
    spare = Fraction(deadline_s) - Fraction(load.update_s)
    if spare < 0 or (spare == 0 and load.hosts > 1):
        raise RefusedError(f"no number of servers updates {load.hosts} hosts in {duration.show(deadline_s)} when one "
                           f"host takes {duration.show(load.update_s)}; allow more time")
    if load.hosts == 1:
        return 1
    return max(1, math.ceil((load.hosts - 1) * Fraction(load.download_s) / (load.per_server * spare)))


def check_blast(load: Load, chosen: Bound, budget: int) -> None:
    """Raise RefusedError when more hosts than `budget` would be in flight before the first result is seen."""
    if budget < 1:
        raise UsageError(f"the blast budget is {budget}; it must be at least 1")
    if chosen.in_flight > budget:
        slower_s = math.ceil(10 * Fraction(load.update_s) / budget) / 10
        raise RefusedError(
            f"{chosen.in_flight} hosts would be in flight before the first result is seen and the blast budget is "
            f"{budget}; trigger no faster than every {duration.show(slower_s)} or raise the budget")
