"""The agent makes the loss report that a real control server asks for, and looks a last time before it reboots."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from servers import Machine, Server, make_site, publish_release, serving, wait_until

from fleet import agent, inventory, losing, stage
from fleet.agent import Agent, State
from fleet.inventory import Link
from imaging.release import Release
from plumbing import clock
from recovery import identity
from recovery.log import Log
from recovery.order import Order

_NUMBERS = itertools.count(1)
REF = "debian/13.1/amd64"


@dataclass
class Bench:
    """An enrolled host with a small root that was installed from the site's release."""

    server: Server
    machine: Machine
    local: Path
    root: Path
    out: io.StringIO
    agent: Agent

    def losses(self) -> losing.LossReports:
        return self.agent._losses()

    def shown(self) -> dict[str, object]:
        told = self.server.admin("GET", f"/hosts/{self.machine.name}/loss").json()
        assert isinstance(told, dict)
        return told

    def names(self) -> list[str]:
        report = self.shown()["report"]
        assert isinstance(report, dict)
        return sorted(name for one in report["findings"] for name in one["names"])

    def order(self) -> Order:
        """Return the order that the host has, as it reads it."""
        envelope = self.agent._ask()
        assert envelope is not None
        order = self.agent._verified(envelope)
        assert order is not None
        return order


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, bytes]]:
    folder = tmp_path_factory.mktemp("site")
    site = make_site(folder / "site", loss="ask")
    manifest = publish_release(site, folder)
    with serving(site) as server:
        yield server, folder / "tree-13.1", manifest


@pytest.fixture
def bench(tmp_path: Path, running: tuple[Server, Path, bytes], monkeypatch: pytest.MonkeyPatch) -> Bench:
    server, tree, manifest = running
    number = next(_NUMBERS)
    machine = Machine(server, f"host{number}", f"52:54:00:00:01:{number:02x}")
    root_json = server.site.root / "catalogue/metadata/1.root.json"
    local, root = tmp_path / "local", tmp_path / "root"
    local.mkdir()
    agent.enrol(machine.name, server.api, [server.content], machine.add(), root_json.read_bytes(), local)
    enrolled = identity.load(local)
    assert enrolled is not None
    machine.key = enrolled.key
    machine.inventory()
    monkeypatch.setattr(inventory, "links", lambda: (Link("eth0", machine.mac, None, None),))
    monkeypatch.setattr(agent, "machine_serial", lambda _: None)
    monkeypatch.setattr(agent, "POLL_S", 0)
    import shutil

    shutil.copytree(tree, root, copy_function=shutil.copy2)
    for path in [root, *root.rglob("*")]:
        shutil.copystat(tree / path.relative_to(root), path)
    (root / "etc/reroot").mkdir()
    (root / "etc/reroot/release.json").write_text(json.dumps({
        "release": REF, "digest": Release.parse(manifest).digest, "installed": clock.iso(clock.wall())}))
    out = io.StringIO()
    made = Agent(enrolled, Log([out]), local=local, root=root)
    made._pause_s = 0.001
    made.reporter.identify(enrolled)
    made.state = State.WAITING
    return Bench(server, machine, local, root, out, made)


def ask(bench: Bench) -> None:
    assert bench.server.admin("POST", f"/hosts/{bench.machine.name}/loss").status == 202
    bench.agent._step()


def test_a_report_that_was_asked_for_is_made_against_the_release_and_sent(bench: Bench) -> None:
    (bench.root / "etc/mine").write_text("x")
    (bench.root / "etc/os-release").write_text("edited")
    bench.agent._step()
    assert bench.shown()["report"] is None, "nobody asked"
    ask(bench)
    report = bench.shown()["report"]
    assert isinstance(report, dict) and report["baseline"].startswith(f"{REF} sha256:")
    assert bench.names() == ["/etc/mine", "/etc/os-release"]
    assert bench.shown()["gate"] == "asks" and bench.shown()["asked"] is None
    assert bench.agent.state is State.WAITING
    wait_until(lambda: {("loss", "begin"), ("loss", "done"), ("loss", "report")} <= bench.machine.told())
    kept = list((bench.local / "recover/agent").glob("index-*.zst"))
    assert len(kept) == 1
    kept[0].write_bytes(b"rot")
    ask(bench)
    assert bench.names() == ["/etc/mine", "/etc/os-release"], "an index that rotted is fetched again"


def test_a_root_of_an_unknown_release_is_compared_with_what_there_is(bench: Bench) -> None:
    (bench.root / "etc/reroot/release.json").write_text('{"release": "debian/9/amd64", "digest": "sha256:0"}')
    ask(bench)
    report = bench.shown()["report"]
    assert isinstance(report, dict) and report["baseline"] == "nothing"
    assert "compared with the package database: releases/debian/9/amd64.json is not in the catalogue" in (
        bench.out.getvalue())


def test_a_walk_that_fails_is_told_and_ends_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losing, "interpreter", lambda: ["/bin/false"])
    ask(bench)
    assert "the walk ended without a report (status 1" in str(bench.shown()["failed"])
    assert bench.shown()["asked"] is None


def answered(bench: Bench) -> Order:
    """Have the host report, accept it all, and order."""
    ask(bench)
    bench.server.admin("POST", f"/hosts/{bench.machine.name}/loss/accept", {"findings": None, "who": "ada"})
    bench.machine.issued()
    return bench.order()


def test_the_last_look_lets_answered_losses_go_and_nothing_else(bench: Bench) -> None:
    (bench.root / "etc/mine").write_text("x")
    order = answered(bench)
    bench.losses().require(order)
    (bench.root / "etc/newer").write_text("x")
    with pytest.raises(losing.UnansweredError, match="1 findings: added /etc"):
        bench.losses().require(order)
    assert bench.names() == ["/etc/mine", "/etc/newer"], "and the server has what it found"
    refuse = replace(order, precious={**order.precious, "loss": {"rule": "refuse"}})
    (bench.root / "etc/newer").unlink()
    with pytest.raises(losing.UnansweredError):
        bench.losses().require(refuse)
    bench.losses().require(replace(order, precious={**order.precious, "loss": {"rule": "warn"}}))
    other = replace(order, precious={**order.precious, "accepted": {"baseline": "packages", "findings": ["x"]}})
    with pytest.raises(losing.UnansweredError):
        bench.losses().require(other)


def test_an_order_that_the_last_look_ends_is_told_as_a_question(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    order = answered(bench)
    (bench.root / "etc/newer").write_text("x")

    def prepare(*arguments: object) -> dict[str, object]:
        arguments[-1]()  # type: ignore[operator]
        raise AssertionError("it went on to the reboot")

    monkeypatch.setattr(stage, "prepare", prepare)
    bench.agent._step()
    assert bench.agent.state is State.WAITING
    wait_until(lambda: bench.machine.state() == "failed")
    shown = bench.machine.shown()["order"]
    assert isinstance(shown, dict) and shown["phase"] == "loss" and order.id == shown["id"]
    assert "would lose what nobody answered for" in str(shown["message"])
