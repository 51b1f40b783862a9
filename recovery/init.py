"""Process 1 of the recovery image (I/O): a first line on the console, a worker that is watched, the reboot.

The worker is forked before anything heavy is imported; it mounts, loads drivers and drives the machine.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import clock
from recovery import limits
from recovery.supervise import Start, jitter, supervise
from recovery.watchdog import Watchdog

if TYPE_CHECKING:
    from recovery.cmdline import CommandLine
    from recovery.log import Log
    from recovery.machine import State
    from recovery.session import Session

MOST_OPEN = 16_384
"""Descriptors that a process of recovery may have; the kernel's own limit is 1024."""

MOUNTS = (("proc", "/proc", "proc", ""), ("sysfs", "/sys", "sysfs", ""), ("devtmpfs", "/dev", "devtmpfs", ""),
          ("tmpfs", "/run", "tmpfs", "mode=0755"), ("tmpfs", "/tmp", "tmpfs", "mode=1777"))  # noqa: S108
ALWAYS_LOADED = ("ext4", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1", "rtc_cmos", "af_packet", "efivarfs")
"""Modules that no device asks for."""

WORKED_IN = ("/local", "/mnt/", "/run/reroot/")
"""Where workers mount things (recovery.session.Places)."""

STRAY_ATTEMPTS = 3
"""How often a machine that nobody knows tries to reach somebody before it shows the menu to whoever stands there."""

MODULE_ROUNDS = 5
"""A loaded bus shows new devices, whose drivers may show more: at most this deep."""


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


def let_go(mounts: Path = Path("/proc/mounts")) -> None:
    """Unmount what a killed worker had mounted; what one that was left behind still uses goes out of sight."""
    from plumbing.errors import CommandError
    from plumbing.run import run

    targets = [line.split(" ")[1] for line in mounts.read_text(errors="surrogateescape").splitlines()]
    for target in reversed([target for target in targets if target.startswith(WORKED_IN)]):
        for how in ([], ["-l"]):
            with suppress(CommandError):
                if run(["busybox", "umount", *how, target], check=False, timeout_s=60).status == 0:
                    break


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

    def begin(step: str) -> None:
        with suppress(OSError):
            os.write(heartbeat, limits.mark(step))

    mount_all()
    if start.spent:
        let_go()
    # seconds since the kernel started, as the kernel's own messages have them
    log = Log([rescue.Screen(Path("/dev") / name) for name in rescue.console_names()], started=0.0, alive=alive,
              begin=begin)
    count = load_modules()
    mount_efivars()
    log.say("init", f"asked for the drivers of {count} devices")
    line = read_cmdline()
    for complaint in line.complaints:
        log.say("init", complaint)
    _drive(start, log, line)


def _drive(start: Start, log: Log, line: CommandLine) -> None:
    from plumbing.errors import Kind, RerootError
    from recovery import emergency, rescue
    from recovery.drive import Drive
    from recovery.lastgasp import LastGasp
    from recovery.machine import Event
    from recovery.phases import ACTIONS
    from recovery.report import Reporter
    from recovery.session import Places, Session

    session = Session(Places(), line, log, Reporter(log), LastGasp(say=lambda text: log.say("gasp", text)))
    if line.local is None:
        session.default_attempts = STRAY_ATTEMPTS
    consoles = rescue.open_consoles(rescue.console_names())

    def menu(why: str, retry_s: float | None) -> Event:
        return rescue.Menu(consoles, emergency.entries(session), why=why, retry_s=retry_s, alive=log.alive).run()

    drive = Drive(session, ACTIONS, menu=menu, jitter=jitter, spent=start.spent)
    if start.why:
        log.say(start.step, f"the attempt before this one ended here: {start.why}")
        session.reporter.send(start.step, "failed", {
            "kind": Kind.INTERNAL.value, "attempt": start.spent, "final": False}, start.why)
    if start.broken:
        why = (f"recovery itself ended {start.spent} times without finishing, the last time in {start.step}: "
               f"{start.why}; its console shows more")
        drive.run(last_resort(session), RerootError(why))
    else:
        drive.run()
    log.begin("reboot")
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


def reboot(watchdog: Watchdog) -> None:
    """Take the machine down; what matters was synced by whoever wrote it, so a dead disk holds nothing up."""
    from plumbing.errors import CommandError
    from plumbing.run import run

    for argv in (["busybox", "sync"], ["busybox", "reboot", "-n", "-f"]):
        with suppress(CommandError):
            run(argv, check=False, timeout_s=30)
        watchdog.disarm()  # after the first: writing may hang where nothing but a reset helps
    Path("/proc/sysrq-trigger").write_bytes(b"b")


def main() -> int:
    """Be process 1; does not return on a machine of its own."""
    os.write(1, f"reroot [{clock.monotonic():8.2f}] init: reroot recovery, {clock.iso(clock.wall())}\n".encode())
    if os.getpid() != 1:
        os.write(2, b"recovery.init runs as process 1 of the recovery image only; nothing was done\n")
        return 2
    os.environ["PATH"] = "/bin:/sbin:/usr/bin:/usr/sbin"
    with suppress(OSError, ValueError):  # a walk holds a directory of every level, and a tree may have two thousand
        resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_OPEN, MOST_OPEN))

    def say(text: str) -> None:
        os.write(1, f"reroot [{clock.monotonic():8.2f}] init: {text}\n".encode())

    watchdog = Watchdog(say=say)

    def worker(start: Start, heartbeat: int) -> None:
        watchdog.leave()
        work(start, heartbeat)

    supervise(worker, say=say, feed=watchdog.feed)
    say("rebooting")
    reboot(watchdog)
    return 0


if __name__ == "__main__":
    sys.exit(main())
