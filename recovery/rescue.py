"""The rescue menu (I/O): the same few choices on every console, for whoever comes to the machine.

What the entries do is theirs (recovery.emergency); a console's course is drawn in docs/machines/rescue.dot.
A machine that was lost on the way runs its order again by itself while nobody is at a keyboard.
"""

from __future__ import annotations

import fcntl
import os
import select
import termios
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plumbing import clock
from plumbing.errors import RerootError
from recovery.dialogue import TABLE, Ask, Dialogue, Entry, Sitting, Turn
from recovery.log import plain
from recovery.machine import Event

LONGEST_LINE = 4096
"""Bytes of a line that is typed; what a noisy serial line sends beyond it is dropped."""

SHELL_ENVIRONMENT = {"PATH": "/bin:/sbin:/usr/bin:/usr/sbin", "HOME": "/root", "TERM": "linux", "PS1": "rescue# "}


@dataclass
class Console:
    """One place where a person may sit: an open terminal."""

    name: str
    fd: int
    folder: Path = Path("/dev")
    typed: bytes = b""
    sitting: Sitting = Sitting.MENU
    dialogue: Dialogue | None = None
    program: int | None = None
    """Process id of the program that has this console, if one has."""
    pidfd: int | None = None

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


def start_program(console: Console, argv: Sequence[str]) -> int:
    """Give `console` to a program as its controlling terminal; returns the process id.

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

    `entries` are numbered from 1.
    `retry_s` is how many seconds without a key until the order is run again by itself; None waits for a person.
    `alive` is called at least every few seconds, for the watcher; `now` is the clock that `retry_s` runs on.
    """

    def __init__(self, consoles: Sequence[Console], entries: Sequence[Entry], *, why: str, retry_s: float | None,
                 alive: Callable[[], None] | None = None, now: Callable[[], float] = clock.monotonic) -> None:
        self._consoles = list(consoles)
        self._entries = {str(number): entry for number, entry in enumerate(entries, start=1)}
        self._why = plain(why)
        self._retry_s = retry_s
        self._alive = alive
        self._now = now

    def run(self) -> Event:
        """Serve the consoles until someone chooses, or time does: Event.AGAIN or Event.DONE (reboot)."""
        try:
            return self._serve()
        finally:
            for console in self._consoles:
                if console.dialogue is not None:
                    console.dialogue.close()
                console.dialogue, console.sitting = None, Sitting.MENU

    def _serve(self) -> Event:
        for console in self._consoles:
            self._show(console)
        deadline = self._deadline()
        while True:
            if self._alive is not None:
                self._alive()
            busy = any(console.program is not None for console in self._consoles)
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
        return self._program_ended(console)

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
        menu = "".join(f"{number:>3}  {entry.title}\n" for number, entry in self._entries.items())
        console.write(f"\nreroot rescue: {self._why}\n{again}\n{menu}\nchoose 1-{len(self._entries)}: ")

    def _read(self, console: Console) -> Event | None:
        try:
            data = os.read(console.fd, 1024)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:  # hung up: a console that reads nothing for ever must not spin
            self._hung_up(console)
            return None
        console.typed = (console.typed + data)[-LONGEST_LINE:]
        while True:
            line, found, rest = console.typed.replace(b"\r", b"\n").partition(b"\n")
            if not found:
                return None
            console.typed = rest
            event = self._typed(console, line.decode("utf-8", "replace").strip())
            if event is not None or console.program is not None:
                return event

    def _typed(self, console: Console, text: str) -> Event | None:
        """Take one line: the answer to what an entry asked, else the number of one."""
        if console.dialogue is not None:
            return self._go_on(console, text)
        entry = self._entries.get(text)
        if entry is None:
            self._show(console)
            return None
        console.dialogue = entry.begin()
        return self._go_on(console, None)

    def _go_on(self, console: Console, answer: str | None) -> Event | None:
        """Let a console's entry go on until it asks, starts a program, or ends; returns the event it leaves with."""
        assert console.dialogue is not None
        try:
            step = next(console.dialogue) if answer is None else console.dialogue.send(answer)
            while isinstance(step, str):
                console.write(f"{plain(step)}\n")
                step = next(console.dialogue)
        except StopIteration as ended:
            return self._entry_ended(console, ended.value)
        except RerootError as error:
            console.write(f"{plain(error.sentence)}\n")
            return self._entry_ended(console, None)
        except OSError as error:
            console.write(f"{plain(str(error))}\n")
            return self._entry_ended(console, None)
        if isinstance(step, Ask):
            console.sitting = TABLE[console.sitting, Turn.ASKS]
            console.write(plain(step.prompt) + " ")
            return None
        console.sitting = TABLE[console.sitting, Turn.STARTS]
        console.program = start_program(console, step.argv)
        console.pidfd = os.pidfd_open(console.program)
        return None

    def _entry_ended(self, console: Console, event: Event | None) -> Event | None:
        console.dialogue = None
        console.sitting = TABLE[console.sitting, Turn.ENDS if event is None else Turn.LEAVES]
        if event is None:
            self._show(console)
        else:
            self._tell("rebooting" if event is Event.DONE else "running the order again")
        return event

    def _program_ended(self, console: Console) -> Event | None:
        assert console.program is not None and console.pidfd is not None
        status = -1
        with suppress(ChildProcessError):
            status = os.waitstatus_to_exitcode(os.waitpid(console.program, 0)[1])
        os.close(console.pidfd)
        console.program = console.pidfd = None
        if not console.reopen():
            self._hung_up(console)
            return None
        return self._go_on(console, str(status))

    def _hung_up(self, console: Console) -> None:
        if console.dialogue is not None:
            console.dialogue.close()
        console.dialogue, console.sitting = None, TABLE[console.sitting, Turn.HANGS_UP]
        self._consoles.remove(console)
