"""Process 1's watch over the worker (I/O): start it, hear it, kill it with all it started, start it again.

A defect, a lack of memory, a hung program or a disk that answers no more costs an attempt, not the host:
docs/protocols/recovery.md. What a step may take is recovery.limits'.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plumbing import clock
from recovery import machine
from recovery.limits import LIMITS, Limit, Watched

STARTS = 10
"""How often the worker is started to do its work before it is started for the rescue menu alone."""

GRACE_S = 10.0
"""How long a killed worker and its programs may take to go, in seconds, before they are left behind."""

FEED_S = 5.0
"""Least often that the watchdog is fed, in seconds."""


@dataclass(frozen=True)
class Start:
    """How one start of the worker comes about: `spent` attempts so far, `broken` when it is for the rescue menu alone.

    `step` and `why` say where the start before it ended, and how.
    """

    spent: int = 0
    broken: bool = False
    step: str = "start"
    why: str = ""


@dataclass(frozen=True)
class Ended:
    """How a start ended: the exit status (negative: a signal), None for a worker that was left behind."""

    status: int | None
    step: str
    why: str


Worker = Callable[[Start, int], None]
"""(how it comes about, a file descriptor that takes recovery.limits' bytes); its end means reboot."""

Say = Callable[[str], None]
Feed = Callable[[], None]


def jitter() -> float:
    """Return a random number in [0, 1)."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def pause_s(spent: int) -> float:
    """Return how long to wait before a start after `spent` others, in seconds."""
    return machine.backoff_s(spent, jitter())


def supervise(worker: Worker, *, say: Say, limits: Mapping[str, Limit] = LIMITS, starts: int = STARTS,
              pause: Callable[[int], float] = pause_s, grace_s: float = GRACE_S, feed: Feed = lambda: None) -> None:
    """Run `worker` in a child, again and again until it takes the machine down; reap whatever else dies meanwhile.

    `feed` is called every few seconds while all is within its limits. Returns only when the child ends with status 0,
    which means that the machine is to reboot.
    """
    start = Start()
    while True:
        ended = _Watch(worker, start, limits, say, feed, grace_s).run()
        if ended.status == 0:
            return
        spent = start.spent + 1
        how = "left behind" if ended.status is None else str(ended.status)
        say(f"recovery ended in {ended.step} ({how}); starting it again ({spent})")
        start = Start(spent, spent >= starts, ended.step, ended.why or f"recovery itself ended ({how})")
        _rest(pause(spent), feed)


def _rest(seconds: float, feed: Feed) -> None:
    deadline = clock.monotonic() + seconds
    while (left := deadline - clock.monotonic()) > 0:
        feed()
        threading.Event().wait(min(1.0, left))
        reap()


class _Watch:
    """One start of the worker, from its fork to its end."""

    def __init__(self, worker: Worker, start: Start, limits: Mapping[str, Limit], say: Say, feed: Feed,
                 grace_s: float) -> None:
        self._worker, self._start, self._limits = worker, start, limits
        self._say, self._feed, self._grace_s = say, feed, grace_s

    def run(self) -> Ended:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        # the wake-up pipe turns SIGCHLD into something poll can wait for
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        old_handler = signal.signal(signal.SIGCHLD, lambda *_: None)
        old_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _become_child(self._worker, self._start, reading, writing)
        os.close(writing)
        try:
            return self._wait(child, reading, woken)
        finally:
            signal.set_wakeup_fd(old_wake)
            signal.signal(signal.SIGCHLD, old_handler)
            for fd in (reading, woken, wake):
                os.close(fd)

    def _wait(self, child: int, reading: int, woken: int) -> Ended:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        poll.register(woken, select.POLLIN)
        now = clock.monotonic()
        watched = Watched(now, now, limits=self._limits)
        while True:
            why = watched.overdue(clock.monotonic())
            if why is not None:
                return self._kill(child, watched.step, why)
            self._feed()
            events = dict(poll.poll(1 + 1000 * min(FEED_S, max(0.0, watched.due_s - clock.monotonic()))))
            if events.get(reading, 0) & select.POLLIN and (data := os.read(reading, 65536)):
                watched = watched.hear(data, clock.monotonic())
            elif reading in events:
                poll.unregister(reading)  # the child closed it: it is ending
            if woken in events:
                with suppress(BlockingIOError):
                    os.read(woken, 4096)
            status = reap(child)
            if status is not None:
                if status != 0:
                    self._clear(set())
                return Ended(status, watched.step, "")

    def _kill(self, child: int, step: str, why: str) -> Ended:
        self._say(f"{why}; killing it")
        victims = {child, *below(child)}
        for pid in victims:
            _kill(pid)
        status = self._clear(victims)
        if child in alive():
            self._say("not even a kill ends it: it waits for a disk that does not answer, and is left behind")
            return Ended(None, step, f"{why}, and could not even be killed: look at the disk")
        return Ended(status if status is not None else -signal.SIGKILL, step, why)

    def _clear(self, victims: set[int]) -> int | None:
        """Kill all that the worker has left, within the grace; returns the status of the first victim that had one.

        Orphans come to process 1; anyone else who calls this has other children too, and leaves those alone.
        """
        deadline, status = clock.monotonic() + self._grace_s, None
        while True:
            self._feed()
            left = victims | set(below(1)) if os.getpid() == 1 else victims
            left &= alive()
            for pid in left:
                _kill(pid)
            for pid in victims:
                status = reap(pid) if status is None else status
            if not left or clock.monotonic() > deadline:
                reap()
                return status
            threading.Event().wait(0.02)


def _become_child(worker: Worker, start: Start, reading: int, writing: int) -> None:
    """Never returns: the child's whole life."""
    status = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(reading)
        os.set_blocking(writing, False)
        worker(start, writing)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        raise
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def reap(child: int = 0) -> int | None:
    """Take in every process that has ended; returns the status of `child` if it was among them (negative: signal)."""
    found: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = os.waitstatus_to_exitcode(status)


def _parents() -> dict[int, int]:
    """Return process -> its parent, of all that are not dead (proc(5): /proc/PID/stat)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):  # it has just ended
            continue
        if state not in (b"Z", b"X"):
            found[int(folder.name)] = int(parent)
    return found


def alive() -> set[int]:
    """Return the processes that are there and not dead."""
    return set(_parents())


def below(root: int) -> list[int]:
    """Return the processes that descend from `root`, those nearest to it first."""
    parents, found, generation = _parents(), list[int](), {root}
    while generation:
        generation = {pid for pid, parent in parents.items() if parent in generation}
        found += sorted(generation)
    return found


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
