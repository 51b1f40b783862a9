"""A small client for QEMU's machine protocol: the power button, and a picture of the screen.

I/O over a unix socket. Protocol: QEMU's docs/interop/qmp-spec.rst; one JSON object a line, events in between.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import sleep

from plumbing import clock
from plumbing.errors import CommandError, CorruptError

_STEP_S = 0.05


class Qmp:
    """One connection to a running QEMU, used by one thread at a time.

    Connecting waits up to `timeout_s` seconds for QEMU to open its socket, and no longer than it is `alive`.
    """

    def __init__(self, path: Path, timeout_s: float = 30.0, alive: Callable[[], bool] = lambda: True) -> None:
        self._path = path
        self._socket = _connect(path, timeout_s, alive)
        self._socket.settimeout(timeout_s)
        self._stream = self._socket.makefile("rwb")
        self._read()  # the greeting
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Drop the connection; the machine goes on."""
        with suppress(OSError):  # QEMU may have ended with a question unsent
            self._stream.close()
        self._socket.close()

    def execute(self, command: str, **arguments: object) -> object:
        """Run one QMP command and return its answer; raises CommandError when QEMU refuses it."""
        question = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._stream.write(json.dumps(question).encode() + b"\n")
            self._stream.flush()
            while True:
                answer = self._read()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise CommandError(f"QEMU refused {command}: {_described(answer['error'])}")
        except (OSError, ValueError) as error:
            raise CommandError(f"QEMU at {self._path} does not answer {command}; did it end?") from error

    def quit(self) -> None:
        """End QEMU in order: buffers are written, the guest is not asked."""
        self.execute("quit")

    def reset(self) -> None:
        """Press the reset button."""
        self.execute("system_reset")

    def powerdown(self) -> None:
        """Press the power button; the guest decides."""
        self.execute("system_powerdown")

    def status(self) -> str:
        """Return running, paused, shutdown, internal-error, …"""
        answer = self.execute("query-status")
        if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
            raise CorruptError("QEMU answered query-status with something else")
        return str(answer["status"])

    def screenshot(self, path: Path) -> None:
        """Write what the screen shows as a PNG file."""
        self.execute("screendump", filename=str(path), format="png")

    def _read(self) -> dict[str, object]:
        try:
            line = self._stream.readline()
        except OSError as error:
            raise CommandError(f"QEMU at {self._path} does not answer ({error}); did it end?") from error
        if not line:
            raise CommandError(f"QEMU at {self._path} closed the connection; did it end?")
        value = json.loads(line)
        if not isinstance(value, dict):
            raise CorruptError(f"QEMU sent {value!r}, which is no QMP message")
        return value


def _connect(path: Path, timeout_s: float, alive: Callable[[], bool]) -> socket.socket:
    deadline = clock.monotonic() + timeout_s
    while True:
        made = socket.socket(socket.AF_UNIX)
        try:
            made.connect(str(path))
            return made
        except (FileNotFoundError, ConnectionRefusedError) as error:
            made.close()
            if clock.monotonic() > deadline or not alive():
                raise CommandError(f"QEMU did not open {path} within {timeout_s:.0f} s, or ended") from error
        sleep(_STEP_S)


def _described(error: object) -> str:
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
