"""A machine's serial console: recorded with times, watched for patterns, typed on.

I/O: one thread reads the port; the log file is written line by line as they come, so it is there whatever
happens to the test.
"""

from __future__ import annotations

import codecs
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from plumbing import clock
from plumbing.errors import CommandError

_ESCAPE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-Z\\^-~])")
_ESCAPE_MAX = 256
"""Longest unfinished control sequence waited for, in bytes."""


def clean(data: bytes) -> tuple[bytes, bytes]:
    """Strip terminal control sequences and carriage returns; pure.

    Returns (clean bytes, an unfinished sequence at the end to be put before the next bytes).
    """
    data = _ESCAPE.sub(b"", data)
    cut = data.rfind(b"\x1b")
    if cut < 0 or len(data) - cut > _ESCAPE_MAX:
        return data.replace(b"\r", b""), b""
    return data[:cut].replace(b"\r", b""), data[cut:]


class Console:
    """Everything a machine wrote to its serial port since it was made, over all its boots."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self._text = ""
        self._cursor = 0
        self._alive = False
        self._input: IO[bytes] | None = None
        self._change = threading.Condition()
        self._born = clock.monotonic()

    def attach(self, output: IO[bytes], keyboard: IO[bytes]) -> None:
        """Begin to record a machine that was just started; patterns are looked for from here on."""
        with self._change:
            self._alive, self._input, self._cursor = True, keyboard, len(self._text)
        threading.Thread(target=self._record, args=(output,), name=f"console-{self.name}", daemon=True).start()

    @property
    def text(self) -> str:
        """All that was written so far, without control sequences."""
        with self._change:
            return self._text

    def tail(self, lines: int = 15) -> str:
        """Return the last lines, for error messages."""
        return "\n".join(self.text.splitlines()[-lines:])

    def send(self, text: str) -> None:
        """Type on the console (write "\\n" for Enter)."""
        if self._input is None:
            raise CommandError(f"nothing can be typed on {self.name}'s console, for it is off; start it first")
        try:
            self._input.write(text.encode())
            self._input.flush()
        except (OSError, ValueError) as error:
            raise CommandError(f"{self.name}'s console does not take what is typed; is it still on?") from error

    def wait_for(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait until `pattern` (a regular expression, multi-line) appears after the last match and return it.

        Each call goes on where the one before ended, as expect(1) does. Raises CommandError after
        `timeout_s` seconds or when the machine ends first; the message shows the console's end.
        """
        expression = re.compile(pattern, re.MULTILINE)
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = expression.search(self._text, self._cursor)
            if match:
                found.append(match)
            return bool(match) or not self._alive

        self._wait(look, timeout_s)
        if found:
            self._cursor = found[0].end()
            return found[0]
        reason = "did not appear within " + f"{timeout_s:.0f} s" if self._alive else "never appeared: it is off"
        raise CommandError(f"{pattern!r} {reason} on {self.name}'s console ({self.log}), which ends:\n{self.tail()}")

    def wait_for_end(self, timeout_s: float) -> None:
        """Wait until everything a machine that ended has written is recorded."""
        self._wait(lambda: not self._alive, timeout_s)

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> None:
        deadline = clock.monotonic() + timeout_s
        with self._change:
            while not ready():
                left = deadline - clock.monotonic()
                if left <= 0:
                    return
                self._change.wait(left)

    def _record(self, output: IO[bytes]) -> None:
        held, fresh_line = b"", True
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # a read may end inside a character
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{self._stamp()} --- power on ---\n")
            while data := output.read(65536):
                cleaned, held = clean(held + data)
                text = decode(cleaned)
                for line in text.splitlines(keepends=True):
                    log.write(f"{self._stamp()} {line}" if fresh_line else line)
                    fresh_line = line.endswith("\n")
                log.flush()
                with self._change:
                    self._text += text
                    self._change.notify_all()
            log.write(f"{'' if fresh_line else chr(10)}{self._stamp()} --- power off ---\n")
        with self._change:
            self._alive, self._input = False, None
            self._change.notify_all()

    def _stamp(self) -> str:
        return f"[{clock.iso(clock.wall())} {clock.monotonic() - self._born:9.3f}]"
