"""Is a provider well? What a check found and what was known, in; what is known now, out. Pure.

One lost packet must not take a provider out, and one lucky answer must not bring it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

DOWN_AFTER = 3
"""Failed checks in a row after which a provider is left out."""
UP_AFTER = 2
"""Good checks in a row after which it is back."""


@dataclass(frozen=True)
class Finding:
    """What one check found: a reason when it failed, and the load (0 to 1) if the provider told it."""

    failed: str = ""
    load: float | None = None


@dataclass(frozen=True)
class Health:
    """What is known of one provider. `why` is empty while it is well; `row` counts checks that said otherwise."""

    why: str = ""
    row: int = 0
    load: float | None = None

    @property
    def down(self) -> bool:
        """Whether no tickets are to name it."""
        return bool(self.why)


def askable(url: str) -> bool:
    """Tell whether a check can be made of `url`: http://name…, or tcp://name:port."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.scheme == "http" or (parts.scheme == "tcp" and parts.port is not None))
    except ValueError:
        return False


def judge(known: Health, found: Finding) -> Health:
    """Return what is known after one more check."""
    if known.down:
        if found.failed:
            return Health(found.failed, 0)
        row = known.row + 1
        return Health(load=found.load) if row >= UP_AFTER else Health(known.why, row)
    if not found.failed:
        return Health(load=found.load)
    row = known.row + 1
    return Health(f"{found.failed}, {row} times in a row", 0) if row >= DOWN_AFTER else Health("", row)
