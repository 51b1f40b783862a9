"""How many slots a provider has by its load: one more while it is idle and wanted, a part of them when it is not. Pure.

Additive increase, multiplicative decrease: many who share a resource and know nothing of each other come to equal
shares by it, and leave an overload faster than they come to it. Source: Chiu and Jain 1989, as in TCP (RFC 5681).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from throttle.tickettab import Adaptive


@dataclass(frozen=True)
class Measure:
    """What is known at one moment: slots as they are, tickets that are live, hosts that wait, and the load, 0 to 1."""

    slots: int
    live: int
    waiting: int
    load: float | None


@dataclass(frozen=True)
class Step:
    """The slots from now on, and the sentence that says why they are so many."""

    slots: int
    why: str


def step(bounds: Adaptive, now: Measure) -> Step:
    """Return the next step within `bounds`; a load that nobody knows changes nothing."""
    slots = min(max(now.slots, bounds.least), bounds.most)
    if slots != now.slots:
        return Step(slots, f"{now.slots} → {slots} slots: the bounds are {bounds.least} to {bounds.most}")
    if now.load is None or not math.isfinite(now.load):
        return Step(slots, f"{slots} slots stay: the provider does not tell its load")
    load = f"load {now.load:.2f}"
    if now.load > bounds.high:
        fewer = max(bounds.least, min(slots - 1, math.floor(slots * bounds.factor)))
        if fewer < slots:
            return Step(fewer, f"{slots} → {fewer} slots: {load} is over {bounds.high:.2f}")
        return Step(slots, f"{slots} slots stay: {load} is over {bounds.high:.2f}, and fewer are not allowed")
    if now.load >= bounds.low:
        return Step(slots, f"{slots} slots stay: {load} is between {bounds.low:.2f} and {bounds.high:.2f}")
    if now.live < slots and not now.waiting:
        return Step(slots, f"{slots} slots stay: {load}, and {slots - now.live} of them are free")
    if slots >= bounds.most:
        return Step(slots, f"{slots} slots stay: {load} is under {bounds.low:.2f}, and more are not allowed")
    return Step(slots + 1, f"{slots} → {slots + 1} slots: {load} is under {bounds.low:.2f} and all are taken")
