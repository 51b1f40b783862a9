"""Who asked for precious files, and what became of it; I/O: appends to one file and reads it.

A line is on disk before the access that it tells of is answered. Strangers can be refused as often as they like, so of
refused requests only so many a minute are written, and how many were left out (docs/protocols/second-copy.md).
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from plumbing import clock, durable

REFUSED_A_MINUTE = 60
MAX_WORD = 200
"""Characters of anything that a request says of itself."""


@dataclass(frozen=True)
class Access:
    """One line; `outcome` is ok or the kind of the error, `why` its sentence."""

    who: str
    what: str
    host: str
    order: str
    address: str
    outcome: str = "ok"
    why: str = ""


class Audit:
    """The log of one site, written by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._refused: deque[float] = deque()
        self._more = 0

    def note(self, access: Access, now: float) -> None:
        """Append a line, `now` being wall seconds; raises DiskError, and then nothing may be given out."""
        with self._lock:
            if access.outcome != "ok":
                while self._refused and not 0 <= now - self._refused[0] < 60:
                    self._refused.popleft()
                if len(self._refused) >= REFUSED_A_MINUTE:
                    self._more += 1
                    return
                self._refused.append(now)
            told = {name: value[:MAX_WORD] for name, value in asdict(access).items()}
            address = told.pop("address")
            line: dict[str, object] = {"at": clock.iso(now), **told, "from": address}
            if self._more:
                line["more"] = self._more
            with durable.told(f"the audit log {self._path}", "the request was not answered"):
                durable.append(self._path, json.dumps(line).encode() + b"\n")
            self._more = 0

    def entries(self, host: str | None, limit: int) -> list[dict[str, object]]:
        """Return the last `limit` lines, of one host or all, oldest first; a torn line is passed over."""
        found: deque[dict[str, object]] = deque(maxlen=limit)
        try:
            with self._path.open("rb") as stream:
                for line in stream:
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(entry, dict) and host in {None, entry.get("host")}:
                        found.append(entry)
        except FileNotFoundError:
            return []
        return list(found)
