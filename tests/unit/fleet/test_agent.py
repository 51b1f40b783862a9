"""The agent's states as drawn, and what it does with orders of a real control server."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from servers import Machine, Server, free_port, make_site, publish_release, serving, wait_until

from fleet import agent, health, inventory
from fleet.agent import MOST_BOOTS, TRANSITIONS, Agent, State
from fleet.inventory import Link
from plumbing.errors import CommandError, NetworkError, RefusedError, TrustError
from plumbing.run import Completed
from recovery import identity
from recovery.journal import Journal
from recovery.log import Log

DRAWING = Path(__file__).parents[3] / "docs/machines/agent.dot"
_NUMBERS = itertools.count(1)


def test_the_drawing_has_every_arrow_and_no_other() -> None:
    drawn = re.findall(r"^\s*(\w+)\s*->\s*(\w+)", DRAWING.read_text(), re.MULTILINE)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == {(here.value, there.value) for here, targets in TRANSITIONS.items() for there in targets}
    assert set(TRANSITIONS) == set(State)


@dataclass
class Bench:
    """An enrolled host of a running site."""

    server: Server
    machine: Machine
    local: Path
    out: io.StringIO

    def agent(self) -> Agent:
        found = identity.load(self.local)
        assert found is not None
        made = Agent(found, Log([self.out]), local=self.local)
        made._pause_s = 0.001
        made.reporter.identify(found)
        return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One site for all tests here; each brings its own host."""
    folder = tmp_path_factory.mktemp("site")
    site = make_site(folder / "site")
    publish_release(site, folder)
    with serving(site) as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Bench:
    number = next(_NUMBERS)
    machine = Machine(server, f"host{number}", f"52:54:00:00:01:{number:02x}")
    root = server.site.root / "catalogue/metadata/1.root.json"
    agent.enrol(machine.name, server.api, [server.content], machine.add(), root.read_bytes(), tmp_path)
    enrolled = identity.load(tmp_path)
    assert enrolled is not None
    machine.key = enrolled.key
    machine.inventory()
    # this machine's own addresses are not the site's to know
    monkeypatch.setattr(inventory, "links", lambda: (Link("eth0", machine.mac, None, None),))
    monkeypatch.setattr(agent, "machine_serial", lambda _: None)
    monkeypatch.setattr(agent, "POLL_S", 0)
    return Bench(server, machine, tmp_path, io.StringIO())


def test_an_order_is_fetched_and_believed(bench: Bench) -> None:
    made = bench.agent()
    assert made._ask() is None
    order_id = bench.machine.issued()
    envelope = made._ask()
    assert envelope is not None
    order = made._verified(envelope)
    assert order is not None and order.id == order_id
    with pytest.raises(TrustError):
        made._verified(envelope.replace(b'"sig": "', b'"sig": "00'))
    with pytest.raises(TrustError):
        made._verified(b"{}")


def test_an_order_for_another_machine_is_not_believed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.machine.issued()
    made = bench.agent()
    envelope = made._ask()
    assert envelope is not None
    monkeypatch.setattr(inventory, "links", lambda: (Link("eth0", "52:54:00:00:00:99", None, None),))
    with pytest.raises(TrustError, match="52:54:00:00:00:99"):
        made._verified(envelope)


def test_an_order_that_was_carried_out_is_not_taken_again(bench: Bench) -> None:
    order_id = bench.machine.issued()
    made = bench.agent()
    envelope = made._ask()
    journal = Journal(bench.local / "recover/journal")
    journal.order(order_id, "upgrade", "sha256:1")
    journal.done("finish")
    assert envelope is not None and made._verified(envelope) is None


def test_an_order_that_recovery_never_gets_through_is_given_up_and_told(bench: Bench) -> None:
    """Recovery without a driver for the network card: GRUB brings the old system back, for ever and ever."""
    order_id = bench.machine.issued()
    made = bench.agent()
    envelope = made._ask()
    assert envelope is not None
    (bench.local / "recover/agent/boots.json").write_text(json.dumps({"order": order_id, "boots": MOST_BOOTS - 1}))
    assert made._verified(envelope) is not None
    (bench.local / "recover/agent/boots.json").write_text(json.dumps({"order": order_id, "boots": MOST_BOOTS}))
    with pytest.raises(RefusedError, match=f"boot recovery {MOST_BOOTS} times"):
        made._verified(envelope)
    assert made._verified(envelope) is None, "told once"
    wait_until(lambda: bench.machine.state() == "failed")
    (bench.local / "recover/agent/boots.json").write_text("torn")
    assert made._boots(order_id) == 0


def test_a_failed_stage_is_told_and_the_agent_waits_again(bench: Bench) -> None:
    """The order's disks are not this machine's, and the recovery image lacks parts: nothing is armed."""
    bench.machine.issued()
    made = bench.agent()
    made.state = State.WAITING
    made._step()
    assert made.state is State.WAITING
    assert not (bench.local / "recover/order.json").exists()
    wait_until(lambda: ("stage", "failed") in bench.machine.told())
    assert "stage" in bench.out.getvalue()


def test_a_failing_disk_is_told_and_does_not_end_the_agent(bench: Bench) -> None:
    bench.machine.issued()
    made = bench.agent()
    made.state = State.WAITING
    (bench.local / "recover/stage").write_text("a file where a folder has to be")
    made._step()
    assert made.state is State.WAITING
    assert "EEXIST" in bench.out.getvalue()
    wait_until(lambda: bench.machine.state() == "failed")


def test_a_dead_server_is_waited_for(bench: Bench) -> None:
    made = bench.agent()
    made.state = State.WAITING
    made.identity = replace(made.identity, control=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NetworkError):
        made._ask()
    made._step()
    assert made.state is State.WAITING and made._pause_s > 0.001


def test_mails_that_recovery_left_go_out_and_bad_ones_do_no_harm(bench: Bench) -> None:
    spool = bench.local / "recover/spool"
    spool.mkdir()
    (spool / "aa.json").write_text("not a mail")
    bench.agent()._deliver()
    assert "is not a spooled mail" in bench.out.getvalue()


def test_a_system_without_an_answering_systemd_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> Completed:
        raise CommandError("systemctl did not finish in 30 s")

    monkeypatch.setattr(health, "run", silent)
    verdict = health.check(wait_s=0)
    assert not verdict.well and verdict.state == "silent"


@pytest.mark.parametrize("well", [True, False])
def test_a_healthy_system_removes_old_precious_archives_and_an_unwell_one_keeps_them(
        bench: Bench, monkeypatch: pytest.MonkeyPatch, well: bool) -> None:
    for number in range(5):
        folder = bench.local / f"recover/precious/{number}"
        folder.mkdir(parents=True)
        (folder / "kept.json").write_text("{}")
        for path in (folder / "kept.json", folder):
            os.utime(path, (number, number))
    verdict = health.Health(well, "running" if well else "degraded", (), {}, {})
    monkeypatch.setattr(health, "check", lambda: verdict)
    order_id = bench.machine.issued()
    bench.agent()._confirm(order_id)
    left = sorted(path.name for path in (bench.local / "recover/precious").iterdir())
    assert left == (["2", "3", "4"] if well else ["0", "1", "2", "3", "4"])
    assert (bench.local / "recover/agent/confirmed").read_text().strip() == order_id
