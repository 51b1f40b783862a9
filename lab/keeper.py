"""Cleans up after a lab, also when the lab's owner was killed and could not.

I/O. Each lab has one keeper: `python -m lab.keeper NAME`, in a session of its own so that ^C does not reach it.
It reads a pipe that only the owner holds the other end of; the pipe ends when the owner closes the lab or
dies in whatever way (kill -9 included), and then the keeper takes the lab down. PR_SET_PDEATHSIG would be
tied to the thread that started a child, and would kill a machine started from a thread pool when its thread
ends; the pipe has no such trap.

What belongs to a lab is found by its network namespace, not by a list of process ids that could be stale.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from plumbing import clock
from plumbing.errors import BusyError

RUN = Path("/run/reroot-lab")
"""One folder for each open lab: owner.json, QMP and ssh sockets."""

NAMESPACES = Path("/run/netns")
PREFIX = "reroot-"
_KILL_S = 10.0


@dataclass(frozen=True)
class Owner:
    """Who opened a lab: the process, told apart from a later one with the same id by its start time."""

    pid: int
    started_ticks: int
    scratch: str
    """The lab's folder for disks, removed with it."""

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return start_ticks(self.pid) == self.started_ticks


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot (proc(5), field 22); None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])


def claim(name: str, scratch: Path) -> None:
    """Make the lab's folder with this process as its owner in it, in one step.

    Raises OSError when there is one: names are unique on a machine.
    """
    started = start_ticks(os.getpid())
    assert started is not None, "this process has an entry in /proc"
    RUN.mkdir(mode=0o700, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".", dir=RUN))
    owner = Owner(os.getpid(), started, os.fspath(scratch))
    (fresh / "owner.json").write_text(json.dumps(asdict(owner)))
    try:
        fresh.rename(RUN / name)  # fails on a folder that is not empty, and a lab's never is
    except OSError:
        shutil.rmtree(fresh)
        raise


def read_owner(name: str) -> Owner | None:
    """Return who opened the lab, or None when that is not recorded."""
    try:
        raw = json.loads((RUN / name / "owner.json").read_text())
        return Owner(int(raw["pid"]), int(raw["started_ticks"]), str(raw["scratch"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def labs() -> list[str]:
    """Return the names of all labs that left a folder or a namespace on this machine."""
    folders = {path.name for path in RUN.iterdir() if path.is_dir() and path.name[0] != "."} if RUN.is_dir() else set()
    spaces = ({path.name.removeprefix(PREFIX) for path in NAMESPACES.iterdir() if path.name.startswith(PREFIX)}
              if NAMESPACES.is_dir() else set())
    return sorted(folders | spaces)


def members(name: str) -> list[int]:
    """Return the ids of all processes inside the lab's namespace."""
    try:
        space = (NAMESPACES / (PREFIX + name)).stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                its = (entry / "ns" / "net").stat()
                if (its.st_dev, its.st_ino) == (space.st_dev, space.st_ino):
                    found.append(int(entry.name))
    return found


def take_down(name: str, *, spare: int | None = None) -> None:
    """Kill what runs in the lab's namespace (but not process `spare`), remove namespace, sockets and scratch.

    Doing it twice is no error. Raises BusyError when a process can't be killed.
    """
    deadline = clock.monotonic() + _KILL_S
    while left := [pid for pid in members(name) if pid not in {spare, os.getpid()}]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if clock.monotonic() > deadline:
            raise BusyError(f"lab {name} cannot be taken down: processes {left} do not die; look at them with ps")
    if (NAMESPACES / (PREFIX + name)).exists():
        from pyroute2 import netns
        with suppress(FileNotFoundError):
            netns.remove(PREFIX + name)
    owner = read_owner(name)
    if owner is not None and Path(owner.scratch).name.startswith(PREFIX):
        shutil.rmtree(owner.scratch, ignore_errors=True)
    shutil.rmtree(RUN / name, ignore_errors=True)


def main() -> int:
    """Wait for the pipe on standard input to end, then take the lab named in argv[1] down."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # ends with its owner, by the pipe, and not before
    name = sys.argv[1]
    owner = read_owner(name)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.read(0, 4096):
        pass
    take_down(name, spare=owner.pid if owner is not None and owner.alive else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
