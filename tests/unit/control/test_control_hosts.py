"""Enrolment, signatures, orders and reports over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from servers import Machine, Server, wait_until

from imaging.catalogue import Catalogue
from imaging.release import Release
from plumbing import clock, hostauth
from plumbing.http import Client
from recovery import signed_order

Make = Callable[[], Machine]


def test_token_enrols_once(machine: Make) -> None:
    host, thief = machine(), machine()
    token = host.add()
    thief.add()
    assert thief.enrol(token=token).status == 404  # another host's token
    assert host.enrol(token="x" * 32).status == 404
    assert host.enrol(token=token).status == 201
    assert host.enrol(token=token).status == 201  # the very same claim again
    second = Machine(host.server, host.name, host.mac)
    assert second.enrol(token=token).status == 404
    assert host.order().status == 204
    assert second.order().status == 401


def test_token_outside_its_window(machine: Make, server: Server) -> None:
    host = machine()
    host.add()
    answer = server.admin("POST", "/hosts", {"host": {"name": host.name}, "token_lifetime_s": 0.001})
    assert answer.status == 201
    assert host.enrol(token=str(answer.json()["token"])).status == 404


def test_new_token_ends_the_old_one(machine: Make, server: Server) -> None:
    host = machine()
    old = host.add()
    assert server.admin("POST", "/hosts", {"host": {"name": host.name}}).status == 201
    assert host.enrol(token=old).status == 404


def test_unsigned_forged_and_foreign_requests_change_nothing(machine: Make, server: Server) -> None:
    host, other = machine().join(), machine().join()
    path = f"/api/v1/hosts/{host.name}/report"
    body = json.dumps({"order": None, "phase": "stage", "event": "begin", "at": clock.iso(clock.wall()), "data": {},
                       "message": "forged"}).encode()
    plain = Client(server.api)
    stranger = hostauth.sign(Ed25519PrivateKey.generate(), host.name, clock.wall(), "POST", path, body)
    late = hostauth.sign(host.key, host.name, clock.wall() - 1000, "POST", path, body)
    for headers in ({}, stranger, late, {**stranger, "Reroot-Signature": "not base64"}):
        answer = plain.request("POST", path, body=body, headers=headers)
        assert answer.status == 401
        assert answer.json()["kind"] == "trust"  # type: ignore[index]
    for method, target in (("POST", path), ("GET", f"/api/v1/hosts/{host.name}/order")):
        assert other.client().request(method, target, body=body if method == "POST" else b"").status == 401
        assert plain.request(method, target, body=body if method == "POST" else b"").status == 401
    good = hostauth.sign(host.key, host.name, clock.wall(), "POST", path, body)
    assert plain.request("POST", path, body=body + b" ", headers=good).status == 401  # another body
    assert plain.request("POST", path + "?x=1", body=body, headers=good).status == 401  # another target
    events = server.admin("GET", f"/hosts/{host.name}/events").json()["events"]
    assert not [event for event in events if event["message"] == "forged"]


def test_replay_is_refused(machine: Make, server: Server) -> None:
    host = machine().join()
    for method, path in (("GET", f"/api/v1/hosts/{host.name}/order"), ("POST", f"/api/v1/hosts/{host.name}/report")):
        body = json.dumps({"order": None, "phase": "stage", "event": "begin", "at": clock.iso(clock.wall())}).encode() \
            if method == "POST" else b""
        headers = hostauth.sign(host.key, host.name, clock.wall(), method, path, body)
        assert Client(server.api).request(method, path, body=body, headers=headers).status == 204
        assert Client(server.api).request(method, path, body=body, headers=headers).status == 401


def test_order_reaches_the_host_that_waits(machine: Make, server: Server) -> None:
    host = machine().join()
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(host.order(wait=60)))
    thread.start()
    order = host.issued(level="debian13-1")
    thread.join(20)
    (answer,) = answers
    assert answer.status == 200  # type: ignore[attr-defined]
    keys = Catalogue(server.site.catalogue, server.site.keys).read("orders/keys.json")
    told = signed_order.verify(answer.body, keys, host_macs=[host.mac], now=clock.wall())  # type: ignore[attr-defined]
    manifest = Catalogue(server.site.catalogue, server.site.keys).read("releases/debian/13.1/amd64.json")
    assert told.id == order
    assert told.release is not None
    assert told.release.digest == Release.parse(manifest).digest
    assert told.disks is not None
    assert told.disks.boot.fstype == "vfat"
    assert told.level == "debian13-1"
    assert told.services == ("root-dump",)
    assert told.precious["rules"]


def test_a_host_s_policy_has_the_layers_of_its_distribution_its_classes_and_its_own(
        machine: Make, server: Server) -> None:
    host = machine()
    assert host.enrol(token=host.add(**{"class": ["web"]})).status == 201
    folder = server.site.root / "precious"
    for name in ("class/web", "class/db", f"host/{host.name}"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.toml").write_text(f'# its own\n[[rule]]\nkeep = ["/srv/{name}"]\n')

    def shown() -> list[tuple[str, int]]:
        answer = server.admin("GET", f"/hosts/{host.name}/precious").json()
        return [(row["origin"], row["line"]) for row in answer["policy"]["rules"]]

    assert shown()[0][0] == "default debian.toml"
    assert shown()[-2:] == [(f"{folder}/class/web.toml", 2), (f"{folder}/host/{host.name}.toml", 2)]
    host.report("inventory", "inventory", {"arch": "amd64", "os_release": {"ID": "rocky", "ID_LIKE": "rhel centos"}})
    assert shown()[0][0] == "default redhat.toml"
    (folder / "host" / f"{host.name}.toml").write_text("[[rule]]\nkeep = []\nwehn = 1\n")
    answer = server.admin("GET", f"/hosts/{host.name}/precious")
    assert answer.status != 200 and b"line 3" in answer.body and b"did you mean" in answer.body
    (folder / "host" / f"{host.name}.toml").unlink()


def test_order_from_begin_to_completed(machine: Make, server: Server) -> None:
    host = machine().join()
    order = host.issued(level="l2")
    assert host.state() == "active"
    assert host.issue().status == 409
    for phase in ("stage", "reboot", "network", "preserve", "wipe", "restore", "finish"):
        assert host.report(phase, "begin", order=order).status == 204
        assert host.state() == "running"
    release = {"release": "debian/13.1/amd64", "order": order, "os_release": {"ID": "debian"},
               "digest": host.shown()["order"]["digest"]}
    assert host.report("health", "healthy", release, order=order).status == 204
    assert host.state() == "completed"
    assert host.order().status == 204
    assert host.shown()["release"] == "debian/13.1/amd64"
    assert host.shown()["level"] == "l2"
    assert server.admin("POST", f"/orders/{order}/cancel").status == 403


def test_healthy_with_another_release_is_a_failure(machine: Make) -> None:
    host = machine().join()
    order = host.issued()
    host.report("health", "healthy", {"release": "debian/12.0/amd64", "order": order}, order=order)
    assert host.state() == "failed"


def test_failure_before_recovery_ends_the_order_and_after_it_does_not(machine: Make) -> None:
    early, late = machine().join(), machine().join()
    order = early.issued()
    early.report("stage", "failed", order=order, message="no room")
    assert early.state() == "failed"
    assert early.order().status == 204
    order = late.issued()
    late.report("wipe", "begin", order=order)
    late.report("restore", "failed", {"final": False}, order=order, message="one attempt")
    assert late.state() == "running"
    late.report("restore", "failed", order=order, message="all attempts")
    assert late.state() == "failed"
    assert late.order().status == 200  # its root is gone: it may only go forward
    fixed = late.issued()
    assert late.order().headers["reroot-order"] == fixed


def test_host_that_went_back_to_its_old_system_is_done_with_the_order(machine: Make) -> None:
    host = machine().join()
    order = host.issued()
    host.report("preserve", "begin", order=order)
    host.report("preserve", "failed", {"final": True, "wiped": False}, order=order, message="/local is full")
    assert host.state() == "failed"
    assert host.order().status == 204


def test_machine_known_by_its_serial(machine: Make, server: Server) -> None:
    host = machine()
    host.add(macs=[], serial="SN-77", layout={"disk": "D1"})
    host.issued(mode="install", release="debian/13.1/amd64")
    assert server.get("/api/v1/boot/order?mac=52:54:00:aa:aa:aa&serial=SN-77").status == 200
    assert server.get("/api/v1/boot/order?mac=52:54:00:aa:aa:aa&serial=SN-78").status == 204


def test_reports_on_another_hosts_order(machine: Make) -> None:
    host, other = machine().join(), machine().join()
    order = host.issued()
    assert other.report("wipe", "begin", order=order).status == 404
    assert host.state() == "active"


def test_order_not_healthy_in_time_has_failed(machine: Make) -> None:
    host = machine().join()
    host.issued(deadline_s=0.01)
    wait_until(lambda: host.state() == "failed")
    assert "deadline" in str(host.shown()["order"])


def test_replaced_and_cancelled_orders(machine: Make, server: Server) -> None:
    host = machine().join()
    first = host.issued()
    second = host.issued(replace=True)
    assert server.admin("GET", f"/orders/{first}").json()["order"]["state"] == "cancelled"
    assert server.admin("POST", f"/orders/{second}/cancel").status == 200
    assert host.order().status == 204


def test_orders_that_cannot_be_given(machine: Make, server: Server) -> None:
    bare = machine()
    bare.add()
    assert bare.issue(release="debian/13.1/amd64").status == 403  # it never told its disks
    assert bare.issue(mode="install", release="debian/13.1/amd64").status == 403  # no layout
    host = machine().join()
    for wish, status in (({"release": "debian/99"}, 404), ({"release": "debian"}, 400), ({"release": None}, 400),
                         ({"mode": "wipe"}, 400), ({"release": "../../keys/root"}, 400), ({"extra": 1}, 400)):
        answer = host.issue(**wish)
        assert answer.status == status, (wish, answer.body)
    assert server.admin("POST", "/orders", {"host": "nobody", "release": "debian/13.1"}).status == 404


def test_install_enrols_by_the_orders_nonce_once(machine: Make, server: Server) -> None:
    host = machine()
    host.add(layout={"disk": "D1"})
    url = f"/api/v1/boot/order?mac={host.mac.replace(':', '-').upper()}"
    assert server.get(url).status == 204
    order = host.issued(mode="install", release="debian/13.1/amd64")
    answer = server.get(url)
    assert answer.status == 200
    keys = Catalogue(server.site.catalogue, server.site.keys).read("orders/keys.json")
    told = signed_order.verify(answer.body, keys, host_macs=[host.mac], now=clock.wall())
    assert told.layout is not None
    assert [part.name for part in told.layout.partitions] == ["bios", "esp", "root", "local"]
    assert host.enrol(order=order, nonce="x" * 32).status == 404
    assert host.enrol(order=order, nonce=told.nonce).status == 201
    assert host.enrol(order=order, nonce=told.nonce).status == 201
    assert Machine(server, host.name, host.mac).enrol(order=order, nonce=told.nonce).status == 404
    assert host.report("restore", "begin", order=order).status == 204
    assert server.admin("POST", f"/orders/{order}/cancel").status == 200
    assert host.enrol(order=order, nonce=told.nonce).status == 404  # the window is over
    assert server.get(url).status == 204


def test_upgrade_orders_are_not_shown_to_strangers(machine: Make, server: Server) -> None:
    host = machine().join()
    host.issued()
    assert server.get(f"/api/v1/boot/order?mac={host.mac}").status == 204
    assert server.get("/api/v1/boot/order?mac=nonsense").status == 400
    assert server.get("/api/v1/boot/order").status == 204


def test_an_upgrade_starts_from_the_disk_also_where_the_network_comes_first(machine: Make, server: Server) -> None:
    host = machine().join()
    host.issued(release="debian/13.1/amd64")
    assert b"kernel" not in server.get(f"/boot/ipxe?mac={host.mac}").body
    assert server.get(f"/boot/http/{host.mac.replace(':', '-')}/recovery.efi").status == 404


def test_boot_script(machine: Make, server: Server) -> None:
    host = machine()
    host.add(layout={"disk": "D1"})
    assert b"kernel" not in server.get(f"/boot/ipxe?mac={host.mac}").body
    host.issued(mode="install", release="debian/13.1/amd64")
    script = server.get(f"/boot/ipxe?mac={host.mac}&serial=&platform=pcbios").body.decode()
    kernel = next(line.split()[1] for line in script.splitlines() if line.startswith("kernel"))
    assert kernel == f"{server.content}/boot/files/recovery/base/1/amd64/vmlinuz"
    assert f"reroot.control={server.api}" in script
    assert Client(server.content).request("GET", kernel.removeprefix(server.content)).body == b"a kernel"


def test_a_host_with_too_little_memory_gets_no_order(machine: Make) -> None:
    blank = machine()
    blank.add(layout={"disk": "D1"}, memory="255MiB")
    refused = blank.issue(mode="install", release="debian/13.1/amd64")
    assert refused.status == 403 and b"has 255 MiB of memory" in refused.body and b"needs 256" in refused.body
    living = machine().join()
    living.inventory(memory_bytes=(256 << 20) - 1)
    assert living.issue(release="debian/13.1/amd64").status == 403
    assert "order" not in living.shown() or living.shown()["order"] is None
    living.inventory(memory_bytes=256 << 20)
    assert living.issue(release="debian/13.1/amd64").status == 201


def test_the_program_of_http_boot(machine: Make, server: Server) -> None:
    host = machine()
    host.add(layout={"disk": "D1"})
    path = f"/boot/http/{host.mac.replace(':', '-')}/recovery.efi"
    assert server.get(path).status == 404, "nothing to do: the firmware goes on to the disk"
    host.issued(mode="install", release="debian/13.1/amd64")
    for name in ("recovery.efi", "ipxe.efi"):
        (server.site.boot / name).unlink(missing_ok=True)
    assert b"reroot recovery uki" in server.get(path).body
    (server.site.boot / "ipxe.efi").write_bytes(b"iPXE")
    assert server.get(path).body == b"iPXE"
    (server.site.boot / "recovery.efi").write_bytes(b"unified")
    answer = server.get(path)
    assert (answer.body, answer.headers["content-type"]) == (b"unified", "application/efi")
    assert server.get("/boot/http/nonsense/recovery.efi").status == 400


def test_a_machine_that_boots_from_the_network_first_is_installed_once(machine: Make, server: Server) -> None:
    host = machine()
    host.add(layout={"disk": "D1"})
    order = host.issued(mode="install", release="debian/13.1/amd64")
    (server.site.boot / "ipxe.efi").write_bytes(b"iPXE")
    envelope = server.get(f"/api/v1/boot/order?mac={host.mac}").body
    keys = Catalogue(server.site.catalogue, server.site.keys).read("orders/keys.json")
    told = signed_order.verify(envelope, keys, host_macs=[host.mac], now=clock.wall())
    assert host.enrol(order=order, nonce=told.nonce).status == 201
    for phase in ("restore", "bootloader"):
        assert host.report(phase, "begin", order=order).status == 204
        assert b"kernel" in server.get(f"/boot/ipxe?mac={host.mac}").body
    assert server.get(f"/boot/http/{host.mac.replace(':', '-')}/recovery.efi").status == 200
    assert host.report("finish", "begin", order=order).status == 204
    script = server.get(f"/boot/ipxe?mac={host.mac}").body
    assert b"kernel" not in script
    assert server.get(f"/boot/http/{host.mac.replace(':', '-')}/recovery.efi").status == 404
    assert b"exit" in script


def test_hostile_reports(machine: Make) -> None:
    host = machine().join()
    for phase, event in (("Wipe\n", "begin"), ("wipe", "explode"), ("x" * 40, "begin")):
        assert host.report(phase, event).status == 400
    assert host.report("stage", "progress", {"what": "x" * (1 << 20)}).status == 400
    assert host.client().request("POST", f"/api/v1/hosts/{host.name}/report", body=b"{").status == 400
    assert host.report("stage", "failed", {"a": [1, {"b": None}]}, message="\r\n<script>$(reboot)`").status == 204


def test_admin_token(server: Server) -> None:
    for method, path in (("GET", "/status"), ("POST", "/orders"), ("POST", "/hosts"), ("GET", "/hosts"),
                         ("GET", "/rollouts"), ("POST", "/rollouts"), ("PUT", "/rollouts/x/knob")):
        for token in ("wrong", "é" * 40, server.site.admin_token() + "x"):
            headers = {"Authorization": f"Bearer {token}".encode().decode("latin-1")}
            assert Client(server.api).request(method, f"/api/v1/admin{path}", headers=headers).status == 401
        assert Client(server.api).request(method, f"/api/v1/admin{path}").status == 401


def test_status_and_hosts(machine: Make, server: Server) -> None:
    host = machine().join()
    status = server.admin("GET", "/status").json()
    assert isinstance(status, dict)
    assert status["hosts"]["enrolled"] >= 1
    assert status["tickets"][0]["service"] == "root-dump"
    assert status["problems"] == []
    listed = server.admin("GET", "/hosts").json()["hosts"]
    assert host.name in [one["name"] for one in listed]


def test_hosts_toml_is_read_again_and_the_last_good_one_kept(machine: Make, server: Server) -> None:
    host = machine()
    before = server.site.hosts.read_text()
    server.site.hosts.write_text(f'{before}\n[[host]]\nname = "{host.name}"\nmac = []\n')
    try:
        assert server.admin("GET", f"/hosts/{host.name}").status == 404
        problems = server.admin("GET", "/status").json()["problems"]
        assert "did you mean 'macs'" in problems[0]
    finally:
        server.site.hosts.write_text(before)
    assert server.admin("GET", "/status").json()["problems"] == []


def test_host_table_is_written_to_hosts_toml(machine: Make, server: Server) -> None:
    host = machine()
    host.add(**{"class": ["web"]})
    assert f'name = "{host.name}"' in server.site.hosts.read_text()
    for table in ({"name": host.name, "macs": ["52:54:00:ff:ff:01"]}, {"name": "a\nb"},
                  {"name": "x", "macs": ["zz"]}, {"name": "x", "colour": 1},
                  {"name": "x", "layout": {"disk": "a\"\n[[host]]"}}):
        before = server.site.hosts.read_text()
        assert server.admin("POST", "/hosts", {"host": table}).status == 400, table
        assert server.site.hosts.read_text() == before


def test_tickets(machine: Make, server: Server) -> None:
    first, second = machine().join(), machine().join()
    answer = first.client().post_json("/api/v1/tickets", {"service": "root-dump"})
    assert answer.status == 200, answer.body
    ticket = answer.json()
    assert isinstance(ticket, dict)
    assert ticket["provider"] == "control"
    assert ticket["url"] == server.content
    path = f"/api/v1/tickets/{ticket['ticket']}"
    assert first.client().request("POST", f"{path}/renew").status == 200
    assert second.client().request("POST", f"{path}/renew").status == 403
    assert second.client().request("DELETE", path).status == 403
    assert first.client().request("DELETE", path).status == 204
    assert first.client().request("DELETE", path).status == 204
    assert first.client().post_json("/api/v1/tickets", {"service": "nope"}).status == 404
    assert Client(server.api).post_json("/api/v1/tickets", {"service": "root-dump"}).status == 401


def test_openapi_describes_tickets_as_they_are(machine: Make, server: Server) -> None:
    told = server.get("/api/v1/openapi.json").json()
    assert isinstance(told, dict)
    get = told["paths"]["/api/v1/tickets"]["post"]
    assert set(get["requestBody"]["content"]["application/json"]["schema"]["properties"]) == {"service"}
    assert {one["name"] for one in get["parameters"]} >= {"Reroot-Host", "Reroot-Signature"}
    assert set(get["responses"]) >= {"200", "400", "401", "404", "429"}
    host = machine().join()
    ticket = host.client().post_json("/api/v1/tickets", {"service": "root-dump"}).json()
    assert isinstance(ticket, dict)
    assert set(ticket) == set(told["components"]["schemas"]["TicketAnswer"]["required"])
    assert host.client().request("DELETE", f"/api/v1/tickets/{ticket['ticket']}").status == 204


def test_a_host_that_offers_its_stage_serves_its_subnet_first(machine: Make, server: Server) -> None:
    tab = server.site.tickettab.with_name("tickettab.toml")
    tab.write_text("[service.stage]\nlifetime_s = 60\noffer_slots = 1\nbandwidth = 500000\nprovider.control = 5\n")
    near, far, asker = (machine() for _ in range(3))
    for host, address in ((near, "10.9.1.1/24"), (far, "10.9.2.1/16"), (asker, "10.9.1.2/24")):
        assert host.enrol(token=host.add(subnet=None, address=address)).status == 201
    offer = {"slots": 1, "lifetime_s": 60, "url": "http://10.9.1.1:8081"}
    for host in (far, near):
        answer = host.client().request("PUT", "/api/v1/tickets/offers/stage", body=json.dumps(offer).encode())
        assert answer.status == 204, answer.body
    ticket = asker.client().post_json("/api/v1/tickets", {"service": "stage"}).json()
    assert isinstance(ticket, dict)
    assert (ticket["provider"], ticket["url"], ticket["bandwidth"]) == (near.name, "http://10.9.1.1:8081", 500000)
    for wrong in ({**offer, "slots": 2}, {**offer, "url": "ftp://x"}, {**offer, "lifetime_s": 0}, {}):
        bad = far.client().request("PUT", "/api/v1/tickets/offers/stage", body=json.dumps(wrong).encode())
        assert bad.status == 400, wrong
    elsewhere = far.client().request("PUT", "/api/v1/tickets/offers/root-dump", body=json.dumps(offer).encode())
    assert elsewhere.status == 403
    assert near.client().request("DELETE", "/api/v1/tickets/offers/stage").status == 204
    services = server.admin("GET", "/status").json()["tickets"]
    shown = next(one for one in services if one["service"] == "stage")
    assert [one["name"] for one in shown["providers"]] == ["control", far.name, near.name]  # its ticket is live still
    assert asker.client().request("DELETE", f"/api/v1/tickets/{ticket['ticket']}").status == 204
    tab.write_text("[service.stage]\nlifetime_s = 0\n")
    problems = server.admin("GET", "/status").json()["problems"]
    assert any("tickettab.toml line 2: lifetime_s = 0" in one for one in problems)
    tab.unlink()


def test_the_site_is_private(server: Server) -> None:
    for path in (server.site.keys, server.site.state):
        assert path.stat().st_mode & 0o077 == 0
    for key in server.site.keys.iterdir():
        assert key.stat().st_mode & 0o077 == 0


def test_log_has_no_traceback(server: Server) -> None:
    assert "Traceback" not in Path(server.log).read_text()


def test_request_sent_again_on_a_new_connection_is_signed_again(machine: Make) -> None:
    """A kept connection that the server closed: the client repeats by itself, and must not look like a replay."""
    host = machine().join()
    client = host.client()
    path = f"/api/v1/hosts/{host.name}/order"
    assert client.request("GET", path).status == 204
    connection = client._connection
    assert connection is not None
    assert connection.sock is not None
    connection.sock.shutdown(1)  # the server answers this with a close
    assert client.request("GET", path).status == 204
