"""Tickets under attack: real daemons killed, hosts stopped, clocks set, answers lost; the judge reads what hosts saw.

Faults 26 to 29 of the design, and a PostgreSQL whose processes are all killed at once: never more live tickets than
slots, and no acknowledged grant lost by a crash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import campaign
import pytest
from history import Op, judge
from pytest_postgresql.executors import PostgreSQLExecutor

Tell = Callable[[str], None]
SLOTS = sum(campaign.SLOTS.values())
QUICK_S, LONG_S = 4.0, 120.0
RUNS = (("sqlite", "crash lost", 1), ("sqlite", "jump stop", 1), ("postgresql", "crash lost", 2),
        ("postgresql", "jump stop", 1), ("postgresql", "fall", 2))
"""Database, what happens in a run, and to how many daemons on it."""
MOST_OVERTAKEN = 15
"""How many hosts that came later are served before one, at most, while nothing crashes."""


def enough(ops: list[Op], nemeses: list[str]) -> bool:
    """Tell whether a run has shown what it is for: one in which nothing happened proves nothing."""
    told = Counter(op.outcome for op in ops)
    verdict = judge(ops, campaign.SLOTS)
    return (verdict.grants >= 3 * SLOTS and verdict.most_live >= SLOTS
            and ("lost" not in nemeses or told["unknown"] > 0)
            and ("stop" not in nemeses or told["refused"] > 0))  # a stopped holder came back and its ticket was gone


def attack(request: pytest.FixtureRequest, folder: Path, backend: str, name: str, daemons: int, seconds: float,
           tell: Tell) -> None:
    nemeses, database = name.split(), ""
    server: PostgreSQLExecutor | None = None
    if backend == "postgresql":
        server, database = map(request.getfixturevalue, ("postgresql_proc", "postgresql_url"))
    ops, run = campaign.run(folder, database, nemeses, daemons=daemons, seconds=seconds, seed=len(name),
                            enough=lambda ops: enough(ops, nemeses), postgresql=server)
    verdict = judge(ops, campaign.SLOTS, run.seen)
    told = Counter(op.outcome for op in ops)
    tell(f"| {backend:10} | {daemons:7} | " + " | ".join(str(number).rjust(len(head)) for head, number in {
        "crashes": run.done.count("crash"), "falls": run.done.count("fall"), "stops": run.done.count("stop"),
        "jumps": run.done.count("jump"),
        "answers lost": sum(cutter.lost for cutter in run.cutters), "requests": len(ops), "ok": told["ok"],
        "refused": told["refused"], "busy": told["busy"], "unknown": told["unknown"], "grants": verdict.grants,
        "live/slots": f"{verdict.most_live}/{SLOTS}", "statuses": len(run.seen), "overtook": verdict.overtaken,
        "faults": len(verdict.faults)}.items()) + " |")
    assert verdict.faults == ()
    assert all(run.done.count(one) >= campaign.TURNS for one in nemeses if one != "lost")
    assert enough(ops, nemeses)
    assert sum(cutter.spoken for cutter in run.cutters) > 0, "nobody asked in a session"
    assert judge(ops, {**campaign.SLOTS, "a": campaign.SLOTS["a"] - 1}).faults, "this run could not have failed"
    if not {"crash", "fall"} & {*nemeses}:
        assert verdict.overtaken <= MOST_OVERTAKEN


@pytest.mark.parametrize(("backend", "name", "daemons"), RUNS)
def test_never_more_than_the_slots_and_nothing_lost(
    request: pytest.FixtureRequest, tmp_path: Path, tell: Tell, backend: str, name: str, daemons: int,
) -> None:
    attack(request, tmp_path, backend, name, daemons, QUICK_S, tell)


@pytest.mark.nightly
@pytest.mark.parametrize(("backend", "name", "daemons"), [
    ("sqlite", "crash jump lost", 1), ("sqlite", "crash jump lost stop", 1), ("postgresql", "crash fall jump lost", 2),
    ("postgresql", "crash fall jump lost stop", 2)])
def test_for_a_long_time_with_everything_at_once(
    request: pytest.FixtureRequest, tmp_path: Path, tell: Tell, backend: str, name: str, daemons: int,
) -> None:
    attack(request, tmp_path, backend, name, daemons, LONG_S, tell)
