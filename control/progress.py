"""What a host's report means for its order; pure. Drawn in docs/machines/order.dot.

An order is `active` until its host begins, then `running`, then `completed`, `failed` or `cancelled`. A host without a
system to go back to tries a failed order again, so that one stays fetchable, and may still be completed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

OPEN_STATES = ("active", "running")
RECOVERY_PHASES = frozenset({"network", "order", "disks", "preserve", "wipe", "restore", "verify", "putback",
                             "bootloader", "finish"})

TRANSITIONS: dict[tuple[str, str], frozenset[str]] = {
    ("active", "begun"): frozenset({"running"}),
    ("active", "failed"): frozenset({"failed", "running"}),
    ("active", "healthy"): frozenset({"completed", "failed"}),
    ("active", "overdue"): frozenset({"failed", "cancelled"}),
    ("active", "cancel"): frozenset({"cancelled"}),
    ("running", "begun"): frozenset({"running"}),
    ("running", "failed"): frozenset({"failed", "running"}),
    ("running", "healthy"): frozenset({"completed", "failed"}),
    ("running", "overdue"): frozenset({"failed", "cancelled"}),
    ("running", "cancel"): frozenset({"cancelled"}),
    ("failed", "begun"): frozenset({"failed"}),
    ("failed", "failed"): frozenset({"failed"}),
    ("failed", "healthy"): frozenset({"completed", "failed"}),
    ("failed", "cancel"): frozenset({"cancelled"}),
}
"""(state, what happened) -> the states that may follow; what is not listed changes nothing."""


@dataclass(frozen=True)
class Standing:
    """How far an order has come; `recovering` while its host may have no other way than forward."""

    state: str
    phase: str | None = None
    recovering: bool = False
    message: str | None = None


@dataclass(frozen=True)
class Goal:
    """The order's mode, and what its host must say it runs: the manifest's digest, the release as NAME/VERSION/ARCH."""

    mode: str
    digest: str | None
    release: str | None


@dataclass(frozen=True)
class Report:
    """One report, already checked for its form."""

    phase: str
    event: str
    data: Mapping[str, object]
    message: str = ""


def judge(standing: Standing, goal: Goal, report: Report) -> Standing:
    """Return the order's standing after `report`."""
    if standing.state in {"completed", "cancelled"}:
        return standing
    recovering = report.phase != "health" and (standing.recovering or report.phase in RECOVERY_PHASES)
    moved = replace(standing, phase=report.phase, recovering=recovering)
    if report.event == "healthy":
        return _healthy(moved, goal, report.data)
    if report.event == "failed":
        if report.data.get("final") is False:
            return replace(moved, state="failed" if standing.state == "failed" else "running", message=report.message)
        went_back = report.data.get("wiped") is False and goal.mode == "upgrade"
        return replace(moved, state="failed", recovering=recovering and not went_back,
                       message=report.message or f"failed in {report.phase}")
    if report.event in {"begin", "progress", "done"} and standing.state == "active":
        return replace(moved, state="running")
    return moved


def _healthy(standing: Standing, goal: Goal, data: Mapping[str, object]) -> Standing:
    for name, wanted in (("digest", goal.digest), ("release", goal.release)):
        found = data.get(name)
        if wanted is not None and isinstance(found, str) and found:
            if found == wanted:
                return replace(standing, state="completed", message=None)
            return replace(standing, state="failed", message=f"the host runs {found} and not {wanted}")
    return replace(standing, state="failed", message="the host does not say which release it runs")


def overdue(standing: Standing, mode: str, now: float, deadline_s: float, expires_s: float) -> Standing:
    """Return the standing at `now`: an order that is not healthy by its deadline has failed; a rescue just ends."""
    if standing.state not in OPEN_STATES:
        return standing
    if mode == "rescue":
        ended = now >= expires_s
        return replace(standing, state="cancelled", message="its time is over") if ended else standing
    if now < min(deadline_s, expires_s):
        return standing
    last = f"last heard of in {standing.phase}" if standing.phase else "nothing was heard of it"
    return replace(standing, state="failed", message=f"not healthy before its deadline; {last}")


def cancelled(standing: Standing, why: str) -> Standing | None:
    """Return the standing after a withdrawal, None when the order is over and cannot be withdrawn."""
    return None if standing.state in {"completed", "cancelled"} else replace(standing, state="cancelled", message=why)


def is_current(standing: Standing, now: float, expires_s: float) -> bool:
    """Tell whether the host may still fetch the order."""
    if now >= expires_s:
        return False
    return standing.state in OPEN_STATES or (standing.state == "failed" and standing.recovering)
