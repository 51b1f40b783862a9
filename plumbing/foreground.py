"""A command in the caller's place: its streams, its terminal, its signals, until it ends or must not go on.

I/O: one process group, signal handlers, the controlling terminal. For thin wrappers such as `getticket SERVICE -- …`:

    with Foreground() as place:          # from here on a signal ends us in order, so what is held is given back
        held = acquire()
        place.start(argv, env)
        status = place.wait(lambda: reason or None, look_s=1.0)

The command gets a process group of its own, so that all of it can be stopped and not only its first process. With a
terminal it becomes the terminal's foreground, as a shell does it: ^C reaches the command alone, ^Z stops both. In a
pipeline the terminal stays with the pipeline, whose other end may want it too, until the command itself asks for it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from plumbing import clock
from plumbing.run import not_started

STOP_S = 10.0
"""How long a command that must stop may take after SIGTERM before it is killed, in seconds."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
             signal.SIGWINCH, signal.SIGTSTP)
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

MustStop = Callable[[], str | None]
"""A sentence when the command must not go on, else None."""


class StoppedError(Exception):
    """The command was stopped because it must not go on; says why."""


class Foreground:
    """The signals of this process, handed on to one command; used in the main thread, round all that must be undone."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._woken, self._bell = socket.socketpair()
        self._before: dict[signal.Signals, object] = {}
        self._terminal: int | None = None

    def __enter__(self) -> Foreground:
        for end in (self._woken, self._bell):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGCHLD):
            if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup it stays ignored, here and in the command
                self._before[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
                 ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        if self._terminal is not None:
            os.close(self._terminal)
        for end in (self._woken, self._bell):
            end.close()

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the command; it forks, so call it before any other thread runs. Raises CommandError."""
        us = os.getpid()
        terminal = _our_terminal() if os.isatty(0) and os.isatty(1) else None

        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _die_with(us)
            if terminal is not None:  # here, for the command may read at once
                with suppress(OSError):
                    _hand_over(terminal, os.getpid())

        self._terminal = terminal
        # The command may run before Popen returns: a signal that comes in between waits until there is whom to send it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            self._child = subprocess.Popen(argv, env=dict(env), process_group=0, preexec_fn=prepare)  # noqa: PLW1509
        except OSError as error:
            if terminal is not None:
                _hand_over(terminal, os.getpgrp())
            raise not_started(argv, error) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self, must_stop: MustStop, look_s: float) -> int:
        """Wait for the command's end and return its exit status, 128 + n when signal n ended it.

        `must_stop` is asked every `look_s` seconds. Raises StoppedError when it said so and the command is gone.
        """
        assert self._child is not None
        try:
            return self._watch(self._child, must_stop, look_s)
        finally:
            self._take_terminal()
            self._child = None

    def _watch(self, child: subprocess.Popen[bytes], must_stop: MustStop, look_s: float) -> int:
        reason, kill_s = None, 0.0
        while (status := self._ended(child)) is None:
            if reason is None and (reason := must_stop()):
                _signal(child, signal.SIGTERM)
                _signal(child, signal.SIGCONT)
                kill_s = clock.monotonic() + STOP_S
            wait_s = look_s
            if reason is not None and (wait_s := kill_s - clock.monotonic()) <= 0:
                _signal(child, signal.SIGKILL)
                wait_s = STOP_S
            select.select([self._woken], [], [], wait_s)
            with suppress(BlockingIOError):
                self._woken.recv(4096)
        if reason is not None:
            _signal(child, signal.SIGKILL)  # what the command left behind in its group
            raise StoppedError(reason)
        return status

    def _ended(self, child: subprocess.Popen[bytes]) -> int | None:
        pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            return None
        if os.WIFSTOPPED(status):
            self._stopped(child, os.WSTOPSIG(status))
            return None
        child.returncode = os.waitstatus_to_exitcode(status)
        return child.returncode if child.returncode >= 0 else 128 - child.returncode

    def _stopped(self, child: subprocess.Popen[bytes], number: int) -> None:
        """Do as a shell's job does: stop with the command, go on with it; a command that wants the terminal gets it."""
        if number in {signal.SIGTTIN, signal.SIGTTOU} and self._give_terminal(child):
            _signal(child, signal.SIGCONT)
        elif number != signal.SIGSTOP or self._terminal is not None:
            self._take_terminal()
            os.kill(os.getpid(), signal.SIGSTOP)
            self._give_terminal(child)
            _signal(child, signal.SIGCONT)

    def _give_terminal(self, child: subprocess.Popen[bytes]) -> bool:
        """Make the command the foreground if we are it; after `bg` nobody here is."""
        terminal = _our_terminal()
        if terminal is None:
            return False
        if self._terminal is not None:
            os.close(self._terminal)
        self._terminal = terminal
        with suppress(OSError):
            _hand_over(terminal, child.pid)
        return True

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            if number != signal.SIGCHLD:
                _signal(self._child, number)
        elif number in _ENDING:
            raise SystemExit(128 + number)
        elif number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _take_terminal(self) -> None:
        """Take back what was given, but from nobody else."""
        if self._terminal is not None and self._child is not None:
            with suppress(OSError):
                if os.tcgetpgrp(self._terminal) == self._child.pid:
                    _hand_over(self._terminal, os.getpgrp())


def _our_terminal() -> int | None:
    """Return the controlling terminal if this process is in its foreground: only then does ^C concern it."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        if os.tcgetpgrp(terminal) == os.getpgrp():
            return terminal
    os.close(terminal)
    return None


def _hand_over(terminal: int, group: int) -> None:
    # Whoever is not in the foreground gets SIGTTOU for this, unless it is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _die_with(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent dies, by SIGKILL too; runs in the child."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before that
        os._exit(128 + signal.SIGTERM)


def unstartable(program: str, path: str) -> tuple[int, str] | None:
    """Return the exit status POSIX has for a command that cannot run (127 missing, 126 not executable) and a sentence.

    `path` is searched as execvp does; None when `program` can be tried.
    """
    folders = [""] if "/" in program else path.split(os.pathsep)
    found = [name for folder in folders if (name := Path(folder, program)).is_file()]
    if not found:
        return 127, f"{program}: there is no such command; check its spelling and PATH"
    if not any(os.access(one, os.X_OK) for one in found):
        return 126, f"{found[0]} is not executable; `chmod +x` it, or run it by its interpreter"
    return None
