"""The agent on the living host (I/O): tell who we are, wait for an order, stage it, boot recovery once.

Started by reroot-agent.service from the host runtime. It needs nothing of the host but a Linux kernel and, for health
and reboot, systemd. Its states are drawn in docs/machines/agent.dot. It wipes nothing: that is recovery's work, after
it verified the order again by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fleet import health, inventory, losing, stage
from plumbing import clock, durable
from plumbing.digest import sha256
from plumbing.errors import CommandError, ConfigError, RefusedError, RerootError, TrustError
from plumbing.http import Client
from plumbing.run import run
from precious import archives
from recovery import identity, lastgasp, network, report, servers, signed_order
from recovery.drive import as_error
from recovery.identity import Identity
from recovery.journal import Journal
from recovery.log import Log
from recovery.machine import PASSING
from recovery.order import Order
from recovery.phases.begin import machine_serial
from recovery.report import Reporter

LOCAL = Path("/local")
POLL_S = 25
"""How long one question for an order waits for an answer, in seconds."""
ANSWER_S = 30.0
"""How long any answer may take from its first byte to its last, in seconds: a server that drips holds nobody."""
PAUSE_MIN_S, PAUSE_MAX_S = 2.0, 60.0
"""How long to wait after a failure, doubled each time, with a random half added so that a fleet spreads out."""
MAX_ROOT_BYTES = 1 << 20
MOST_BOOTS = 10
"""How often one order may take this host into recovery: where recovery itself cannot start or reach anyone, GRUB brings
the old system back each time, and nobody else counts."""
BOOTS = Path("agent/boots.json")
REBOOT_WAIT_S = 900.0
"""How long the system may take to go down, in seconds, before it is asked again."""
MAX_ROOTS = 1000
"""How many versions of root.json are looked through for the one with the right digest."""


class State(StrEnum):
    """Where the agent is."""

    STARTING = "starting"
    CONFIRMING = "confirming"
    WAITING = "waiting"
    STAGING = "staging"
    REBOOTING = "rebooting"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.CONFIRMING, State.WAITING}),
    State.CONFIRMING: frozenset({State.WAITING}),
    State.WAITING: frozenset({State.WAITING, State.STAGING}),
    State.STAGING: frozenset({State.WAITING, State.REBOOTING}),
    State.REBOOTING: frozenset(),
}


@dataclass
class Agent:
    """One run of the agent; `reboot` is what it does in the end."""

    identity: Identity
    log: Log
    local: Path = LOCAL
    root: Path = Path("/")
    reboot: Callable[[], None] = lambda: None
    state: State = State.STARTING
    reporter: Reporter = field(init=False)
    _pause_s: float = PAUSE_MIN_S
    _refused: set[str] = field(default_factory=set)
    _errands: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reporter = Reporter(self.log)

    @property
    def recover(self) -> Path:
        """Where everything that outlives a root lies."""
        return self.local / "recover"

    def go(self, state: State) -> None:
        """Change the state; an arrow that is not in the drawing is a defect."""
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    def run(self) -> None:
        """Work until the machine is told to boot recovery."""
        self.reporter.identify(self.identity)
        self._introduce()
        threading.Thread(target=self._deliver, daemon=True, name="spool").start()
        installed = health.installed()
        if installed.get("order") and not self._confirmed(installed["order"]):
            self.go(State.CONFIRMING)
            self._confirm(installed["order"])
        self.go(State.WAITING)
        while self.state is not State.REBOOTING:
            self._step()
        self.reporter.flush()
        self.reboot()

    def _introduce(self) -> None:
        facts = inventory.facts()
        durable.make_folder(self.recover / "agent", 0o700)
        described = json.dumps({"spec": 1, "links": facts["links"],
                                "nameservers": list(inventory.nameservers())}).encode()
        network.parse(described)  # recovery will read it: better to fail here
        durable.write_file(self.recover / "agent/network.json", described)
        self.reporter.send("health", "inventory", facts)
        self.log.say("agent", f"{self.identity.host} talks to {self.identity.control}")

    def _deliver(self) -> None:
        """Send the mails that recovery could not; what no gateway takes waits for the next start."""
        try:
            sent = lastgasp.deliver_spool(self.recover / "spool", say=lambda text: self.log.say("spool", text))
        except (RerootError, OSError) as error:
            self.log.say("spool", f"{error}")
            return
        if sent:
            self.log.say("spool", f"sent {sent} mails that recovery had left")

    # -- the new system is well ------------------------------------------------------------------------------

    def _confirmed(self, order_id: str) -> bool:
        marker = self.recover / "agent/confirmed"
        return marker.is_file() and marker.read_text().strip() == order_id

    def _confirm(self, order_id: str) -> None:
        """Tell how the system that this order brought is, once; an unwell one is told as failed."""
        verdict = health.check()
        self.reporter.order = order_id
        if verdict.well:
            self.reporter.send("health", "healthy", verdict.to_json())
        else:
            units = ", ".join(verdict.failed_units) or "none"
            self.reporter.send("health", "failed", verdict.to_json(),
                               f"the new system is {verdict.state}; failed units: {units}")
        self.log.say("health", f"{verdict.state}: {verdict.os_release.get('PRETTY_NAME', 'an unknown system')}")
        while not self.reporter.flush():
            self._wait("the control server has not heard of this system's health yet")
        durable.write_file(self.recover / "agent/confirmed", order_id.encode() + b"\n")
        stage.discard(self.recover)
        if verdict.well:
            for name in archives.prune(self.recover / "precious"):
                self.log.say("agent", f"removed the old precious archive {name}")
        self.reporter.order = None

    # -- an order --------------------------------------------------------------------------------------------

    def _step(self) -> None:
        try:
            envelope = self._ask()
            if envelope is None:
                if self._errands.pop("loss", None):
                    self._losses().answer()
                self._pause_s = PAUSE_MIN_S
                return
            order = self._verified(envelope)
        except RerootError as error:
            self._wait(error.sentence)
            return
        if order is None:
            return
        self.go(State.STAGING)
        self.reporter.order = order.id
        try:
            self._stage(order, envelope)
        except RerootError as error:
            self._failed(error)
            return
        except OSError as error:  # a full or failing /local is told; the service does not die of it again and again
            self._failed(as_error(error))
            return
        self.go(State.REBOOTING)

    def _losses(self) -> losing.LossReports:
        return losing.LossReports(self.identity, stage.catalogue(self.identity, self.local), self.local, self.log,
                                  self.reporter, self.root)

    def _failed(self, error: RerootError) -> None:
        final = error.kind not in PASSING  # what may be gone at the next try does not end the order
        phase = losing.PHASE if isinstance(error, losing.UnansweredError) else "stage"
        self.reporter.send(phase, "failed", {"kind": error.kind.value, "final": final}, error.sentence)
        self.go(State.WAITING)
        self._wait(error.sentence)

    def _ask(self) -> bytes | None:
        client = self.identity.client(timeout_s=POLL_S + 15.0)
        try:
            return servers.current_order(client, f"/api/v1/hosts/{self.identity.host}/order?wait={POLL_S}&loss=1",
                                         deadline_s=POLL_S + ANSWER_S,
                                         asked=lambda what: self._errands.update({what: True}))
        finally:
            client.close()

    def _verified(self, envelope: bytes) -> Order | None:
        """Return the order when it is ours, new and valid; None when there is nothing to do about it."""
        keys = stage.catalogue(self.identity, self.local).fetch("orders/keys.json")
        macs = [link.mac for link in inventory.links()]
        order = signed_order.verify(envelope, keys, host_macs=macs, now=clock.wall(),
                              host_serial=machine_serial(inventory.SYS))
        if order.host != self.identity.host:
            raise TrustError(f"the order is for {order.host} and this host is {self.identity.host}")
        journal = Journal(self.recover / "journal")
        if order.id in self._refused or journal.finished(order.id):
            self._wait(f"order {order.id} was dealt with before")
            return None
        if order.mode != "upgrade":
            raise self._refusal(order, f"is to {order.mode} this host, which a living host does not do to itself; boot "
                                       "it from the network, or issue an upgrade")
        if self._boots(order.id) >= MOST_BOOTS:
            raise self._refusal(order, f"made this host boot recovery {MOST_BOOTS} times, and each time the old system "
                                       f"came back ({journal.state.last_failure or 'no reason is in the journal'}); "
                                       "look at its console during recovery, then issue a new order")
        return order

    def _refusal(self, order: Order, why: str) -> RefusedError:
        """Tell the control server, once, why nothing is done about an order."""
        self._refused.add(order.id)
        self.reporter.order = order.id
        error = RefusedError(f"order {order.id} {why}")
        self.reporter.send("stage", "failed", {"kind": error.kind.value}, error.sentence)
        return error

    def _boots(self, order_id: str) -> int:
        """How often this host went into recovery for an order."""
        try:
            known = json.loads((self.recover / BOOTS).read_bytes())
        except (OSError, ValueError):
            return 0
        return int(known.get("boots", 0)) if isinstance(known, dict) and known.get("order") == order_id else 0

    def _stage(self, order: Order, envelope: bytes) -> None:
        self.log.say("stage", f"order {order.id}: {order.mode}")
        self.reporter.send("stage", "begin")
        began = clock.monotonic()
        told = stage.prepare(order, envelope, self.identity, self.local, self.log, self.reporter,
                             lambda: self._losses().require(order))
        durable.write_file(self.recover / BOOTS,
                           json.dumps({"order": order.id, "boots": self._boots(order.id) + 1}).encode())
        told["seconds"] = round(clock.monotonic() - began, 1)
        self.reporter.send("stage", "done", told)
        self.reporter.send("reboot", "begin", {}, "booting recovery once")
        self.log.say("reboot", "booting recovery once")

    def _wait(self, why: str) -> None:
        spread = self._pause_s * (1 + os.urandom(1)[0] / 510)
        self.log.say("agent", f"{why}; again in {spread:.0f} s")
        threading.Event().wait(spread)
        self._pause_s = min(PAUSE_MAX_S, self._pause_s * 2)


def _reboot() -> None:
    run(["systemctl", "reboot"], timeout_s=60)
    threading.Event().wait(REBOOT_WAIT_S)
    raise CommandError(f"this system did not go down in {REBOOT_WAIT_S:.0f} s; see what holds it: systemctl list-jobs")


def enrol(host: str, control: str, content: Sequence[str], token: str, trust_root: bytes, local: Path = LOCAL) -> None:
    """Make this machine's key and give it to the control server for a one-time token.

    Raises TrustError when the server's catalogue is not signed by `trust_root`, or when the server refuses; then what
    was not enrolled before is not enrolled now. RefusedError when this machine is another host already.
    """
    known = identity.load(local)
    if known is not None and known.host != host:
        raise RefusedError(f"this machine is enrolled as {known.host}; to make it {host}, remove "
                           f"{local / identity.AGENT} first")
    made = identity.create(local, host, control, content, trust_root, b'{"links": []}')
    try:
        stage.catalogue(made, local).fetch("orders/keys.json")
        report.enrol(made, {"token": token})
    except RerootError:
        if known is None:
            (local / identity.AGENT / "agent.json").unlink()  # the key stays and is made anew: it is nobody's
        raise


def trusted_root(control: str, digest: str) -> bytes:
    """Fetch the site's root.json whose SHA-256 an administrator brought; raises TrustError when no version has it."""
    client = Client(control)
    try:
        for version in range(1, MAX_ROOTS + 1):
            answer = client.request("GET", f"/catalogue/metadata/{version}.root.json", max_bytes=MAX_ROOT_BYTES,
                                    deadline_s=ANSWER_S)
            if answer.status != 200:
                break
            if sha256(answer.body) == digest.strip().lower():
                return answer.body
    finally:
        client.close()
    raise TrustError(f"{control} has no root.json with the digest {digest[:80]!r}; is it the right server? "
                     "`reroot host enrol` prints URL and digest")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reroot-agent", description="reroot's agent on a living host")
    commands = parser.add_subparsers(dest="command")
    enrolling = commands.add_parser("enrol", help="make this host's key and enrol it with a token of `reroot host add`")
    enrolling.add_argument("--host", required=True, help="the name it has in hosts.toml")
    enrolling.add_argument("--control", required=True, help="URL of the control server, http://name:port")
    enrolling.add_argument("--content", action="append", default=[], help="URL of a content server; may be repeated")
    trust = enrolling.add_mutually_exclusive_group(required=True)
    trust.add_argument("--root", type=Path, help="the site's root.json, brought by a way you trust")
    trust.add_argument("--root-digest", metavar="sha256:HEX", help="its digest; the file is fetched from --control")
    enrolling.add_argument("--token-file", required=True, type=Path, help="file with the token; - for standard input")
    return parser.parse_args()


def main() -> int:
    """Run as the service does: until a reboot, or until something here makes it pointless."""
    arguments = _arguments()
    if arguments.command == "enrol":
        try:
            token = sys.stdin.read() if str(arguments.token_file) == "-" else arguments.token_file.read_text()
            root = arguments.root.read_bytes() if arguments.root else trusted_root(
                arguments.control, arguments.root_digest)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the token or root.json cannot be read ({error}); name files that are there") from error
        enrol(arguments.host, arguments.control, arguments.content, token.strip(), root)
        print(f"{arguments.host} is enrolled at {arguments.control}")
        return 0
    found = identity.load(LOCAL)
    if found is None:
        raise ConfigError(f"{LOCAL}/recover/agent/agent.json is not there; run `reroot-agent enrol` first")
    Agent(found, Log(), reboot=_reboot).run()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RerootError as error:
        sys.stderr.write(f"reroot-agent: {error.sentence}\n")
        sys.exit(error.exit_code)
