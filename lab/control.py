"""A control server of the lab (I/O): a real site, made and served by the `reroot` command inside the lab's network."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.process import Process
from lab.session import Lab
from plumbing import clock, run
from plumbing.errors import CommandError
from plumbing.http import Client

API_PORT, CONTENT_PORT, MAIL_PORT = 8080, 8081, 2525
START_S = 60.0

_CONFIG = """\
[server]
api = "0.0.0.0:{api}"
content = "0.0.0.0:{content}"
public_url = "{url}"

[mail]
sender = "reroot@lab.example"
to = ["operator@lab.example"]
gateways = [{{ host = "{address}", port = {mail} }}]

[orders]
services = ["root-dump"]
attempts = {attempts}

[boot]
stray = "rescue"
"""

_BOOT = """
[dhcp]
enabled = true

[tftp]
enabled = true
"""

_SUBNET = """
[[dhcp.subnet]]
interface = "{bridge}"
network = "{cidr}"
server = "{gateway}"
router = "{gateway}"
"""

TICKETTAB = "service root-dump 600\ncontrol 2\n"


class ControlServer:
    """One site in `folder` and the server over it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.url = f"http://{lab.control_address}:{API_PORT}"
        self._process: Process | None = None

    def command(self, *words: str | Path, timeout_s: float = 600.0, check: bool = True) -> run.Completed:
        """Run `reroot WORDS` for this site, where it reaches the server; raises CommandError with what it said."""
        return run.run(self.lab.network.argv(self._argv(words)), timeout_s=timeout_s, env=self._environment(),
                       check=check)

    def build(self, *words: str | Path, timeout_s: float = 600.0) -> dict[str, object]:
        """Run `reroot WORDS --json` outside of the lab's network, where packages are to be had; returns its answer."""
        done = run.run([*self._argv(words), "--json"], timeout_s=timeout_s, env=self._environment())
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    @staticmethod
    def _argv(words: Sequence[str | Path]) -> list[str]:
        return [sys.executable, "-c", "from cli.main import main; main()", *map(str, words)]

    def _environment(self) -> dict[str, str]:
        import_path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, "REROOT_SITE": str(self.folder), "PYTHONPATH": import_path.rstrip(os.pathsep)}

    def init(self, *, template: Path | None = None, network_boot: bool = False, attempts: int = 3) -> None:
        """Make the site, or copy one that was made before, and configure it for this lab."""
        if template is None:
            self.build("init", self.folder, "--url", self.url)
        else:
            run.run(["cp", "--archive", "--reflink=auto", template, self.folder], timeout_s=300)
        self.configure(network_boot=network_boot, attempts=attempts)

    def configure(self, *, network_boot: bool = False, attempts: int = 3) -> None:
        """Write reroot.toml and tickettab for this lab."""
        text = _CONFIG.format(api=API_PORT, content=CONTENT_PORT, url=self.url, address=self.lab.control_address,
                              mail=MAIL_PORT, attempts=attempts)
        if network_boot:
            text += _BOOT + "".join(_SUBNET.format(bridge=subnet.bridge, cidr=subnet.cidr, gateway=subnet.gateway)
                                    for subnet in self.lab.network.subnets.values())
        (self.folder / "reroot.toml").write_text(text)
        (self.folder / "tickettab").write_text(TICKETTAB)

    def start(self) -> None:
        """Serve, and wait until it answers."""
        self._process = self.lab.program(self._argv(["serve", "--site", self.folder]), name="control")
        deadline, pause = clock.monotonic() + START_S, threading.Event()
        while not self.lab.network.listening(self.lab.control_address, API_PORT):
            if not self._process.running or clock.monotonic() > deadline:
                raise CommandError(f"the control server did not start: {self._process.last_words()}")
            pause.wait(0.1)

    def stop(self) -> None:
        """Stop serving, as SIGTERM does."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()

    # -- the admin API ---------------------------------------------------------------------------------------

    def get(self, path: str) -> dict[str, object]:
        """GET an admin path below /api/v1/admin."""
        return self._ask("GET", path, None)

    def post(self, path: str, value: object) -> dict[str, object]:
        """POST JSON to an admin path below /api/v1/admin."""
        return self._ask("POST", path, value)

    def _ask(self, method: str, path: str, value: object) -> dict[str, object]:
        token = (self.folder / "keys/admin.token").read_text().strip()
        body = b"" if value is None else json.dumps(value).encode()
        with self.lab.network.inside():
            client = Client(self.url)
            try:
                answer = client.request(method, f"/api/v1/admin{path}", body=body, headers={
                    "Authorization": f"Bearer {token}", "Content-Type": "application/json"})
            finally:
                client.close()
        found = answer.accepted()
        assert isinstance(found, dict)
        return found

    def enrolment_token(self, table: Mapping[str, object]) -> str:
        """Write a host into hosts.toml and return its one-time token."""
        return str(self.post("/hosts", {"host": dict(table)})["token"])

    def events(self, host: str, after: int = 0) -> list[dict[str, object]]:
        """Return what a host reported since event `after`, oldest first."""
        found = self.get(f"/hosts/{host}/events?after={after}&limit=5000")["events"]
        assert isinstance(found, list)
        return found

    def order_of(self, host: str) -> dict[str, object]:
        """Return the host's newest order; {} when it has none."""
        found = self.get(f"/hosts/{host}")["order"]
        return found if isinstance(found, dict) else {}
