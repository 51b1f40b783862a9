"""The rescue menu (I/O): the same few choices on every console, for whoever comes to the machine.

Nothing here changes a disk: filesystems are checked without repair and mounted read-only with no replay of their
journals. A machine that was lost on the way runs its order again by itself while nobody is at a keyboard.
"""

from __future__ import annotations

import fcntl
import os
import select
import termios
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from plumbing import clock
from plumbing.errors import RerootError
from recovery.log import plain
from recovery.machine import Event

Lines = Callable[[], Iterable[str]]

MENU = """
  1  what this machine is
  2  run the order again
  3  check the disks and mount them read-only under /mnt
  4  a shell on this console
  5  the last lines of the log
  6  reboot
"""
LONGEST_LINE = 4096
"""Bytes of a line that is typed; what a noisy serial line sends beyond it is dropped."""

SHELL = ("/bin/busybox", "sh", "-l")
SHELL_ENVIRONMENT = {"PATH": "/bin:/sbin:/usr/bin:/usr/sbin", "HOME": "/root", "TERM": "linux", "PS1": "rescue# "}


@dataclass(frozen=True)
class Choices:
    """What the menu's entries do; each yields the lines to show."""

    describe: Lines
    check_disks: Lines
    log: Lines


@dataclass
class Console:
    """One place where a person may sit: an open terminal."""

    name: str
    fd: int
    folder: Path = Path("/dev")
    typed: bytes = b""
    shell: int | None = None
    """Process id of the shell that has this console, if one has."""
    pidfd: int | None = field(default=None)

    def reopen(self) -> bool:
        """Open the terminal anew: the kernel hangs it up for everyone when a shell that had it ends.

        The old one is closed last, so that whoever is at the other end never sees a line that nobody holds.
        """
        old = self.fd
        try:
            self.fd = open_terminal(self.folder / self.name, os.O_RDWR)
        except OSError:
            self.fd = -1
        os.close(old)
        return self.fd >= 0

    def write(self, text: str) -> None:
        """Print; a console that went away is not an error."""
        with suppress(OSError):
            os.write(self.fd, text.replace("\n", "\r\n" if not os.isatty(self.fd) else "\n").encode())


def console_names(path: Path = Path("/proc/consoles")) -> list[str]:
    """Return the names of the kernel's consoles that can be read from, e.g. ttyS0 and tty0."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ["console"]
    names = [line.split()[0] for line in lines if line.split()]
    return names or ["console"]


def open_consoles(names: Iterable[str], folder: Path = Path("/dev")) -> list[Console]:
    """Open those of the consoles that exist."""
    found = []
    for name in names:
        with suppress(OSError):
            found.append(Console(name, open_terminal(folder / name, os.O_RDWR), folder))
    return found


def open_terminal(path: Path, how: int) -> int:
    """Open a terminal that must never stop us: not as ours, not blocking when its flow is stopped."""
    return os.open(path, how | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)


class Screen:
    """A terminal to print on, opened anew when it was hung up; a text stream as recovery.log wants it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def write(self, text: str) -> int:
        """Print; raises OSError when the terminal is gone or its flow is stopped."""
        data = text.encode("utf-8", "replace")
        if self._fd >= 0:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                raise
            except OSError:
                os.close(self._fd)
        self._fd = -1
        self._fd = open_terminal(self._path, os.O_WRONLY)
        return os.write(self._fd, data)

    def flush(self) -> None:
        """Nothing is held back."""


def start_shell(console: Console, argv: Sequence[str] = SHELL) -> int:
    """Give `console` to a shell as its controlling terminal; returns the process id.

    plumbing.run is for programs whose output is read; this one talks to a person, so it is started here.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.set_blocking(console.fd, True)
        with suppress(OSError):
            fcntl.ioctl(console.fd, termios.TIOCSCTTY, 1)
        for fd in (0, 1, 2):
            os.dup2(console.fd, fd)
        os.execve(argv[0], list(argv), SHELL_ENVIRONMENT)  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


class Menu:
    """The menu on several consoles at once.

    `retry_s` is how many seconds without a key until the order is run again by itself; None waits for a person.
    `alive` is called at least every few seconds, for the watcher; `now` is the clock that `retry_s` runs on.
    """

    def __init__(self, consoles: Sequence[Console], choices: Choices, *, why: str, retry_s: float | None,
                 alive: Callable[[], None] | None = None, shell: Sequence[str] = SHELL,
                 now: Callable[[], float] = clock.monotonic) -> None:
        self._consoles = list(consoles)
        self._choices = choices
        self._why = plain(why)
        self._retry_s = retry_s
        self._alive = alive
        self._shell = shell
        self._now = now

    def run(self) -> Event:
        """Serve the consoles until someone chooses, or time does: Event.AGAIN or Event.DONE (reboot)."""
        for console in self._consoles:
            self._show(console)
        deadline = self._deadline()
        while True:
            if self._alive is not None:
                self._alive()
            busy = any(console.shell is not None for console in self._consoles)
            left = None if deadline is None or busy else deadline - self._now()
            if left is not None and left <= 0:
                self._tell("nobody is here: running the order again")
                return Event.AGAIN
            for fd in self._wait(left):
                deadline = self._deadline()
                event = self._heard(fd)
                if event is not None:
                    return event

    def _heard(self, fd: int) -> Event | None:
        console = next((c for c in self._consoles if fd in (c.fd, c.pidfd)), None)
        if console is None:
            return None
        if fd != console.pidfd:
            return self._read(console)
        self._shell_ended(console)
        return None

    def _deadline(self) -> float | None:
        return None if self._retry_s is None else self._now() + self._retry_s

    def _wait(self, left_s: float | None) -> list[int]:
        poll = select.poll()
        for console in self._consoles:
            if console.pidfd is not None:
                poll.register(console.pidfd, select.POLLIN)
            else:
                poll.register(console.fd, select.POLLIN)
        tick_s = 10.0 if left_s is None else min(10.0, max(0.0, left_s))
        return [fd for fd, _ in poll.poll(tick_s * 1000 + 1)]

    def _tell(self, text: str) -> None:
        for console in self._consoles:
            console.write(f"{text}\n")

    def _show(self, console: Console) -> None:
        again = "" if self._retry_s is None else (
            f"The order is run again in {self._retry_s / 60:.0f} min if nobody presses a key.\n")
        console.write(f"\nreroot rescue: {self._why}\n{again}{MENU}\nchoose 1-6: ")

    def _read(self, console: Console) -> Event | None:
        try:
            data = os.read(console.fd, 1024)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:  # hung up: a console that reads nothing for ever must not spin
            self._consoles.remove(console)
            return None
        console.typed = (console.typed + data)[-LONGEST_LINE:]
        while True:
            line, found, rest = console.typed.replace(b"\r", b"\n").partition(b"\n")
            if not found:
                return None
            console.typed = rest
            event = self._choose(console, line.strip())
            if event is not None or console.shell is not None:
                return event

    def _choose(self, console: Console, line: bytes) -> Event | None:
        if line == b"2":
            self._tell("running the order again")
            return Event.AGAIN
        if line == b"6":
            self._tell("rebooting")
            return Event.DONE
        if line == b"4":
            console.write("leave the shell with `exit` to come back to this menu\n")
            console.shell = start_shell(console, self._shell)
            console.pidfd = os.pidfd_open(console.shell)
            return None
        source = {b"1": self._choices.describe, b"3": self._choices.check_disks, b"5": self._choices.log}.get(line)
        if source is not None:
            try:
                for text in source():
                    console.write(f"{plain(text)}\n")
            except RerootError as error:
                console.write(f"{error.sentence}\n")
        self._show(console)
        return None

    def _shell_ended(self, console: Console) -> None:
        assert console.shell is not None and console.pidfd is not None
        with suppress(ChildProcessError):
            os.waitpid(console.shell, 0)
        os.close(console.pidfd)
        console.shell = console.pidfd = None
        if console.reopen():
            self._show(console)
        else:
            self._consoles.remove(console)
