"""A program of the lab that goes on running: QEMU, a control server, an ssh connection.

I/O. The counterpart of plumbing.run for what does not end by itself. Its standard output and error go to a
log file, so a dead program's last words are always there to show.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from plumbing import clock, run
from plumbing.errors import CommandError


class Process:
    """One running program, started at once.

    With `pipes`, standard input and output are pipes for the caller instead (and only errors are logged).
    """

    def __init__(
        self, argv: Sequence[run.Argument], *, name: str, log: Path, pipes: bool = False,
        cwd: Path | None = None, env: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.log = name, log
        with log.open("ab") as errors:
            # A session of its own: ^C at the terminal reaches the lab, which then ends its programs in order.
            self._popen = run.spawn(argv, errors=errors, pipes=pipes, cwd=cwd, env=env)

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._popen.pid

    @property
    def stdin(self) -> IO[bytes]:
        """The program's standard input (with `pipes`)."""
        assert self._popen.stdin is not None, "the process was started without pipes"
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """The program's standard output (with `pipes`)."""
        assert self._popen.stdout is not None, "the process was started without pipes"
        return self._popen.stdout

    @property
    def running(self) -> bool:
        """Whether it is alive now."""
        return self._popen.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal, None while it runs."""
        return self._popen.poll()

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and return the exit status; raises CommandError after `timeout_s` seconds."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"{self.name} (process {self.pid}) still runs after {timeout_s:.0f} s; "
                               f"its log is {self.log}") from error

    def stop(self, grace_s: float = 5.0) -> int:
        """Ask it to end (SIGTERM), then make it (SIGKILL); returns its exit status."""
        if self.running:
            self._popen.send_signal(signal.SIGTERM)
            deadline = clock.monotonic() + grace_s
            try:
                return self._popen.wait(max(0.0, deadline - clock.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
        return self._popen.wait()

    def kill(self) -> None:
        """End it at once (SIGKILL) and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def last_words(self, lines: int = 12) -> str:
        """Return the end of its log."""
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])
