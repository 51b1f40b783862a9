"""Whether a host may be told to reboot, as far as losses go (pure: policy, report, answers and now in; a verdict out).

docs/protocols/loss.md. A report counts while it was made under the policy of today, of the system that runs today, and
not too long ago; else a new one is wanted first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from precious.losses import Finding, LossReport, blocks
from precious.policy import Policy
from precious.rules import LossRule

FRESH_S = 86_400.0
"""How long a report counts, in seconds; the host looks again by itself before it reboots."""


RETRY_S = 300.0
"""How long a host that could make no report is left alone, in seconds."""


class Gate(StrEnum):
    """What stands between a host and its order."""

    CLEAR = "clear"
    NO_REPORT = "no_report"
    ASKS = "asks"
    REFUSED = "refused"


@dataclass(frozen=True)
class LossStanding:
    """What is known of one host's losses. Times are wall seconds; `accepted` are (finding, baseline) pairs.

    `received_s` is when it last sent a report, or why there is none (`failed`).

    `healthy_s` is when its system was last told to be well, which a new system is once, as it comes up.
    """

    host: str
    asked_s: float | None = None
    received_s: float | None = None
    report: LossReport | None = None
    failed: str = ""
    healthy_s: float | None = None
    accepted: frozenset[tuple[str, str]] = frozenset()

    def answers(self) -> frozenset[str]:
        """Return the findings of the report that were answered for."""
        report = self.report
        return frozenset() if report is None else frozenset(
            finding for finding, baseline in self.accepted if baseline == report.baseline)


@dataclass(frozen=True)
class Verdict:
    """The gate, why it is not clear, whether a new report is wanted, and the findings that somebody must answer for."""

    gate: Gate
    why: str = ""
    wants: bool = False
    open: tuple[Finding, ...] = field(default=())


def judge(policy: Policy, standing: LossStanding, now: float) -> Verdict:
    """Decide for one host at `now`."""
    host, rule = standing.host, policy.loss.rule
    report = standing.report if _counts(policy, standing, now) else None
    if report is None:
        if rule is LossRule.WARN:
            return Verdict(Gate.CLEAR, wants=_wants(standing, now))
        why = f"{host} waits for its loss report, which its agent makes"
        if standing.failed:
            why = f"{host} could make no loss report: {standing.failed}"
        return Verdict(Gate.NO_REPORT, why, wants=_wants(standing, now))
    left = tuple(blocks(rule, report, standing.answers()))
    if not left:
        return Verdict(Gate.CLEAR)
    if rule is LossRule.REFUSE:
        return Verdict(Gate.REFUSED, f"{host} would lose {_count(len(left))} that no rule keeps, which its policy "
                       f"refuses; see `reroot precious report {host}`, and keep or ignore them", open=left)
    return Verdict(Gate.ASKS, f"{host} waits for an answer to its loss report ({_count(len(left))}): "
                   f"`reroot precious report {host}`", open=left)


def _wants(standing: LossStanding, now: float) -> bool:
    return not standing.failed or standing.received_s is None or now - standing.received_s >= RETRY_S


def _counts(policy: Policy, standing: LossStanding, now: float) -> bool:
    received_s, asked_s = standing.received_s, standing.asked_s
    return (standing.report is not None and not standing.failed and standing.report.policy == policy.digest
            and received_s is not None and now - received_s < FRESH_S and (asked_s is None or asked_s <= received_s)
            and (standing.healthy_s is None or standing.healthy_s <= received_s))


def _count(number: int) -> str:
    return f"{number} finding{'s' if number > 1 else ''}"
