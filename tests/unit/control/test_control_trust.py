"""What a host says of itself, and who may speak at all: nobody names another's machine, or stays after he left."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import Machine, Server

from cli.main import run
from control import book
from control.database import Database, EventRow, HostRow
from control.orders import machine as machine_of
from control.progress import Report
from fleet.hosts import parse
from imaging.catalogue import Catalogue
from plumbing import clock, hostauth
from plumbing.errors import RefusedError, TrustError
from plumbing.http import Client
from recovery import signed_order

Make = Callable[[], Machine]
EVIL = "amd64\nERROR reroot.serve: FAKE LINE\x1b]0;owned\x07"
HOSTS = """
[[host]]
name = "a"
macs = ["52:54:00:00:00:0a"]
[[host]]
name = "b"
macs = ["52:54:00:00:00:0b"]
[[host]]
name = "bare"
[[host]]
name = "serial"
serial = "S1"
"""


def links(*macs: str) -> dict[str, object]:
    return {"links": [{"mac": mac} for mac in macs]}


@pytest.mark.parametrize(("name", "reported", "macs"), [
    ("a", ["52:54:00:00:00:0b"], ["52:54:00:00:00:0a"]), ("a", [], ["52:54:00:00:00:0a"]),
    ("bare", ["52:54:00:00:00:0C", "nonsense"], ["52:54:00:00:00:0c"]), ("serial", [], []),
])
def test_the_machine_is_the_one_of_hosts_toml(name: str, reported: list[str], macs: list[str]) -> None:
    hosts = parse(HOSTS)
    assert machine_of(hosts.get(name), hosts, links(*reported))["macs"] == macs


@pytest.mark.parametrize("reported", [["52:54:00:00:00:0b"], ["52:54:00:00:00:0c", "52:54:00:00:00:0B"], []])
def test_another_hosts_machine_is_refused(reported: list[str]) -> None:
    hosts = parse(HOSTS)
    with pytest.raises(RefusedError):
        machine_of(hosts.get("bare"), hosts, links(*reported))


def test_an_order_never_fits_a_machine_that_its_host_only_named(machine: Make, server: Server) -> None:
    liar, other = machine().join(), machine().join()
    part = {"disk_serial": "OTHER", "fstype": "ext4", "partuuid": "bbbbbbbb-0000-4000-8000-000000000001"}
    boot = {**part, "partuuid": "bbbbbbbb-0000-4000-8000-000000000002", "fstype": "vfat"}
    facts = {"arch": "amd64", **links(other.mac), "disks": {"root": part, "local": None, "boot": boot}}
    assert liar.report("inventory", "inventory", facts).status == 204
    liar.issued()
    envelope = liar.order().body
    keys = Catalogue(server.site.catalogue, server.site.keys).read("orders/keys.json")
    with pytest.raises(TrustError, match="but this machine has"):
        signed_order.verify(envelope, keys, host_macs=[other.mac], now=clock.wall())
    assert signed_order.verify(envelope, keys, host_macs=[liar.mac], now=clock.wall()).machine.macs == (liar.mac,)


def test_a_host_that_left_hosts_toml_is_nobody(machine: Make, server: Server) -> None:
    host = machine()
    before = server.site.hosts.read_text()
    host.join()
    after = server.site.hosts.read_text()
    path = f"/api/v1/hosts/{host.name}/order"
    headers = hostauth.sign(host.key, host.name, clock.wall(), "GET", path, b"")
    server.site.hosts.write_text(before)
    try:
        assert Client(server.api).request("GET", path, headers=headers).status == 401
        assert host.report("stage", "begin").status == 401
        assert host.client().post_json("/api/v1/tickets", {"service": "root-dump"}).status == 401
    finally:
        server.site.hosts.write_text(after)
    # Nothing of it was remembered, not even that it was sent.
    assert Client(server.api).request("GET", path, headers=headers).status == 204
    assert ("stage", "begin") not in host.told()


def answer_to(server: Server, request: str, body: bytes) -> bytes:
    """Send a request whose body does not come whole, and return the first line of the answer."""
    host, port = server.api.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n".encode() + body)
        return raw.recv(4096).splitlines()[0]


def test_a_strangers_body_is_not_waited_for(machine: Make, server: Server) -> None:
    assert b" 400 " in answer_to(server, "POST /api/v1/enrol", b"x" * 5000)
    assert b" 401 " in answer_to(server, "POST /api/v1/hosts/x/report", b"")
    for name, time_s in ((machine().join().name, 0), ("nobody", int(clock.wall()))):
        claim = f"Reroot-Host: {name}\r\nReroot-Nonce: 0123456789abcdef\r\nReroot-Signature: AAAA"
        line = f"POST /api/v1/hosts/x/report HTTP/1.1\r\n{claim}\r\nReroot-Time: {time_s}\r\nX:"
        assert b" 401 " in answer_to(server, line, b"")


def test_a_proof_that_was_seen_enrols_no_other_key(machine: Make) -> None:
    host = machine()
    token = host.add()
    proof = hostauth.enrolment_proof(hostauth.token_digest(token), host.name, host.public)
    thief = Machine(host.server, host.name, host.mac)
    assert thief.enrol(proof=proof).status == 404
    assert thief.enrol(proof="0" * 64).status == 404
    assert Client(host.server.api).post_json("/api/v1/enrol", {
        "host": host.name, "public_key": thief.public, "token": token}).status == 400  # nothing takes it in clear
    assert host.enrol(proof=proof).status == 201
    assert thief.order().status == 401


def test_a_made_up_architecture_is_shown_quoted_and_short(
    machine: Make, server: Server, capsys: pytest.CaptureFixture[str],
) -> None:
    host = machine().join()
    for arch in (EVIL, "x" * 100_000):
        assert host.report("inventory", "inventory", {"arch": arch, "links": []}).status == 204
        said = host.issue(release="debian/13.1/amd64")
        assert said.status == 403
        assert len(said.body) < 300
        sentence = said.json()["value"]
        assert sentence.isprintable()
        assert run(["host", "order", host.name, "--release", "debian/13.1", "--site", str(server.site.root)]) == 6
        told = capsys.readouterr().err.removesuffix("\n")
        assert told.isprintable()
        assert 0 < len(told) < 300


def test_of_a_hosts_events_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "MAX_EVENTS", 3)
    database = Database(f"sqlite:///{tmp_path}/x.db")
    database.migrate()
    with database.session() as session:
        session.add(HostRow(name="a"))
        session.add(EventRow(host="b", phase="x", event="x", at="", received_s=0))
    for number in range(10):
        book.record(database, "a", book.Told(None, "", Report("stage", "progress", {"n": number})), 0)
    assert [json.dumps(event.data) for event in book.events_of(database, "a")] == [
        '{"n": 7}', '{"n": 8}', '{"n": 9}']
    assert len(book.events_of(database, "b")) == 1
    database.close()
