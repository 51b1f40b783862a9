"""Which HTTP status an error has, and what is said with it. Pure; docs/protocols/host-api.md has the table."""

from __future__ import annotations

from dataclasses import dataclass, field

from control.book import ConflictError
from control.second_copies import NoRoomError
from plumbing.errors import BusyError, Kind, RerootError

STATUSES: dict[Kind, int] = {
    Kind.USAGE: 400, Kind.CORRUPT: 400, Kind.TRUST: 401, Kind.REFUSED: 403, Kind.NOT_FOUND: 404, Kind.BUSY: 429,
    Kind.NETWORK: 502, Kind.CONFIG: 500, Kind.DISK: 500, Kind.COMMAND: 500, Kind.INTERNAL: 500,
}


@dataclass(frozen=True)
class Refusal:
    """A status, the JSON of its body, and headers."""

    status: int
    body: dict[str, str]
    headers: dict[str, str] = field(default_factory=dict)


def refusal(error: RerootError) -> Refusal:
    """Return how `error` is told to whoever asked."""
    body = {"kind": error.kind.value, "value": error.sentence}
    if isinstance(error, ConflictError):
        return Refusal(409, body)
    if isinstance(error, NoRoomError):
        return Refusal(507, body)
    if isinstance(error, BusyError):
        return Refusal(STATUSES[error.kind], body, {"Retry-After": str(max(1, round(error.retry_after_s)))})
    return Refusal(STATUSES[error.kind], body)
