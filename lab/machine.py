"""A machine you can switch on, pull the plug of, and ask: in the spirit of the NixOS test driver.

I/O. Every wait has a limit in seconds on a clock that never jumps, and every failure shows the end of the
machine's console. After a power cut or a reset the ssh connection is opened anew by itself.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from time import sleep

from lab import qemu
from lab.console import Console
from lab.network import Network
from lab.process import Process
from lab.qemu import Disk, Firmware, MachineSpec
from lab.qmp import Qmp
from lab.ssh import HostKeyChanged, Ssh
from plumbing import clock, run
from plumbing.errors import CommandError, NetworkError, RerootError

_STEP_S = 0.2
COMMAND_S = 120.0
"""How long a command in the guest may take unless the caller says otherwise."""


class Machine:
    """One machine of a lab, off until `start`. Made by Lab.machine."""

    def __init__(self, name: str, network: Network, subnet: int, host: int, spec: MachineSpec,
                 disks: Sequence[Disk], *, run_folder: Path, logs: Path) -> None:
        self.name, self.spec, self.disks = name, spec, tuple(disks)
        self.subnet, self.address = network.subnets[subnet], network.subnets[subnet].address(host)
        self.mac = self.subnet.mac(host)
        self.logs = logs
        self.console = Console(name, logs / f"{name}.console.log")
        self.started_at = 0.0
        """When it was last switched on (plumbing.clock.monotonic)."""
        self._network, self._folder = network, run_folder
        self._tap = network.tap(subnet)
        self._process: Process | None = None
        self._qmp: Qmp | None = None
        self._logins: dict[str, Ssh] = {}

    # --- power ---

    @property
    def running(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._process.running

    def start(self, spec: MachineSpec | None = None) -> None:
        """Switch it on; with `spec`, on other hardware from now on."""
        if self.running:
            raise CommandError(f"{self.name} is on already; shut it down or cut its power first")
        self.spec = spec or self.spec
        argv = qemu.command_line(self.spec, self.disks, self._wiring())
        (self._folder / f"{self.name}.qmp").unlink(missing_ok=True)  # left by a power cut
        self._process = Process(self._network.argv(argv), name=f"QEMU of {self.name}", pipes=True,
                                log=self.logs / f"{self.name}.qemu.log")
        self.started_at = clock.monotonic()
        self.console.attach(self._process.stdout, self._process.stdin)
        try:
            self._qmp = Qmp(self._folder / f"{self.name}.qmp", alive=lambda: self.running)
        except RerootError as error:
            self._process.kill()
            self.console.wait_for_end(10.0)
            raise CommandError(f"{self.name} can't be switched on: {self._process.last_words(3) or error.sentence}; "
                               f"try: {run.replayable(argv)}") from error

    def shutdown(self, timeout_s: float = 90.0) -> None:
        """Ask the guest to switch off (over ssh if it answers, else by the power button) and wait for that."""
        if not self.running:
            return
        logged_in = next((ssh for ssh in self._logins.values() if ssh.connected and ssh.user == "root"), None)
        try:
            if logged_in is None:
                self.qmp.powerdown()
            else:
                logged_in.run("systemctl poweroff --no-block", timeout_s=10)
        except (NetworkError, CommandError):
            self.qmp.powerdown()
        self.wait_for_power_off(timeout_s)

    def wait_for_power_off(self, timeout_s: float = 90.0) -> None:
        """Wait until the machine has switched itself off (or ended where `reboots` is False)."""
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except CommandError as error:
                raise self._failure(f"{self.name} did not switch off within {timeout_s:.0f} s") from error
        self._off()

    def power_cut(self) -> None:
        """Pull the plug: QEMU is killed (SIGKILL), nothing in the guest hears of it."""
        if self._process is not None:
            self._process.kill()
        self._off()

    def reset(self) -> None:
        """Press the reset button."""
        self._hang_up()
        self.qmp.reset()

    def close(self) -> None:
        """Pull the plug at the lab's end; a machine that is off stays off."""
        self.power_cut()

    @property
    def qmp(self) -> Qmp:
        """QEMU's control connection, while the machine is on."""
        if self._qmp is None:
            raise CommandError(f"{self.name} is off; start it first")
        return self._qmp

    def screenshot(self, path: Path | None = None) -> Path:
        """Write what the screen shows as PNG (default: beside the logs) and return where."""
        path = path or self.logs / f"{self.name}.{clock.monotonic() - self.started_at:.0f}s.png"
        self.qmp.screenshot(path.resolve())
        return path

    def unplug_network(self) -> None:
        """Pull the network cable."""
        self._network.plug(self._tap, connected=False)

    def plug_network(self) -> None:
        """Put the network cable back."""
        self._network.plug(self._tap, connected=True)

    # --- commands in the guest ---

    def ssh(self, user: str = "root") -> Ssh:
        """Return the way in as `user`; it connects at its first command."""
        if user not in self._logins:
            self._logins[user] = Ssh(
                self._network, self.address, user, known_hosts=self.logs / f"{self.name}.known_hosts",
                socket=self._folder / f"{self.name}.{user}.ssh", log=self.logs / f"{self.name}.ssh.log")
        return self._logins[user]

    def execute(self, command: str, *, user: str = "root", stdin: bytes | None = None,
                timeout_s: float = COMMAND_S) -> run.Completed:
        """Run a shell command in the guest and return its status and streams, whatever the status is."""
        try:
            return self.ssh(user).run(command, stdin=stdin, timeout_s=timeout_s)
        except (NetworkError, CommandError) as error:
            raise self._failure(f"{self.name} could not run {command!r}: {error.sentence}") from error

    def succeed(self, command: str, *, user: str = "root", stdin: bytes | None = None,
                timeout_s: float = COMMAND_S) -> str:
        """Run a shell command that must succeed and return what it printed."""
        done = self.execute(command, user=user, stdin=stdin, timeout_s=timeout_s)
        if done.status != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            raise self._failure(f"{command!r} failed on {self.name} with status {done.status}: {said}")
        return done.text

    def fail(self, command: str, *, user: str = "root", timeout_s: float = COMMAND_S) -> str:
        """Run a shell command that must fail and return all it printed."""
        done = self.execute(command, user=user, timeout_s=timeout_s)
        if done.status == 0:
            raise self._failure(f"{command!r} succeeded on {self.name}, and should have failed; it printed "
                                f"{done.text.strip()!r}")
        return done.text + done.stderr.decode("utf-8", "replace")

    def read_file(self, path: str) -> bytes:
        """Return the bytes of a file in the guest."""
        done = self.execute(f"cat -- {shlex.quote(path)}")
        if done.status != 0:
            raise self._failure(f"{path} can't be read on {self.name}: {done.stderr.decode().strip()}")
        return done.stdout

    def write_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        quoted = shlex.quote(path)
        self.succeed(f"cat > {quoted} && chmod {mode:o} {quoted}", stdin=data)

    # --- waiting ---

    def wait_for_login(self, timeout_s: float = 240.0, user: str = "root") -> None:
        """Wait until `user` can log in by ssh. A changed host key is raised (HostKeyChanged), not waited out."""
        def attempt() -> bool:
            try:
                return self.ssh(user).run("true", timeout_s=30).status == 0
            except HostKeyChanged:
                raise
            except (NetworkError, CommandError):
                self.ssh(user).close()
                return False

        self._until(attempt, timeout_s, f"nobody could log in to {self.name} ({self.address}) as {user}")

    def wait_until_succeeds(self, command: str, timeout_s: float = 120.0, user: str = "root") -> str:
        """Repeat a command until it succeeds and return what it printed then."""
        last = [""]

        def attempt() -> bool:
            try:
                done = self.ssh(user).run(command, timeout_s=min(timeout_s, COMMAND_S))
            except HostKeyChanged:
                raise
            except (NetworkError, CommandError) as error:
                self.ssh(user).close()
                last[0] = error.sentence
                return False
            last[0] = done.text if done.status == 0 else done.stderr.decode("utf-8", "replace").strip()
            return done.status == 0

        self._until(attempt, timeout_s, lambda: f"{command!r} did not succeed on {self.name} (last: {last[0]})")
        return last[0]

    def wait_for_unit(self, unit: str, timeout_s: float = 240.0) -> None:
        """Wait until a systemd unit is active; fails at once when it failed with no job left to retry it."""
        def attempt() -> bool:
            try:
                done = self.ssh().run(f"systemctl show -p ActiveState,Job -- {shlex.quote(unit)}", timeout_s=30)
            except HostKeyChanged:
                raise
            except (NetworkError, CommandError):
                self.ssh().close()
                return False
            state = dict(line.partition("=")[::2] for line in done.text.splitlines())
            if state.get("ActiveState") == "failed" and not state.get("Job", "").strip("0"):
                journal = self.execute(f"journalctl --no-pager -n 15 -u {shlex.quote(unit)}").text
                raise self._failure(f"{unit} failed on {self.name}:\n{journal}")
            return state.get("ActiveState") == "active"

        self._until(attempt, timeout_s, f"{unit} did not become active on {self.name}")

    def wait_for_console(self, pattern: str, timeout_s: float = 120.0) -> re.Match[str]:
        """Wait for a pattern on the console after the last one matched (since the start at first)."""
        return self.console.wait_for(pattern, timeout_s)

    def send_console(self, text: str) -> None:
        """Type on the serial console."""
        self.console.send(text)

    def console_command(self, command: str, timeout_s: float = COMMAND_S) -> tuple[int, str]:
        """Run a command in a shell that sits on the serial console; returns (status, what it printed).

        For the recovery environment, which has no ssh. The marks are split in what is typed, so the shell's
        echo of the line can't be taken for its answer.
        """
        mark = uuid.uuid4().hex[:12]
        self.send_console(f"echo '{mark[:6]}''{mark[6:]}:'; {command}; echo '{mark[6:]}''{mark[:6]}:'$?\n")
        begin = self.wait_for_console(rf"{mark}:\n", timeout_s)
        end = self.wait_for_console(rf"{mark[6:]}{mark[:6]}:(\d+)", timeout_s)
        return int(end[1]), end.string[begin.end():end.start()]

    def elapsed_s(self) -> float:
        """Seconds since the machine was switched on."""
        return clock.monotonic() - self.started_at

    def _until(self, attempt: Callable[[], bool], timeout_s: float, what: str | Callable[[], str]) -> None:
        deadline = clock.monotonic() + timeout_s
        while not attempt():
            if not self.running:
                raise self._failure(f"{what if isinstance(what, str) else what()}: the machine is off")
            if clock.monotonic() > deadline:
                raise self._failure(f"{what if isinstance(what, str) else what()} within {timeout_s:.0f} s")
            sleep(_STEP_S)

    def _failure(self, sentence: str) -> CommandError:
        return CommandError(f"{sentence}; its console ({self.console.log}) ends:\n{self.console.tail()}")

    def _wiring(self) -> qemu.Wiring:
        variables = self._folder / f"{self.name}.vars.fd"
        if self.spec.firmware is Firmware.UEFI and not variables.exists():
            shutil.copyfile(qemu.OVMF_VARS, variables)
        digest = hashlib.sha256(f"{self._network.name}/{self.name}".encode()).digest()
        return qemu.Wiring(self.name, self._tap, self.mac, self._folder / f"{self.name}.qmp", variables,
                           str(uuid.UUID(bytes=digest[:16], version=4)))

    def _hang_up(self) -> None:
        for ssh in self._logins.values():
            ssh.close()

    def _off(self) -> None:
        self._hang_up()
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        self.console.wait_for_end(10.0)

