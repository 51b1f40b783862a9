"""A rollout's state as JSON: to keep it, and as administrators see it. Pure; docs/protocols/rollout.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from plumbing.errors import CorruptError, UsageError
from rollout.executor import Pace, Phase, State


def to_json(state: State) -> dict[str, object]:
    """Return everything `from_json` needs."""
    return {
        "spec": 1, "pace": asdict(state.pace), "waves": [list(wave) for wave in state.waves],
        "phase": state.phase.value, "reason": state.reason, "in_flight": dict(state.in_flight),
        "healthy": sorted(state.healthy),
        "failed": dict(state.failed), "accepted": sorted(state.accepted), "last_trigger": state.last_trigger,
        "held": dict(state.held),
    }


def from_json(kept: Mapping[str, Any]) -> State:
    """Read what `to_json` wrote; raises CorruptError on anything else."""
    try:
        if kept["spec"] != 1:
            raise CorruptError(f"the rollout was written in format {kept['spec']!r}; this reroot reads format 1")
        return State(
            pace=Pace(**kept["pace"]), waves=tuple(tuple(wave) for wave in kept["waves"]), phase=Phase(kept["phase"]),
            reason=str(kept["reason"]), in_flight={str(h): float(t) for h, t in kept["in_flight"].items()},
            healthy=frozenset(kept["healthy"]), failed={str(h): str(why) for h, why in kept["failed"].items()},
            accepted=frozenset(kept["accepted"]),
            last_trigger=None if kept["last_trigger"] is None else float(kept["last_trigger"]),
            held={str(h): str(why) for h, why in kept.get("held", {}).items()},  # none before there was a loss report
        )
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise CorruptError(f"the rollout's kept state cannot be read ({error!r}); start another") from error


def view(state: State, now: float, knob_s: float | None = None) -> dict[str, object]:
    """Return the rollout as administrators see it."""
    hosts = [host for wave in state.waves for host in wave]
    pending = state.pending()
    wave = next((n for n, members in enumerate(state.waves, 1) if any(not state.began(h) for h in members)),
                len(state.waves))
    return {
        "phase": state.phase.value, "reason": state.reason,
        "interval_s": state.interval_s(knob_s), "knob_s": knob_s, "target_s": state.pace.target_s,
        "wave": wave, "waves": len(state.waves),
        "hosts": len(hosts), "pending": len(pending), "healthy": len(state.healthy),
        "in_flight": [{"host": host, "since_s": round(max(0.0, now - since), 1)}
                      for host, since in state.in_flight.items()],
        "held": [{"host": host, "reason": why} for host, why in state.held.items()],
        "failed": [{"host": host, "reason": why, "accepted": host in state.accepted}
                   for host, why in state.failed.items()],
        "blast_budget": state.pace.blast_budget, "failure_budget": state.pace.failure_budget,
        "next": pending[:5],
    }
