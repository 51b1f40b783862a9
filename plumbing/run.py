"""The one place that starts processes: argv lists only, failures carry a command to replay."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from plumbing.errors import CommandError

Argument = str | bytes | os.PathLike[str]
NOBODY = 65534
"""The user and group that own nothing, by number: a recovery image has no names for them."""


@dataclass(frozen=True)
class Completed:
    """What a finished program left: its status and both streams as bytes."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, undecodable bytes kept as surrogates."""
        return self.stdout.decode("utf-8", "surrogateescape")


def replayable(argv: Sequence[Argument]) -> str:
    """Return the command line a person can paste into a shell."""
    return shlex.join(os.fsdecode(word) for word in argv)


def run(
    argv: Sequence[Argument],
    *,
    stdin: bytes | None = None,
    timeout_s: float | None = 120.0,
    check: bool = True,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run a program to its end and return what it printed.

    `env` replaces the environment when given; `timeout_s` is in seconds, None waits for ever.
    Raises CommandError when the program is missing, exceeds its time, or (with `check`) exits non-zero.
    """
    words = tuple(os.fsdecode(word) for word in argv)
    try:
        done = subprocess.run(
            words, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True, timeout=timeout_s, cwd=cwd, env=env, check=False,
        )
    except OSError as error:
        raise not_started(argv, error) from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{words[0]} did not finish in {timeout_s:.0f} s; try: {replayable(argv)}") from error
    result = Completed(words, done.returncode, done.stdout, done.stderr)
    if check and done.returncode != 0:
        raise CommandError(f"{words[0]} failed with status {done.returncode}: {_complaint(done.stderr)}; try: "
                           f"{replayable(argv)}")
    return result


def _complaint(stderr: bytes) -> str:
    """Return the first line, which tends to hold the cause, and the last, which tends to hold the outcome."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines() or ["it printed no reason"]
    return lines[0] if lines[0] == lines[-1] else f"{lines[0]} … {lines[-1]}"


def spawn(
    argv: Sequence[Argument],
    *,
    errors: IO[bytes],
    pipes: bool = False,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    powerless: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program that goes on running, in a session of its own, and return at once.

    What it prints goes to `errors`; with `pipes`, its standard input and output are unbuffered pipes for the caller
    instead, and only its errors go there. `env` replaces the environment when given. `powerless`: when we are root it
    runs as NOBODY, in no group. Raises CommandError when it cannot be started.
    """
    nobody = NOBODY if powerless and os.geteuid() == 0 else None
    try:
        return subprocess.Popen(
            tuple(os.fsdecode(word) for word in argv), stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else errors, stderr=errors,
            start_new_session=True, cwd=cwd, env=env, bufsize=0,
            user=nobody, group=nobody, extra_groups=None if nobody is None else ())
    except OSError as error:
        raise not_started(argv, error) from error


def not_started(argv: Sequence[Argument], error: OSError) -> CommandError:
    """Return the error for a program that the kernel did not start."""
    program = os.fsdecode(argv[0])
    if isinstance(error, FileNotFoundError):
        return CommandError(f"{program} is not installed on this machine; install it and try again")
    return CommandError(f"{program} cannot be started ({error.strerror}); try: {replayable(argv)}")
