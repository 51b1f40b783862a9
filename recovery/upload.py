"""A second copy to the control server (I/O): in pieces, resumed where the server is, bounded in attempts.

The protocol is docs/protocols/second-copy.md. What may be gone at the next try is tried again; a refusal is raised.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from plumbing.errors import CorruptError, Kind, RerootError
from plumbing.http import Client
from recovery.machine import PASSING

PIECE_BYTES = 1 << 20
FAILURES = 8
"""So many failed requests without a stored piece between them are too many."""
PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0
"""The first pause after a failure, doubled each time, in seconds."""
ANSWER_S = 300.0
"""How long an answer may take as a whole, in seconds: to the last piece the server reads all of the copy back."""


class Copy(Protocol):
    """What is sent: precious.sealing.Sealed."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from `offset`, up to `length` of them."""


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


class Upload:
    """One copy on its way to one server; `path` is that of the copy, `digest` its BLAKE3 in hex."""

    def __init__(self, client: Client, path: str, copy: Copy, digest: str, *, say: Callable[[str], None],
                 check: Callable[[], None] = lambda: None, pause: Callable[[float], None] = _wait) -> None:
        self._client, self._path, self._copy, self._digest = client, path, copy, digest
        self._say, self._check, self._pause = say, check, pause

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Send until the server has said that the copy is stored.

        `check` is asked before every request and may raise. Raises what the server refuses it with, and the last
        failure (a network that is gone, nonsense for an answer, a server too busy) when there were FAILURES of them.
        """
        offset, failures = None, 0
        while True:
            self._check()
            try:
                came, stored = self._announce() if offset is None else self._piece(offset)
            except RerootError as error:
                failures += 1
                if error.kind not in {*PASSING, Kind.INTERNAL} or failures >= FAILURES:
                    raise
                seconds = min(LONGEST_PAUSE_S, PAUSE_S * 2.0 ** (failures - 1))
                self._say(f"{error.sentence}; again in {seconds:.0f} s")
                self._client.close()
                self._pause(seconds)
                offset = None
                continue
            if stored:
                return
            if offset is not None and came > offset:
                failures = 0
            offset = came
            progress(came, self._copy.size)

    def _announce(self) -> tuple[int, bool]:
        told = self._client.post_json(self._path, {"bytes": self._copy.size, "blake3": self._digest},
                                      max_bytes=1 << 16, deadline_s=ANSWER_S).accepted()
        return self._came(told)

    def _piece(self, offset: int) -> tuple[int, bool]:
        data = self._copy.read(offset, PIECE_BYTES)
        told = self._client.request("PUT", f"{self._path}?blake3={self._digest}&offset={offset}", body=data,
                                    max_bytes=1 << 16, deadline_s=ANSWER_S).accepted()
        return self._came(told)

    def _came(self, told: object) -> tuple[int, bool]:
        offset = told.get("offset") if isinstance(told, dict) else None
        if not isinstance(told, dict) or isinstance(offset, bool) or not isinstance(offset, int) or not (
                0 <= offset <= self._copy.size) or (offset == self._copy.size) != (told.get("stored") is True):
            raise CorruptError(f"{self._client.base_url} does not say how much of the second copy it has; are server "
                               "and recovery image of the same version?")
        return offset, told.get("stored") is True
