"""The demo: the main job on real machines, told as it happens. I/O: a lab, stdout.

A site is made, a recovery image and a release are built, hosts boot, and then what an administrator would do is done
with the commands an administrator would use.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lab import fleet
from lab.control import MAIL_PORT, ControlServer
from lab.fleet import Facts, LabHost
from lab.host import HostSpec
from lab.mailbox import Mailbox
from lab.qemu import Firmware
from lab.session import Lab
from plumbing import clock
from plumbing.errors import EXIT_CODES, CommandError, Kind, UsageError

Say = Callable[[str], None]
UPGRADE_S = 1800.0
_UNTOLD = {"seconds", "attempt", "digest", "order", "installed", "os_release"}
"""Figures of a report that say nothing new on a demo's line."""


@dataclass(frozen=True)
class Wish:
    """What to show."""

    hosts: int = 1
    uefi: bool = False
    root_fs: str = "ext4"
    group: str | None = None
    """With `emergency`: the volume group whose volumes root and /local become."""
    emergency: bool = False
    broken: bool = False
    """With `emergency`: the disk is not blank but that of a host which starts no more."""
    accel: str = "tcg"
    quick: bool = False
    """Pack the recovery image fast instead of small."""
    attempts: int = 3
    dress: Callable[[Path], None] | None = None
    """What else is done to the root trees of living hosts before they become disks."""


@dataclass(frozen=True)
class Story:
    """What happened: per host the facts before (None for a blank machine) and after, and phase -> seconds."""

    before: Mapping[str, Facts | None]
    after: Mapping[str, Facts]
    phases: Mapping[str, Mapping[str, float]]


class Demo:
    """One run; `say` gets every line."""

    def __init__(self, lab: Lab, wish: Wish, say: Say) -> None:
        self.lab, self.wish, self._say = lab, wish, say
        self.control = ControlServer(lab, lab.scratch / "site")
        self.firmware = Firmware.UEFI if wish.uefi else Firmware.BIOS
        self.hosts: list[LabHost] = []
        self._began = clock.monotonic()

    def say(self, text: str) -> None:
        """Print one line with the seconds since the demo began."""
        self._say(f"[{clock.monotonic() - self._began:6.1f} s] {text}")

    def run(self) -> Story:
        """Do all of it."""
        self.prepare()
        return self.install() if self.wish.emergency else self.upgrade()

    # -- the server side -------------------------------------------------------------------------------------

    def prepare(self, template: Path | None = None) -> None:
        """Make the site with the recovery image and the release, or take one that has them, and serve it."""
        self.say(f"$ reroot init {self.control.folder.name}")
        self.control.init(template=template, network_boot=self.wish.emergency, attempts=self.wish.attempts)
        if template is None:
            self.build()
        self.mailbox = Mailbox(self.lab, port=MAIL_PORT)
        self.control.start()
        self.say(f"$ reroot serve   # {self.control.url}")

    def build(self) -> None:
        """Build the recovery image and the release into the site."""
        control = self.control
        self.say(f"$ reroot recovery build {fleet.RECOVERY}")
        quick = ("--level", "5", "--budget", "16", "--payload-budget", "30")
        built = control.build("recovery", "build", fleet.RECOVERY, *(quick if self.wish.quick else ()))
        sizes = built["sizes"]
        assert isinstance(sizes, dict)
        self.say(f"  kernel {built['kernel']} {sizes['vmlinuz'] / 1e6:.1f} MB, "
                 f"initramfs {sizes['initrd.img'] / 1e6:.1f} MB")
        name, version = fleet.RELEASE.split("/")
        tree = fleet.release_tree(self.lab)
        self.say(f"$ reroot image build {tree.name} --name {name} --version {version}")
        made = control.build("image", "build", tree, "--name", name, "--version", version,
                             "--recovery", f"{fleet.RECOVERY}/amd64")
        raw, packed = (float(str(made[key])) / 1e6 for key in ("raw_bytes", "layer_bytes"))
        self.say(f"  {made['entries']} entries, {raw:.0f} MB as {packed:.0f} MB, signed, in {made['seconds']} s")

    def runtime(self) -> Path:
        """Return the host runtime of the recovery image, as the server hands it out."""
        manifest = json.loads((self._target(f"recovery/{fleet.RECOVERY}/amd64.json")).read_bytes())
        layer = next(layer for layer in manifest["layers"]
                     if layer["annotations"]["org.opencontainers.image.title"] == "runtime.tar.zst")
        return self.control.folder / "store/blobs/sha256" / str(layer["digest"]).removeprefix("sha256:")

    def _target(self, path: str) -> Path:
        folder, _, name = path.rpartition("/")
        return next((self.control.folder / "catalogue/targets" / folder).glob(f"*.{name}"))

    # -- a living fleet --------------------------------------------------------------------------------------

    def upgrade(self) -> Story:
        """Boot Debian 12 hosts, upgrade them, and compare."""
        before = self.boot_fleet()
        self.order()
        return self.compare(dict(before), self.follow())

    def boot_fleet(self) -> dict[str, Facts]:
        """Build, boot and enrol the living hosts; returns what they say of themselves."""
        subnets = len(self.lab.network.subnets)
        runtime = self.runtime()
        for number in range(self.wish.hosts):
            made = fleet.spec(number, firmware=self.firmware, subnets=subnets, runtime=runtime,
                              root_fs=self.wish.root_fs)
            host = self._host(replace(made, dress=self.wish.dress))
            host.build()
        for host in self.hosts:
            host.on.start()
        for host in self.hosts:
            host.on.wait_for_login(fleet.LOGIN_S)
            host.enrol()
            self.say(f"{host.spec.name} ({host.spec.address}) runs and is enrolled")
        return {host.spec.name: Facts.read(host.on, host.spec) for host in self.hosts}

    def _host(self, spec: HostSpec) -> LabHost:
        self.hosts.append(LabHost(self.lab, self.control, spec, accel=self.wish.accel))
        return self.hosts[-1]

    def order(self) -> None:
        """Order the upgrade: of one host by itself, of several by a rollout."""
        self._wait_for_inventory()
        if len(self.hosts) > 1:
            self._rollout()
            return
        name = self.hosts[0].spec.name
        self._answer(name)
        self.say(f"$ reroot host order {name} --release {fleet.RELEASE}/amd64")
        self.control.command("host", "order", name, "--release", f"{fleet.RELEASE}/amd64")

    def _wait_for_inventory(self) -> None:
        deadline, pause = clock.monotonic() + 120, threading.Event()
        waiting = {host.spec.name for host in self.hosts}
        while waiting:
            waiting = {name for name in waiting if not self.control.get(f"/hosts/{name}")["facts"]}
            if waiting and clock.monotonic() > deadline:
                raise CommandError(f"{', '.join(sorted(waiting))} did not report what they are made of")
            pause.wait(0.5)

    def _answer(self, name: str) -> None:
        """Have a host say what it would lose, and answer for all of it, as a person would who read it."""
        self.say(f"$ reroot precious report {name}")
        done = self.control.command("precious", "report", name, check=False)
        if done.status not in {0, EXIT_CODES[Kind.REFUSED]}:
            raise CommandError(f"{name} made no loss report: {done.stderr.decode(errors='replace').strip()}")
        for line in done.text.splitlines():
            self.say(f"  {line}")
        if done.status:
            self.say(f"$ reroot precious accept {name} --all")
            self.control.command("precious", "accept", name, "--all")

    def _rollout(self) -> None:
        names = [host.spec.name for host in self.hosts]
        self.say(f"$ reroot rollout start {fleet.RELEASE}/amd64 {' '.join(names)} --interval 20s --start-interval 30s")
        self.control.command("rollout", "start", f"{fleet.RELEASE}/amd64", *names, "--interval", "20s",
                             "--start-interval", "30s", "--failure-budget", "1", "--blast-budget", str(len(names)))
        for name in names:
            self._answer(name)

    # -- a blank machine -------------------------------------------------------------------------------------

    def install(self) -> Story:
        """Boot machines with blank or broken disks from the network and install them."""
        subnets = len(self.lab.network.subnets)
        for number in range(self.wish.hosts):
            spec = fleet.spec(number, firmware=self.firmware, subnets=subnets, runtime=None,
                              root_fs=self.wish.root_fs, group=self.wish.group)
            host = self._host(spec)
            if self.wish.broken:
                host.broken()
            else:
                host.blank()
            self.control.enrolment_token(host.entry())
            self.say(f"$ reroot host order {spec.name} --install --release {fleet.RELEASE}/amd64")
            self.control.command("host", "order", spec.name, "--install", "--release", f"{fleet.RELEASE}/amd64")
        for host in self.hosts:
            host.on.start()
            disk = "broken" if self.wish.broken else "blank"
            self.say(f"{host.spec.name} is switched on: {disk} disk, boots from the network")
        phases = self.follow()
        return self.compare(dict.fromkeys((host.spec.name for host in self.hosts), None), phases)

    # -- telling ---------------------------------------------------------------------------------------------

    def follow(self, *, forgive: bool = False) -> dict[str, dict[str, float]]:
        """Print what the hosts report until every order is over; returns host -> phase -> seconds.

        Raises CommandError when an order fails, unless `forgive` says that its host may recover.
        """
        names = [host.spec.name for host in self.hosts]
        seen, began = dict.fromkeys(names, 0), dict[tuple[str, str], float]()
        phases: dict[str, dict[str, float]] = {name: {} for name in names}
        deadline, pause = clock.monotonic() + UPGRADE_S * len(names), threading.Event()
        open_orders = set(names)
        while open_orders:
            for name in names:
                for event in self.control.events(name, seen[name]):
                    seen[name] = int(str(event["id"]))
                    self._tell(name, event, began, phases[name])
            states = {name: str(self.control.order_of(name).get("state")) for name in open_orders}
            if "failed" in states.values() and not forgive:
                failed = next(name for name, state in states.items() if state == "failed")
                raise CommandError(f"{failed}: {self.control.order_of(failed).get('message')}; its console is in "
                                   f"{self.lab.logs}")
            open_orders -= {name for name, state in states.items() if state == "completed"}
            if clock.monotonic() > deadline:
                raise CommandError(f"the orders are still {states}; the consoles are in {self.lab.logs}")
            pause.wait(0.5)
        return phases

    def _tell(self, host: str, event: Mapping[str, object], began: dict[tuple[str, str], float],
              phases: dict[str, float]) -> None:
        phase, kind, at = str(event["phase"]), str(event["event"]), float(str(event["received_s"]))
        data = event["data"] if isinstance(event["data"], dict) else {}
        if kind == "begin":
            began[host, phase] = at
            self.say(f"{host}: {phase} …")
        elif kind == "progress" and data.get("tickets"):
            self.say(f"{host}: {phase} holds ticket {', '.join(map(str, data['tickets']))}")
        elif kind == "progress" and int(data.get("total", 0)) >= 1_000_000:
            self.say(f"{host}: {phase} {int(data.get('done', 0)) / 1e6:.0f} of {int(data['total']) / 1e6:.0f} MB")
        elif kind in {"done", "healthy", "failed"}:
            seconds = at - began.get((host, phase), at)
            phases[phase] = phases.get(phase, 0.0) + seconds
            words = ", ".join(f"{name} {value}" for name, value in data.items()
                              if isinstance(value, int | float | str) and value != "" and name not in _UNTOLD)
            self.say(f"{host}: {phase} {kind} in {seconds:.1f} s  {words} {event['message'] or ''}".rstrip())

    def compare(self, before: Mapping[str, Facts | None], phases: Mapping[str, Mapping[str, float]]) -> Story:
        """Log into every host again and read what it is now."""
        after = {}
        for host in self.hosts:
            if before[host.spec.name] is None:
                host.on.wait_for_login(fleet.LOGIN_S)
                system = host.on.succeed(". /etc/os-release; echo $PRETTY_NAME").strip()
                after[host.spec.name] = Facts({"system": system, "host name": host.on.succeed("hostname").strip()})
            else:
                host.on.wait_for_login(fleet.LOGIN_S)
                after[host.spec.name] = Facts.read(host.on, host.spec)
        return Story(before, after, phases)


def table(story: Story) -> str:
    """Return the before/after table for people."""
    lines = []
    for name, after in story.after.items():
        before = story.before[name]
        lines.append(f"{name:<14} {'before':<34} after")
        for question, answer in after.answers.items():
            was = before.answers.get(question, "") if before else "-"
            verdict = "" if before is None or question not in fleet.KEPT else "  kept" if was == answer else "  CHANGED"
            lines.append(f"  {question:<12} {was[:33]:<34} {answer[:46]}{verdict}")
        spent = story.phases.get(name, {})
        lines.append("  phases       " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in spent.items()))
    return "\n".join(lines)


def lost(story: Story) -> list[str]:
    """Return one sentence for everything that an upgrade should have kept and did not."""
    found = []
    for name, before in story.before.items():
        if before is not None:
            after = story.after[name].answers
            found += [f"{name}: {question} was {before.answers[question]} and is {after.get(question)}"
                      for question in fleet.KEPT if before.answers[question] != after.get(question)]
    return found


def show(wish: Wish, say: Say, logs: Path | None = None) -> Story:
    """Run the demo in a lab of its own; raises CommandError when something precious was lost."""
    if not 1 <= wish.hosts <= len(fleet.NAMES):
        raise UsageError(f"the demo runs 1 to {len(fleet.NAMES)} hosts; choose --hosts in that range")
    with Lab(subnets=(1, 2) if wish.hosts > 1 else (1,), logs=logs) as lab:
        say(f"lab {lab.name}: consoles and logs in {lab.logs}")
        story = Demo(lab, wish, say).run()
    say("")
    say(table(story))
    if missing := lost(story):
        raise CommandError("; ".join(missing))
    return story
