"""A real site with a real server on real ports, and machines that sign with real keys."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from control import site as sites
from control.site import Site
from imaging.capture import capture
from imaging.catalogue import Catalogue
from imaging.recovery_manifest import MEMORY
from imaging.store import Store
from plumbing import clock, hostauth
from plumbing.http import Client, Response

ROOT = Path(__file__).resolve().parents[3]
RECOVERY = "recovery/base/1/amd64.json"
NEEDED_BYTES = 256 << 20
"""Memory that this recovery image needs."""
_PORTS = itertools.count(os.getpid())
T = TypeVar("T")


def free_port() -> int:
    """Return a port that nobody has or will be given: below those of outgoing connections, this worker's own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 20_000 + 1_000 * (worker % 12) + next(_PORTS) % 1_000
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def make_site(folder: Path, extra: str = "", loss: str = "warn") -> Site:
    """Make a site whose server listens on free loopback ports and works quickly."""
    api, content = free_port(), free_port()
    site = sites.init(folder, f"http://127.0.0.1:{api}")
    text = site.config.read_text().replace(f"0.0.0.0:{api}", f"127.0.0.1:{api}").replace(
        "0.0.0.0:8081", f"127.0.0.1:{content}")
    site.config.write_text(f"{text}\n[rollout]\ntick_s = 0.1\n{extra}")
    # most machines here have no agent that could make a loss report
    site.precious.write_text(f"{site.precious.read_text()}\n[loss]\nrule = \"{loss}\"\n")
    return site


def publish_release(site: Site, folder: Path, version: str = "13.1") -> bytes:
    """Capture a small tree into the site and publish it with a recovery image; return the release's manifest."""
    tree = folder / f"tree-{version}"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/os-release").write_text(f"VERSION_ID={version}\n")
    (tree / "blob").write_bytes(os.urandom(200_000))
    store = Store(site.store)
    manifest = capture(tree, store, name="debian", version=version, arch="amd64", recovery=RECOVERY)
    layers = [{"mediaType": "application/octet-stream", "digest": store.add_bytes(data), "size": len(data),
               "annotations": {"org.opencontainers.image.title": title}}
              for title, data in (("vmlinuz", b"a kernel"), ("initrd.img", b"an initramfs"))]
    recovery = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                           "config": {}, "layers": layers,
                           "annotations": {MEMORY: str(NEEDED_BYTES)}}).encode()
    Catalogue(site.catalogue, site.keys).publish_all(
        {f"releases/debian/{version}/amd64.json": manifest, RECOVERY: recovery})
    return manifest


def wait_until(condition: Callable[[], T], seconds: float = 20.0) -> T:
    """Call `condition` until it returns something true."""
    deadline = clock.monotonic() + seconds
    while not (value := condition()):
        assert clock.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
    return value


class Told(Response):
    """An answer whose JSON a test looks into: what is not as it should be fails there."""

    def json(self) -> Any:
        return super().json()


class Caller(Client):
    """A client whose answers are Told."""

    def request(self, *words: Any, **more: Any) -> Told:
        answer = super().request(*words, **more)
        return Told(answer.status, answer.headers, answer.body)

    def post_json(self, *words: Any, **more: Any) -> Told:
        answer = super().post_json(*words, **more)
        assert isinstance(answer, Told)
        return answer


@dataclass
class Server:
    """`reroot serve` as a process."""

    site: Site
    process: subprocess.Popen[bytes]
    api: str
    content: str
    log: Path

    def admin(self, method: str, path: str, value: object = None, token: str | None = None) -> Told:
        bearer = {"Authorization": f"Bearer {token or self.site.admin_token()}"}
        body = json.dumps(value).encode() if value is not None else b""
        return Caller(self.api).request(method, f"/api/v1/admin{path}", body=body, headers=bearer)

    def get(self, path: str, **headers: str) -> Told:
        return Caller(self.api).request("GET", path, headers=headers)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(site: Site) -> Iterator[Server]:
    """Run `reroot serve` until the block ends."""
    from control import config

    loaded = config.load(site.config)
    log = site.root / "serve.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", "from cli.main import main; main()", "serve", "--site", str(site.root)],
            cwd=ROOT, stdout=stream, stderr=stream)
    server = Server(site, process, loaded.server.public_url, f"http://{loaded.server.content}", log)
    try:
        wait_until(lambda: process.poll() is not None or answers(server), 90)
        assert process.poll() is None, log.read_text()
        yield server
    finally:
        if process.poll() is None:
            server.stop()


def answers(server: Server) -> bool:
    from plumbing.errors import NetworkError

    try:
        return all(Client(url).request("GET", "/healthz").status == 200 for url in (server.api, server.content))
    except NetworkError:
        return False


def child_pids(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def content_pids(server: Server) -> list[int]:
    return [child for child in child_pids(server.process.pid)
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@dataclass
class Machine:
    """A host of the site, from the outside."""

    server: Server
    name: str
    mac: str
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public(self) -> str:
        raw = self.key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return base64.b64encode(raw).decode()

    def client(self) -> Caller:
        return Caller(self.server.api, signer=lambda method, target, body: hostauth.sign(
            self.key, self.name, clock.wall(), method, target, body))

    def add(self, **table: object) -> str:
        """Have the administrator add this host; return the enrolment token."""
        host = {"name": self.name, "macs": [self.mac], "subnet": "10.1.0.0/24", **table}
        answer = self.server.admin("POST", "/hosts", {"host": host})
        assert answer.status == 201, answer.body
        return str(answer.json()["token"])

    def enrol(self, token: str | None = None, **secret: str) -> Told:
        if token is not None:
            secret["proof"] = hostauth.enrolment_proof(hostauth.token_digest(token), self.name, self.public)
        return Caller(self.server.api).post_json("/api/v1/enrol", {
            "host": self.name, "public_key": self.public, **secret})

    def report(self, phase: str, event: str, data: object = None, order: str | None = None,
               message: str | None = None) -> Told:
        return self.client().post_json(f"/api/v1/hosts/{self.name}/report", {
            "order": order, "phase": phase, "event": event, "at": clock.iso(clock.wall()), "data": data or {},
            "message": message})

    def inventory(self, memory_bytes: int = 1 << 30) -> None:
        part = {"disk_serial": "D1", "fstype": "ext4"}
        guid = "00000000-0000-4000-8000-00000000000"
        answer = self.report("inventory", "inventory", {
            "arch": "amd64", "firmware": "bios", "memory_bytes": memory_bytes, "serial": "",
            "links": [{"name": "eth0", "mac": self.mac, "address": "10.1.0.11/24", "gateway": None}],
            "disks": {"root": {**part, "partuuid": f"{guid}1"}, "local": {**part, "partuuid": f"{guid}2"},
                      "boot": {**part, "partuuid": f"{guid}3", "fstype": "vfat"}}})
        assert answer.status == 204, answer.body

    def join(self) -> Machine:
        """Be added, enrol and report an inventory."""
        assert self.enrol(token=self.add()).status == 201
        self.inventory()
        return self

    def order(self, wait: int = 0) -> Told:
        return self.client().request("GET", f"/api/v1/hosts/{self.name}/order?wait={wait}")

    def shown(self) -> Any:
        return self.server.admin("GET", f"/hosts/{self.name}").json()

    def told(self) -> set[tuple[str, str]]:
        """Return (phase, event) of everything that the host reported."""
        events = self.server.admin("GET", f"/hosts/{self.name}/events").json()["events"]
        return {(event["phase"], event["event"]) for event in events}

    def issue(self, **wish: object) -> Told:
        return self.server.admin("POST", "/orders", {"host": self.name, "release": "debian/13.1", **wish})

    def issued(self, **wish: object) -> str:
        answer = self.issue(**wish)
        assert answer.status == 201, answer.body
        return str(answer.json()["order"]["id"])

    def state(self) -> object:
        return self.shown()["order"]["state"]
