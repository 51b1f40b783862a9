"""Real daemons, real hosts and somebody who means harm, for a few seconds; what comes back is the history.

The clock of the machine is not touched: a daemon whose wall clock shall jump runs under libfaketime, which reads from
a file how far it is off. Its monotonic clock stays what it is, as on a machine whose administrator sets the time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cutter import Cutter
from history import Op, Seen, parse
from pytest_postgresql.executors import PostgreSQLExecutor
from servers import ROOT, Machine, Server, answers, child_pids, content_pids, free_port, make_site, wait_until

from control.site import Site
from plumbing import clock
from plumbing.errors import RerootError
from plumbing.run import run as run_program

SERVICE = "contended"
SLOTS = {"a": 3, "b": 2}
SHORT_S, LONG_S = 2, 20
"""Lifetimes: one that stopped hosts outsleep, and one that outlives the restart of a daemon."""
PROCESSES, HOSTS = 2, 6
"""Processes of hosts, and hosts in each of them."""
MAX_JUMP_S = 200
"""How far the wall clock jumps, in seconds: hosts sign with the right one, and are believed within 300."""
BACK_S = 30.0
"""How soon a daemon answers again once its database does, in seconds."""
TURNS = 3
"""How often each nemesis comes at least."""
MOST_S = 180.0
"""How much longer than it should anything takes at most on a machine that is busy with other things, in seconds."""
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@dataclass
class Daemon:
    """`reroot serve` on one site, which can be killed and started again."""

    site: Site
    api: str
    content: str
    offset: Path | None
    """How far its wall clock is off, for libfaketime; None when it runs without."""
    server: Server | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self.site.root / "serve.log"
        env = dict(os.environ)
        if self.offset is not None:
            env |= {"LD_PRELOAD": str(FAKETIME[0]), "FAKETIME_TIMESTAMP_FILE": str(self.offset),
                    "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", "from cli.main import main; main()", "serve", "--site", str(self.site.root)],
                cwd=ROOT, stdout=stream, stderr=stream, env=env)
        server = Server(self.site, process, self.api, self.content, log)
        wait_until(lambda: process.poll() is not None or answers(server), MOST_S)
        assert process.poll() is None, log.read_text()
        self.server = server

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.server is not None:
            children = content_pids(self.server)
            self.server.process.kill()
            self.server.process.wait()
            self.server = None
            wait_until(lambda: not any(map(_alive, children)), MOST_S)  # they hold its ports

    def jump(self, seconds: int) -> None:
        """Set its wall clock."""
        assert self.offset is not None
        self.offset.write_text(f"{seconds:+d}\n")

    def look(self) -> Seen | None:
        """Ask who holds what; None when it does not answer."""
        server, asked_s = self.server, clock.monotonic()
        if server is None:
            return None
        try:
            services = server.admin("GET", "/status").json()["tickets"]
        except (RerootError, KeyError, TypeError):
            return None
        leases = [lease for one in services if one["service"] == SERVICE for lease in one["leases"]]
        return Seen(asked_s, clock.monotonic(), {lease["ticket"]: lease["holder"] for lease in leases})


@dataclass
class Campaign:
    """What is under attack."""

    daemons: list[Daemon]
    cutters: list[Cutter]
    processes: list[subprocess.Popen[bytes]]
    chance: random.Random
    postgresql: PostgreSQLExecutor | None
    seen: list[Seen] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    pause: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Keep what every daemon that answers says of the tickets."""
        self.seen += [look for daemon in self.daemons if (look := daemon.look()) is not None]

    def crash(self) -> None:
        """Kill a daemon in the middle of everything and start it again."""
        daemon = self.chance.choice(self.daemons)
        daemon.kill()
        daemon.start()
        self.look()
        self.done.append("crash")

    def fall(self) -> None:
        """Kill every process of PostgreSQL at once and start it again; the daemons must find back by themselves."""
        assert self.postgresql is not None
        data = Path(self.postgresql.datadir)
        postmaster = int((data / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGSTOP)  # no children come or go while they are counted
        killed = [postmaster, *child_pids(postmaster)]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(_alive, killed)))
        (data / "postmaster.pid").unlink()  # an orphan that nobody reaps would count as running
        self.pause.wait(self.chance.uniform(0.0, 1.0))
        run_program([self.postgresql.executable, "restart", "-w", "-D", data, "-l", self.postgresql.logfile])
        for daemon in self.daemons:
            wait_until(daemon.look, BACK_S)
        self.look()
        self.done.append("fall")

    def jump(self) -> None:
        """Set a daemon's wall clock forth or back."""
        self.chance.choice(self.daemons).jump(self.chance.randint(-MAX_JUMP_S, MAX_JUMP_S))
        self.done.append("jump")

    def stop(self) -> None:
        """Stop a process of hosts for longer than their tickets live, then let it go on, believing what it did."""
        process = self.chance.choice(self.processes)
        process.send_signal(signal.SIGSTOP)
        self.pause.wait(1.25 * SHORT_S)
        process.send_signal(signal.SIGCONT)
        self.done.append("stop")

    def lose(self) -> None:
        """Lose a part of all answers from now on."""
        for cutter in self.cutters:
            cutter.share = 0.1


NEMESES: dict[str, Callable[[Campaign], None]] = {
    "crash": Campaign.crash, "fall": Campaign.fall, "stop": Campaign.stop, "jump": Campaign.jump}


def run(folder: Path, database: str, nemeses: list[str], *, daemons: int, seconds: float, seed: int,
        enough: Callable[[list[Op]], bool], postgresql: PostgreSQLExecutor | None = None) -> tuple[list[Op], Campaign]:
    """Let hosts fight for tickets, with the nemeses at work in turn; returns what the hosts saw.

    It ends after `seconds`, or later, when each nemesis had TURNS and what they saw is `enough`, but MOST_S after
    that at the latest.
    """
    busy = [name for name in nemeses if name != "lost"]
    history = folder / "history"
    with _opened(folder, database, daemons, seed, nemeses, postgresql) as campaign:
        if "lost" in nemeses:
            campaign.lose()
        began_s = clock.monotonic()
        turn = 0
        while (past_s := clock.monotonic() - began_s) < seconds or (past_s < seconds + MOST_S and (
                turn < TURNS * len(busy) or not enough(_read(history)))):
            campaign.pause.wait(campaign.chance.uniform(0.5, 1.0))
            campaign.look()
            NEMESES[busy[turn % len(busy)]](campaign)
            turn += 1
        campaign.look()
        assert all(process.poll() is None for process in campaign.processes)
    return _read(history), campaign


def _read(history: Path) -> list[Op]:
    return parse(history.read_text().splitlines(keepends=True)) if history.exists() else []


@contextmanager
def _opened(folder: Path, database: str, count: int, seed: int, nemeses: list[str],
            postgresql: PostgreSQLExecutor | None) -> Iterator[Campaign]:
    lifetime_s = SHORT_S if "stop" in nemeses else LONG_S
    first = make_site(folder / "site0")
    first.config.write_text(first.config.read_text().replace("[server]\n", f'[server]\ndatabase = "{database}"\n'))
    first.tickettab.write_text(first.tickettab.read_text() + f"service {SERVICE} {lifetime_s}\n" + "".join(
        f"{provider} {slots}\n" for provider, slots in SLOTS.items()))
    names = [f"h{number}" for number in range(PROCESSES * HOSTS)]
    first.hosts.write_text("".join(f'[[host]]\nname = "{name}"\n' for name in names))
    with ExitStack() as stack:
        daemons = []
        for number in range(count):
            site = first if number == 0 else _twin(first, folder / f"site{number}")
            daemons.append(_daemon(site, folder / f"offset{number}" if "jump" in nemeses else None))
            stack.callback(daemons[-1].kill)
            daemons[-1].start()
        assert daemons[0].server is not None
        keys = [_enrolled(daemons[0].server, name) for name in names]
        cutters = [Cutter(int(daemon.api.rpartition(":")[2]), seed + number) for number, daemon in enumerate(daemons)]
        processes = []
        for number in range(PROCESSES):
            wish = folder / f"wish{number}.json"
            wish.write_text(json.dumps({
                "hosts": list(zip(names, keys, strict=True))[number::PROCESSES], "seed": seed,
                "urls": [cutter.url for cutter in cutters], "service": SERVICE, "history": str(folder / "history")}))
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("holders.py")), str(wish)],
                env={**os.environ, "PYTHONPATH": str(ROOT)})
            stack.callback(_end, process)
            processes.append(process)
        for cutter in cutters:
            stack.callback(cutter.close)
        yield Campaign(daemons, cutters, processes, random.Random(seed), postgresql)


def _daemon(site: Site, offset: Path | None) -> Daemon:
    from control import config

    loaded = config.load(site.config)
    if offset is not None:
        assert FAKETIME, "libfaketime is not installed"
        offset.write_text("+0\n")
    return Daemon(site, loaded.server.public_url, f"http://{loaded.server.content}", offset)


def _twin(first: Site, folder: Path) -> Site:
    """Return a copy of the site for a second server beside the first, with the same keys and database."""
    from control import config

    shutil.copytree(first.root, folder)
    twin = Site.open(folder)
    loaded = config.load(twin.config).server
    text = twin.config.read_text()
    for listen in (loaded.api, loaded.content):
        text = text.replace(f":{listen.rpartition(':')[2]}", f":{free_port()}")
    twin.config.write_text(text)
    return twin


def _enrolled(server: Server, name: str) -> str:
    machine = Machine(server, name, "")
    token = server.admin("POST", "/hosts", {"host": {"name": name}}).json()["token"]
    assert machine.enrol(token=str(token)).status == 201
    return machine.key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw,
                                     serialization.NoEncryption()).hex()


def _alive(pid: int) -> bool:
    try:  # an orphan that nobody reaps is a zombie
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
