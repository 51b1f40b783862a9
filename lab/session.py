"""A lab: a name of its own, a network, machines, a folder for disks and one for what must be kept (logs).

I/O. Use it as a context manager; whatever ends the block, nothing is left but the logs:

    with Lab(subnets=(1, 2)) as lab:
        alpha = lab.machine("alpha", disks=[Disk(image, "alpha-0")])
        alpha.start()
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from lab import keeper, roots
from lab.machine import Machine
from lab.network import CONTROL_ADDRESS, Network
from lab.process import Process
from lab.qemu import Disk, MachineSpec
from plumbing import clock, run
from plumbing.errors import CommandError, RefusedError, UsageError

LOGS_KEPT = 20
"""How many labs' logs stay in the default place; the oldest go first."""


class Lab:
    """One open lab. `logs` is where consoles and programs write (kept); default: a folder below the cache."""

    def __init__(self, *, subnets: Sequence[int] = (1,), logs: Path | None = None, name: str | None = None) -> None:
        self.name = name or secrets.token_hex(4)
        if not self.name.isalnum() or len(self.name) > 20:
            raise UsageError(f"{self.name!r} can't name a lab; use at most 20 letters and digits")
        self.network = Network(self.name, subnets)
        self.machines: dict[str, Machine] = {}
        self.opened_at = clock.monotonic()
        self._logs = logs
        self._next_host = dict.fromkeys(subnets, 10)
        self._keeper: Process | None = None
        self._programs: list[Process] = []

    @property
    def control_address(self) -> str:
        """The lab's own address, where a control server listens: 10.77.1.1."""
        return CONTROL_ADDRESS

    @property
    def run_folder(self) -> Path:
        """For sockets; short, for their paths are limited to 107 bytes."""
        return keeper.RUN / self.name

    def __enter__(self) -> Lab:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def open(self) -> Lab:
        """Make folders, keeper and network."""
        if os.geteuid() != 0:
            raise RefusedError("a lab needs root for its network namespace; run it with sudo")
        if self.name in keeper.labs():
            raise UsageError(f"there is a lab {self.name} already; choose another name or `reroot lab down` it")
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{keeper.PREFIX}{self.name}-"))
        self.logs = self._logs or _log_folder() / self.name
        self.logs.mkdir(parents=True, exist_ok=True)
        keeper.claim(self.name, self.scratch)
        self._start_keeper()
        try:
            self.network.up()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop machines and programs and let the keeper remove everything but the logs."""
        for machine in self.machines.values():
            machine.close()
        for program in reversed(self._programs):
            program.stop()
        if self._keeper is not None:
            self._keeper.stdin.close()
            status = self._keeper.wait(60)
            words, self._keeper = self._keeper.last_words(), None
            if status != 0:
                raise CommandError(f"lab {self.name} was not taken down cleanly: {words}; run `reroot lab down`")

    def machine(
        self, name: str, *, disks: Sequence[Disk] = (), subnet: int = 1, host: int | None = None,
        spec: MachineSpec | None = None,
    ) -> Machine:
        """Add a machine with a network card on `subnet`; host number None takes the next free one (from 10)."""
        if name in self.machines:
            raise UsageError(f"lab {self.name} has a machine {name} already; choose another name")
        if subnet not in self.network.subnets:
            raise UsageError(f"lab {self.name} has no subnet {subnet}; open it with subnets=(…, {subnet})")
        if host is None:
            host = self._next_host[subnet]
        self._next_host[subnet] = max(self._next_host[subnet], host + 1)
        made = Machine(name, self.network, subnet, host, spec or MachineSpec(), disks,
                       run_folder=self.run_folder, logs=self.logs)
        self.machines[name] = made
        return made

    def program(self, argv: Sequence[run.Argument], *, name: str, cwd: Path | None = None) -> Process:
        """Start a long-running program inside the lab's network; its output goes to logs/NAME.log."""
        import_path = os.pathsep.join([os.fspath(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        made = self.network.spawn(argv, log=self.logs / f"{name}.log", name=name, cwd=cwd,
                                  env={**os.environ, "PYTHONPATH": import_path.rstrip(os.pathsep)})
        self._programs.append(made)
        return made

    def _start_keeper(self) -> None:
        path = os.fspath(Path(__file__).parent.parent)
        self._keeper = Process([sys.executable, "-m", "lab.keeper", self.name], name="lab keeper", pipes=True,
                               log=self.logs / "keeper.log", env={**os.environ, "PYTHONPATH": path})
        if self._keeper.stdout.readline() != b"ready\n":
            raise CommandError(f"the lab's keeper did not start: {self._keeper.last_words()}")


def _log_folder() -> Path:
    base = roots.cache_base() / "lab"
    base.mkdir(parents=True, exist_ok=True)
    old = sorted((path for path in base.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in old[:-LOGS_KEPT]:
        shutil.rmtree(path, ignore_errors=True)
    return base


def down(names: Sequence[str] = ()) -> list[str]:
    """Take down the named labs, or all labs whose owner is known and dead; returns the names of those taken down."""
    if os.geteuid() != 0:
        raise RefusedError("taking a lab down needs root; run it with sudo")
    known = keeper.labs()
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no lab {unknown[0]}; open labs: {', '.join(known) or 'none'}")
    gone = []
    for name in names or known:
        owner = keeper.read_owner(name)
        if names or (owner is not None and not owner.alive):  # a bare namespace may be another test's: only by name
            keeper.take_down(name)
            gone.append(name)
    return gone
