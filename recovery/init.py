"""Process 1 of the recovery image (I/O): a first line on the console, a child that works, a parent that watches it.

The parent forks before anything heavy is imported, reaps every orphan, and starts the child again when it dies or
stands still: a defect, a lack of memory or a hung program costs an attempt, not the host: docs/protocols/recovery.md.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import clock

if TYPE_CHECKING:
    from recovery.cmdline import CommandLine
    from recovery.log import Log
    from recovery.machine import State
    from recovery.session import Session

STALL_S = 2100.0
"""How long the child may go without a sign of progress, in seconds: more than mkfs may take (disks.MKFS_TIMEOUT_S)."""

STARTS = 4
"""How often the child is started to do its work before it is started for the rescue menu alone."""

BROKEN_PAUSE_S = 30.0
"""How long to wait before a child that ends even so is started once more, in seconds."""

MOUNTS = (("proc", "/proc", "proc", ""), ("sysfs", "/sys", "sysfs", ""), ("devtmpfs", "/dev", "devtmpfs", ""),
          ("tmpfs", "/run", "tmpfs", "mode=0755"), ("tmpfs", "/tmp", "tmpfs", "mode=1777"))  # noqa: S108
ALWAYS_LOADED = ("ext4", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1", "rtc_cmos", "af_packet", "efivarfs")
"""Modules that no device asks for."""

MODULE_ROUNDS = 5
"""A loaded bus shows new devices, whose drivers may show more: at most this deep."""


@dataclass(frozen=True)
class Start:
    """How one start of the child went: `spent` attempts so far, `broken` when it is for the rescue menu alone."""

    spent: int
    broken: bool


Worker = Callable[[Start, int], None]
"""(how often it was started before, a file descriptor that takes a byte with every progress); its end means reboot."""


def mount_all() -> None:
    """Mount what programs expect; what /init mounted already stays."""
    from plumbing.run import run

    for source, target, kind, options in MOUNTS:
        Path(target).mkdir(exist_ok=True)
        if not os.path.ismount(target):
            chosen = ["-o", options] if options else []
            run(["busybox", "mount", "-t", kind, *chosen, source, target], check=False, timeout_s=20)


def mount_efivars() -> None:
    """Mount the firmware's variables where there are any; an installation puts its boot entry there."""
    from plumbing.run import run

    target = Path("/sys/firmware/efi/efivars")
    if target.is_dir() and not os.path.ismount(target):
        run(["busybox", "mount", "-t", "efivarfs", "efivarfs", target], check=False, timeout_s=20)


def aliases(sysfs: Path = Path("/sys")) -> Iterator[str]:
    """Yield what the devices of this machine call themselves, for modprobe."""
    for path in sorted(sysfs.glob("bus/*/devices/*/modalias")):
        with suppress(OSError):
            text = path.read_text().strip()
            if text and all(char.isprintable() and char != " " for char in text):
                yield text


def load_modules(sysfs: Path = Path("/sys"), load: Callable[[list[str]], None] | None = None) -> int:
    """Load the drivers of every device, round after round until no new device shows up; returns how many were asked."""
    load = load if load is not None else modprobe
    known: set[str] = set()
    load(list(ALWAYS_LOADED))
    for _ in range(MODULE_ROUNDS):
        fresh = [alias for alias in dict.fromkeys(aliases(sysfs)) if alias not in known]
        if not fresh:
            break
        known.update(fresh)
        load(fresh)
    return len(known)


def modprobe(names: list[str]) -> None:
    """Load modules by name or alias; what no module answers to is not an error."""
    from plumbing.run import run

    run(["busybox", "modprobe", "-a", "-q", *names], check=False, timeout_s=120)


def supervise(worker: Worker, *, say: Callable[[str], None], stall_s: float = STALL_S, starts: int = STARTS,
              broken_pause_s: float = BROKEN_PAUSE_S) -> None:
    """Run `worker` in a child, again and again until it takes the machine down; reap whatever else dies meanwhile.

    Returns only when the child ends with status 0, which means that the machine is to reboot.
    """
    spent = 0
    while True:
        status = _watch(worker, Start(spent, spent >= starts), say, stall_s)
        if status == 0:
            return
        spent += 1
        say(f"recovery ended ({status}); starting it again ({spent})")
        if spent > starts:
            threading.Event().wait(broken_pause_s)


def _watch(worker: Worker, start: Start, say: Callable[[str], None], stall_s: float) -> int:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    # the wake-up pipe turns SIGCHLD into something poll can wait for
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    old_handler = signal.signal(signal.SIGCHLD, lambda *_: None)
    old_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _become_child(worker, start, reading, writing)
    os.close(writing)
    try:
        return _wait(child, reading, woken, say, stall_s)
    finally:
        signal.set_wakeup_fd(old_wake)
        signal.signal(signal.SIGCHLD, old_handler)
        for fd in (reading, woken, wake):
            os.close(fd)


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


def _wait(child: int, reading: int, woken: int, say: Callable[[str], None], stall_s: float) -> int:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(woken, select.POLLIN)
    deadline = clock.monotonic() + stall_s
    while True:
        left = deadline - clock.monotonic()
        if left <= 0:
            say(f"recovery stood still for {stall_s:.0f} s; killing it")
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            deadline = clock.monotonic() + 60
        events = dict(poll.poll(max(1.0, left * 1000)))
        if events.get(reading, 0) & select.POLLIN and os.read(reading, 65536):
            deadline = clock.monotonic() + stall_s
        elif reading in events:
            poll.unregister(reading)  # the child closed it: it is ending
        if woken in events:
            with suppress(BlockingIOError):
                os.read(woken, 4096)
        status = reap(child)
        if status is not None:
            return status


def reap(child: int) -> int | None:
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


def read_cmdline(path: Path = Path("/proc/cmdline")) -> CommandLine:
    """Read what the kernel was told."""
    from recovery import cmdline

    try:
        return cmdline.parse(path.read_bytes().decode("ascii", "replace"))
    except OSError:
        return cmdline.CommandLine()


def work(start: Start, heartbeat: int) -> None:
    """Be the child: mounts, drivers, then the machine until it says reboot."""
    from recovery import rescue
    from recovery.log import Log

    def alive() -> None:
        with suppress(OSError):  # a full pipe holds progress enough
            os.write(heartbeat, b".")

    mount_all()
    # seconds since the kernel started, as the kernel's own messages have them
    log = Log([rescue.Screen(Path("/dev") / name) for name in rescue.console_names()], started=0.0, alive=alive)
    count = load_modules()
    mount_efivars()
    log.say("init", f"asked for the drivers of {count} devices")
    line = read_cmdline()
    for complaint in line.complaints:
        log.say("init", complaint)
    _drive(start, log, line)


def _drive(start: Start, log: Log, line: CommandLine) -> None:
    from plumbing.errors import RerootError
    from recovery import emergency, rescue
    from recovery.drive import Drive
    from recovery.lastgasp import LastGasp
    from recovery.machine import Event
    from recovery.phases import ACTIONS
    from recovery.report import Reporter
    from recovery.session import Places, Session

    session = Session(Places(), line, log, Reporter(log), LastGasp(say=lambda text: log.say("gasp", text)))
    consoles = rescue.open_consoles(rescue.console_names())

    def menu(why: str, retry_s: float | None) -> Event:
        return rescue.Menu(consoles, emergency.entries(session), why=why, retry_s=retry_s, alive=log.alive).run()

    drive = Drive(session, ACTIONS, menu=menu, jitter=jitter, spent=start.spent)
    if start.broken:
        why = f"recovery itself ended {start.spent} times without finishing; its console shows how"
        drive.run(last_resort(session), RerootError(why))
    else:
        drive.run()
    session.close()


def last_resort(session: Session) -> State:
    """Return where to go when recovery itself is broken: back to the old system if it is whole, else to the menu."""
    from plumbing.errors import RerootError
    from recovery.machine import State
    from recovery.phases import begin

    try:
        begin.learn(session)
    except (RerootError, OSError) as error:
        session.log.say("init", f"{error}")
    return State.FAILED if session.has_system() else State.GASP


def jitter() -> float:
    """Return a random number in [0, 1)."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def reboot() -> None:
    """Take the machine down at once; everything that matters was synced by whoever wrote it."""
    from plumbing.errors import CommandError
    from plumbing.run import run

    os.sync()
    with suppress(CommandError):
        run(["busybox", "reboot", "-f"], timeout_s=30)
    Path("/proc/sysrq-trigger").write_bytes(b"b")


def main() -> int:
    """Be process 1; does not return on a machine of its own."""
    os.write(1, f"reroot [{clock.monotonic():8.2f}] init: reroot recovery, {clock.iso(clock.wall())}\n".encode())
    if os.getpid() != 1:
        os.write(2, b"recovery.init runs as process 1 of the recovery image only; nothing was done\n")
        return 2
    os.environ["PATH"] = "/bin:/sbin:/usr/bin:/usr/sbin"

    def say(text: str) -> None:
        os.write(1, f"reroot [{clock.monotonic():8.2f}] init: {text}\n".encode())

    supervise(work, say=say)
    say("rebooting")
    reboot()
    return 0


if __name__ == "__main__":
    sys.exit(main())
