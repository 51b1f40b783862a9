"""Rollouts through the API: orders go out one after another, results move it, a restart neither forgets nor repeats."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from servers import Machine, Server, make_site, publish_release, serving, wait_until

from control.catalogue import SiteCatalogue
from control.config import RolloutSection
from control.database import Database, HostRow
from control.lossgate import Gate, Verdict
from control.orders import Wish
from control.rollouts import Demand, Rollouts
from fleet.hosts import HostsFile
from imaging.catalogue import Catalogue
from plumbing import clock, hostauth
from plumbing.errors import DiskError
from plumbing.http import Client

GUIDE = {"update_time_s": 600, "per_server": 100, "blast_budget": 10, "failure_budget": 2}


def machines(server: Server, prefix: str, count: int) -> list[Machine]:
    number = sum(map(ord, prefix)) & 255
    return [Machine(server, f"{prefix}{n}", f"52:54:01:00:{number:02x}:{n:02x}").join() for n in range(count)]


def start(server: Server, hosts: list[Machine], **more: object) -> str:
    answer = server.admin("POST", "/rollouts", {
        "release": "debian/13.1/amd64", "hosts": [host.name for host in hosts], **GUIDE, **more})
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


def view(server: Server, rollout: str) -> dict[str, object]:
    answer = server.admin("GET", f"/rollouts/{rollout}").json()
    assert isinstance(answer, dict)
    return answer


def in_flight(server: Server, rollout: str) -> list[str]:
    flying = view(server, rollout)["in_flight"]
    assert isinstance(flying, list)
    return [one["host"] for one in flying]


def wait_for_order(host: Machine) -> None:
    wait_until(lambda: host.order().status == 200)


def heal(host: Machine) -> None:
    order = host.order().headers["reroot-order"]
    digest = host.shown()["order"]["digest"]
    assert host.report("health", "healthy", {"digest": digest, "order": order}, order=order).status == 204


def test_all_hosts_one_after_another(server: Server) -> None:
    hosts = machines(server, "ra", 3)
    rollout = start(server, hosts, interval_s=0, start_interval_s=0, blast_budget=1)
    seen = set()
    for _ in hosts:
        (name,) = wait_until(lambda: [n for n in in_flight(server, rollout) if n not in seen])
        seen.add(name)
        host = next(host for host in hosts if host.name == name)
        wait_for_order(host)
        heal(host)
    wait_until(lambda: view(server, rollout)["phase"] == "done")
    assert view(server, rollout)["healthy"] == 3


def test_failures_halt_it_and_resume_goes_on(server: Server) -> None:
    hosts = machines(server, "rb", 5)
    rollout = start(server, hosts, interval_s=0, start_interval_s=0, blast_budget=2, failure_budget=2)
    flying = wait_until(lambda: len(found := in_flight(server, rollout)) == 2 and found)
    for host in hosts:
        if host.name in flying:  # type: ignore[operator]
            wait_for_order(host)
            host.report("stage", "failed", order=host.order().headers["reroot-order"], message="a bad release")
    wait_until(lambda: view(server, rollout)["phase"] == "halted")
    assert view(server, rollout)["pending"] == 3
    assert server.admin("POST", f"/rollouts/{rollout}/resume").status == 200
    wait_until(lambda: len(in_flight(server, rollout)) == 2)
    assert server.admin("POST", f"/rollouts/{rollout}/abort").json()["phase"] == "aborted"


def test_a_host_that_cannot_be_ordered_has_failed(server: Server) -> None:
    busy, good = machines(server, "rc", 2)
    busy.issued()
    rollout = start(server, [busy, good], interval_s=0, start_interval_s=0)
    failed = wait_until(lambda: view(server, rollout)["failed"])
    assert "open order" in failed[0]["reason"]  # type: ignore[index]
    wait_until(lambda: in_flight(server, rollout) == [good.name])


def refused(server: Server, hosts: list[str]) -> str:
    answer = server.admin("POST", "/rollouts", {"release": "debian/13.1/amd64", "hosts": hosts, **GUIDE})
    assert answer.status == 403, answer.body
    return str(answer.json()["value"])


def test_hosts_that_can_never_be_triggered_are_named_at_the_start(server: Server) -> None:
    (good,) = machines(server, "rf", 1)
    strangers = [Machine(server, f"rf-stranger{n:02}", f"52:54:01:02:00:{n:02x}") for n in range(11)]
    for host in strangers:
        host.add()
    mute = Machine(server, "rf-mute", "52:54:01:03:00:01")
    assert mute.enrol(token=mute.add()).status == 201
    sentence = refused(server, [good.name, mute.name, *(host.name for host in strangers)])
    assert sentence.startswith("12 of 13 hosts cannot be triggered: rf-mute (no inventory yet), "
                               "rf-stranger00 (not enrolled), ")
    assert "rf-stranger08 (not enrolled) and 2 more; enrol them" in sentence
    mute.report("inventory", "inventory", {"arch": "amd64", "links": [], "disks": {"root": {}}})
    assert "rf-mute (no boot partition" in refused(server, [mute.name])


def test_a_host_is_in_one_rollout_at_a_time(server: Server) -> None:
    hosts = machines(server, "rg", 2)
    rollout = start(server, hosts, interval_s=1000)
    assert refused(server, [hosts[1].name]).startswith(
        f"{hosts[1].name} is in the rollout {rollout}, which is running; ")
    server.admin("POST", f"/rollouts/{rollout}/pause")
    assert "which is paused" in refused(server, [host.name for host in hosts])
    server.admin("POST", f"/rollouts/{rollout}/abort")
    start(server, hosts[1:], interval_s=1000)


def test_nothing_is_said_to_a_rollout_that_is_over(server: Server) -> None:
    rollout = start(server, machines(server, "rh", 1))
    assert server.admin("POST", f"/rollouts/{rollout}/abort").status == 200
    answers = [server.admin("POST", f"/rollouts/{rollout}/{word}") for word in ("resume", "pause", "abort")]
    answers.append(server.admin("PUT", f"/rollouts/{rollout}/knob", {"interval_s": 1}))
    for answer in answers:
        assert answer.status == 403
        assert f"rollout {rollout} is aborted, which is final" in answer.json()["value"]


def test_pause_knob_and_bad_requests(server: Server) -> None:
    hosts = machines(server, "rd", 2)
    rollout = start(server, hosts, interval_s=1000)
    wait_until(lambda: len(in_flight(server, rollout)) == 1)
    assert server.admin("POST", f"/rollouts/{rollout}/pause").json()["phase"] == "paused"
    assert server.admin("PUT", f"/rollouts/{rollout}/knob", {"interval_s": 0}).json()["knob_s"] == 0
    assert len(in_flight(server, rollout)) == 1
    assert server.admin("POST", f"/rollouts/{rollout}/resume").status == 200
    wait_until(lambda: len(in_flight(server, rollout)) == 2)
    name = hosts[0].name
    for body, status in (({"release": "x"}, 400), ({"release": "x", "hosts": [name], "class": "web"}, 400),
                         ({"release": "x", "class": "no-such-class"}, 404), ({"release": "x", "hosts": ["none"]}, 404),
                         ({"release": "x", "hosts": [name], "typo": 1}, 400)):
        assert server.admin("POST", "/rollouts", body).status == status, body
    assert server.admin("POST", f"/rollouts/{rollout}/explode").status == 400
    assert server.admin("GET", "/rollouts/none").status == 404
    refused = server.admin("POST", "/rollouts", {"release": "x", "hosts": [name], **GUIDE, "update_time_s": 60,
                                                 "deadline_s": 1})
    assert refused.status == 403


class Failing:
    """An issuer on a server that is out of descriptors, until it is not."""

    def __init__(self) -> None:
        self.broken: list[Exception] = [OSError(errno.EMFILE, "Too many open files"), DiskError("the disk is full")]
        self.told: list[str] = []

    def check_release(self, *_: object) -> None:
        """Let every release pass."""

    def verdict(self, *_: object) -> Verdict:
        return Verdict(Gate.CLEAR)

    gate = verdict

    def issue(self, wish: Wish, _hosts: object, now: float) -> SimpleNamespace:
        if self.broken:
            raise self.broken.pop()
        self.told.append(wish.host)
        return SimpleNamespace(id="1")


async def test_the_servers_own_trouble_fails_no_host_and_ends_no_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "hosts.toml").write_text('[[host]]\nname = "a"\n')
    database, issuer, stop = Database(f"sqlite:///{tmp_path}/x.db"), Failing(), asyncio.Event()
    database.migrate()
    with database.session() as session:
        session.add(HostRow(name="a", public_key="k", facts={"disks": {"root": {}, "boot": {}}}))
    rollouts = Rollouts(database, HostsFile(tmp_path / "hosts.toml"), issuer,  # type: ignore[arg-type]
                        RolloutSection(tick_s=0.01), lambda _host: None)
    rollout = str(rollouts.start(Demand("debian/13.1/amd64", hosts=("a",), **GUIDE), 0.0)["id"])  # type: ignore[arg-type]
    for now in (1.0, 2.0):
        rollouts.tick(now)
        seen = rollouts.view(rollout, now)
        assert (seen["failed"], [one["host"] for one in seen["in_flight"]]) == ([], ["a"])  # type: ignore[attr-defined]
    rollouts.tick(3.0)
    assert issuer.told == ["a"]
    looks = iter(range(3))

    def out_of_descriptors(_now: float) -> None:
        if next(looks, None) is None:
            stop.set()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(rollouts, "tick", out_of_descriptors)
    async with asyncio.timeout(20):
        await rollouts.run(stop)
    database.close()


def test_a_catalogue_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = SiteCatalogue(make_site(tmp_path / "site"))

    def out_of_descriptors(_self: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Catalogue, "_roots", out_of_descriptors)
    for work in (catalogue.refresh, catalogue.paths, lambda: catalogue.read("orders/keys.json")):
        with pytest.raises(DiskError, match="Too many open files"):
            work()


def test_a_host_silent_with_a_ticket_in_its_hand_is_charged_to_its_rollout(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    publish_release(site, tmp_path)
    site.tickettab.write_text("service root-dump 1\ncontrol 10\n")
    with serving(site) as server:
        hosts = machines(server, "si", 2)
        rollout = start(server, hosts, interval_s=0, start_interval_s=0, blast_budget=1, failure_budget=1)
        wait_until(lambda: any(host.order().status == 200 for host in hosts))
        flying = next(host for host in hosts if host.order().status == 200)
        other = next(host for host in hosts if host is not flying)
        for host in (flying, other):  # both fall silent, and one of them is in flight
            assert host.client().post_json("/api/v1/tickets", {"service": "root-dump"}).status == 200
        wait_until(lambda: view(server, rollout)["phase"] == "halted")
        failed = view(server, rollout)["failed"][0]  # type: ignore[index]
        assert failed["host"] == flying.name
        assert failed["reason"].startswith("said nothing for 1 s while it held the ticket control_00")
        shown = server.admin("GET", "/status").json()["tickets"][0]
        assert {one["holder"] for one in shown["quarantined"]} == {flying.name, other.name}
        assert shown["leases"] == []


def test_restart_keeps_state_and_repeats_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    publish_release(site, tmp_path)
    with serving(site) as server:
        hosts = machines(server, "re", 3)
        rollout = start(server, hosts, interval_s=0, start_interval_s=0, blast_budget=2)
        wait_until(lambda: sum(host.order().status == 200 for host in hosts) == 2)  # in flight comes before the order
        told = {host.name: host.order().headers.get("reroot-order") for host in hosts}
        ticket = hosts[0].client().post_json("/api/v1/tickets", {"service": "root-dump"}).json()
        path = f"/api/v1/hosts/{hosts[0].name}/order"
        captured = hostauth.sign(hosts[0].key, hosts[0].name, clock.wall(), "GET", path, b"")
        assert Client(server.api).request("GET", path, headers=captured).status in (200, 204)
        assert server.stop() == 0
    with serving(site) as server:
        assert Client(server.api).request("GET", path, headers=captured).status == 401  # nonces outlive a restart
        for host in hosts:
            host.server = server
        assert {host.name: host.order().headers.get("reroot-order") for host in hosts} == told
        assert hosts[0].client().post_json("/api/v1/tickets", {"service": "root-dump"}).json() == ticket
        for host in hosts:
            if told[host.name]:
                heal(host)
        wait_until(lambda: view(server, rollout)["healthy"] == 2 and len(in_flight(server, rollout)) == 1)
        server.process.kill()  # and once more, without any goodbye
        server.process.wait()
    with serving(site) as server:
        for host in hosts:
            host.server = server
        last = next(host for host in hosts if not told[host.name])
        heal(last)
        wait_until(lambda: view(server, rollout)["phase"] == "done")
        assert all(len(host.shown()["orders"]) == 1 for host in hosts)
