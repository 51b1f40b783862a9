"""The one place that reads the clock; rules take `now` as a value."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def wall() -> float:
    """Seconds since 1970 (UTC); may jump. For people, signatures and expiries."""
    return time.time()


def monotonic() -> float:
    """Seconds from an arbitrary start; never jumps. For lifetimes and deadlines."""
    return time.monotonic()


def iso(seconds: float) -> str:
    """Write wall seconds as RFC 3339 in UTC with whole seconds, e.g. 2026-11-21T12:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_iso(text: str) -> float:
    """Read what `iso` wrote; raises ValueError on anything else."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
