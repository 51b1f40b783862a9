"""The servers that hand out slots: etcd, PostgreSQL, reroot; each on loopback, its data below one folder. I/O.

All with their ordinary durability: what was answered is on disk. PostgreSQL gets a row for every slot and a partial
index over the free ones.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pytest_postgresql.executors import PostgreSQLExecutor

from bench import throttle_wire
from control import site as sites
from plumbing import clock, hostauth
from plumbing.errors import NetworkError
from plumbing.http import Client
from plumbing.run import run, spawn

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0
SLOTS = 100_000
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Peer(Protocol):
    """One server."""

    name: str
    version: str
    address: str
    file: Path

    def start(self) -> None:
        """Start it; returns when it answers."""

    def stop(self) -> None:
        """Stop it."""

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes so far."""


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and all its children, those that ended included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) * _TICK_S + sum(cpu_s(int(child)) for child in children)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = clock.monotonic() + START_S
    while not ready():
        assert process.poll() is None and clock.monotonic() < deadline_s, log.read_text()


class Etcd:
    """Debian's etcd-server, one member."""

    name = "etcd"

    def __init__(self, folder: Path) -> None:
        self.file, self._folder, self._port = Path("/dev/null"), folder, free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.version = run(["etcd", "--version"]).text.splitlines()[0].rpartition(" ")[2]

    def start(self) -> None:
        client, peer = f"http://{self.address}", f"http://127.0.0.1:{free_port()}"
        log = self._folder / "etcd.log"
        with log.open("ab") as stream:
            self._process = spawn([
                "etcd", "--data-dir", self._folder / "etcd", "--listen-client-urls", client, "--advertise-client-urls",
                client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster",
                f"default={peer}", "--logger", "zap", "--log-outputs", "stderr"], errors=stream)
        _wait(self._answers, self._process, log)

    def _answers(self) -> bool:
        try:
            return b'"true"' in Client(f"http://{self.address}").request("GET", "/health").body
        except NetworkError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def cpu_s(self) -> float:
        return cpu_s(self._process.pid)


class Postgres:
    """Debian's PostgreSQL, with room for the connections and otherwise as it comes."""

    name = "PostgreSQL"

    def __init__(self, folder: Path, connections: int) -> None:
        self.file, port = Path("/dev/null"), free_port()
        self._server = PostgreSQLExecutor(
            executable=str(ROOT / "tests/unit/pg_ctl.sh"), host="127.0.0.1", port=port,
            datadir=str(folder / "postgresql"), unixsocketdir="/tmp", logfile=str(folder / "postgresql.log"),
            startparams="-w", dbname="slots",
            postgres_options=f"-c fsync=on -c max_connections={connections + 20}")
        self.address = f"postgresql://{self._server.user}@127.0.0.1:{port}/slots"
        self.version = str(self._server.version)

    def start(self) -> None:
        self._server.start()
        run(["createdb", "--maintenance-db", self.address.replace("/slots", "/postgres"), "slots"])
        for statement in ("create table slots (id int primary key, holder text, until timestamptz) "
                          "with (fillfactor = 50)", f"insert into slots select generate_series(1, {SLOTS})",
                          "create index free on slots (id) where holder is null", "vacuum analyze slots"):
            run(["psql", "-q", "-d", self.address, "-c", statement])

    def stop(self) -> None:
        self._server.stop()

    def cpu_s(self) -> float:
        return cpu_s(int((Path(self._server.datadir) / "postmaster.pid").read_text().split()[0]))


class Reroot:
    """`reroot serve` on SQLite, with a host for every connection."""

    name = "reroot"

    def __init__(self, folder: Path, connections: int) -> None:
        api, content = free_port(), free_port()
        self.address, self.file, self._connections = f"127.0.0.1:{api}", folder / "hosts.json", connections
        self.version = "this one"
        self.site = sites.init(folder / "site", f"http://{self.address}")
        self.site.config.write_text(
            self.site.config.read_text().replace(f"0.0.0.0:{api}", self.address).replace(
                "0.0.0.0:8081", f"127.0.0.1:{content}"))
        with self.site.tickettab.open("a") as tab:
            tab.write(f"service bench {throttle_wire.TTL_S}\npool {SLOTS}\n")
        self.site.hosts.write_text("".join(f'[[host]]\nname = "h{number}"\n' for number in range(connections)))

    def start(self) -> None:
        log = self.site.root / "serve.log"
        with log.open("ab") as stream:
            self._process = spawn(
                [sys.executable, "-c", "from cli.main import main; main()", "serve", "--site", self.site.root],
                errors=stream, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        _wait(self._answers, self._process, log)
        self.file.write_text(json.dumps([self._enrolled(f"h{number}") for number in range(self._connections)]))

    def _answers(self) -> bool:
        try:
            return Client(f"http://{self.address}").request("GET", "/healthz").status == 200
        except NetworkError:
            return False

    def _enrolled(self, name: str) -> tuple[str, str]:
        key = Ed25519PrivateKey.generate()
        public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
        bearer = {"Authorization": f"Bearer {self.site.admin_token()}"}
        client = Client(f"http://{self.address}")
        token = client.request("POST", "/api/v1/admin/hosts", body=json.dumps({"host": {"name": name}}).encode(),
                               headers=bearer).accepted()
        assert isinstance(token, dict)
        proof = hostauth.enrolment_proof(hostauth.token_digest(str(token["token"])), name, public)
        client.post_json("/api/v1/enrol", {"host": name, "public_key": public, "proof": proof}).accepted()
        raw = key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw,
                                serialization.NoEncryption())
        return name, raw.hex()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def cpu_s(self) -> float:
        return cpu_s(self._process.pid)


class Signing:
    """The same server, asked by hosts that sign each request."""

    name = "reroot, signing"

    def __init__(self, server: Reroot) -> None:
        self._server = server
        self.version, self.address, self.file = server.version, server.address, server.file

    def start(self) -> None:
        """It runs."""

    def stop(self) -> None:
        """It is stopped by itself."""

    def cpu_s(self) -> float:
        return self._server.cpu_s()
