"""The one place that starts processes: argv lists only, failures carry a command to replay."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from plumbing.errors import CommandError

Argument = str | bytes | os.PathLike[str]
NOBODY = 65534
"""The user and group that own nothing, by number: a recovery image has no names for them."""
KILL_WAIT_S = 5.0
"""How long a killed program may take to go, in seconds; one in an uninterruptible read or write goes when that ends."""


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

    `env` replaces the environment when given; `timeout_s` is in seconds, None waits for ever. When its time is over, or
    the wait is broken off, the program is killed with everything it started; what even so stays is left behind.
    Raises CommandError when the program is missing, exceeds its time, or (with `check`) exits non-zero.
    """
    words = tuple(os.fsdecode(word) for word in argv)
    try:
        # a process group of its own can be killed whole, and what a program starts tends to stay in it
        program = subprocess.Popen(
            words, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=cwd, env=env, process_group=0)
    except OSError as error:
        raise not_started(argv, error) from error
    try:
        stdout, stderr = program.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        stuck = "" if _end(program) else ", and not even a kill ends it (it waits for a disk?)"
        raise CommandError(f"{words[0]} did not finish in {timeout_s:.0f} s{stuck}; try: {replayable(argv)}") from error
    except BaseException:
        _end(program)
        raise
    result = Completed(words, program.returncode, stdout, stderr)
    if check and result.status != 0:
        raise CommandError(f"{words[0]} failed with status {result.status}: {_complaint(stderr)}; try: "
                           f"{replayable(argv)}")
    return result


def _end(program: subprocess.Popen[bytes]) -> bool:
    """Kill a program and its process group; says whether it is gone, waits KILL_WAIT_S at most."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    try:
        program.wait(KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        return False
    finally:
        for stream in (program.stdin, program.stdout, program.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
    return True


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
