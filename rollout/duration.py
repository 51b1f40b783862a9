"""Lengths of time as people write them: 90s, 30m, 1h30m. Pure; the one place that parses them."""

from __future__ import annotations

import re

from plumbing.errors import UsageError

_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
MAX_S = 10 * 366 * 86400
"""Nobody waits longer: ten years, in seconds."""

_FORM = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)


def parse(text: str) -> float:
    """Return seconds; a bare number is seconds. Raises UsageError."""
    found = _FORM.fullmatch(text.strip())
    if found is None or not any(found.groups()) or len(text) > 32:
        raise UsageError(f"{text[:80]!r} is not a length of time; write it as 90s, 30m or 1h30m")
    total = sum(float(number) * unit for number, unit in zip(found.groups(), _UNITS_S.values(), strict=True) if number)
    if total > MAX_S:
        raise UsageError(f"{text!r} is longer than ten years; write a length of time as 90s, 30m or 1h30m")
    return total


def show(seconds: float) -> str:
    """Write seconds so that `parse` reads them back, to a tenth of a second."""
    left, parts = round(seconds, 1), ""
    for unit, size in _UNITS_S.items():
        count = left if unit == "s" else left // size
        if count:
            parts += f"{count:.1f}".removesuffix(".0") + unit
        left = round(left - count * size, 1)
    return parts or "0s"
