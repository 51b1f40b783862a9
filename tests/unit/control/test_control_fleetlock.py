"""FleetLock over real HTTP: what Zincati sends, and what nobody should."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server, make_site, serving

from cli.main import run
from control import auth
from control.api.fleetlock import Kind
from fleet.hosts import Host
from plumbing.errors import ConfigError, TrustError
from plumbing.http import Client, Response

ZINCATI = {"fleet-lock-protocol": "true"}
HOSTS = """
[[host]]
name = "alpha"
address = "127.0.0.1/8"
[[host]]
name = "beta"
address = "127.0.0.2/8"
[[host]]
name = "gamma"
"""
LOCK, UNLOCK = "pre-reboot", "steady-state"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    site = make_site(tmp_path_factory.mktemp("fleetlock") / "site",
                     '[fleetlock]\ngroups = { default = "reboots", "db-1.a" = "databases" }\nby_address = true\n')
    site.hosts.write_text(HOSTS)
    with site.tickettab.open("a") as tab:
        tab.write("service reboots 60\nslots 2\nservice databases 60\nslots 1\n")
    with serving(site) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_held(server: Server) -> Iterator[None]:
    yield
    for host in ("alpha", "beta", "gamma"):
        for group in ("default", "db-1.a"):
            assert call(server, UNLOCK, host, group).status == 200


def base(server: Server, host: str) -> str:
    return f"/fleetlock/{host}/{auth.fleetlock_token(server.site.admin_token(), host)}"


def body(group: object = "default", id_: object = "c988d2509fdf5cdcbed39037c56406fb") -> bytes:
    return json.dumps({"client_params": {"id": id_, "group": group}}).encode()


def call(server: Server, operation: str, host: str, group: str = "default", **more: str) -> Response:
    return Client(server.api).request("POST", f"{base(server, host)}/v1/{operation}", body=body(group, **more),
                                      headers=ZINCATI)


def told(answer: Response) -> tuple[int, str]:
    said = answer.json()
    assert isinstance(said, dict)
    assert set(said) == {"kind", "value"}
    assert said["kind"] in set(Kind)
    assert said["value"]
    return answer.status, said["kind"]


def holders(server: Server, service: str) -> list[str]:
    services = server.admin("GET", "/status").json()["tickets"]
    return [lease["holder"] for one in services if one["service"] == service for lease in one["leases"]]


def test_lock_again_full_and_unlock(server: Server) -> None:
    first = call(server, LOCK, "alpha")
    assert first.status == 200
    assert call(server, LOCK, "alpha").json() == first.json()  # recursive: it takes no second slot
    assert call(server, LOCK, "beta").status == 200
    full = call(server, LOCK, "gamma")
    assert told(full) == (409, "failed_lock_semaphore_full")
    assert int(full.headers["retry-after"]) >= 1
    assert holders(server, "reboots") == ["alpha", "beta"]
    assert [call(server, UNLOCK, "alpha").status for _ in range(2)] == [200, 200]  # idempotent
    assert call(server, LOCK, "gamma").status == 200
    assert holders(server, "reboots") == ["beta", "gamma"]


def test_groups_are_services_of_their_own(server: Server) -> None:
    assert call(server, LOCK, "alpha", "db-1.a").status == 200
    assert told(call(server, LOCK, "beta", "db-1.a")) == (409, "failed_lock_semaphore_full")
    assert call(server, LOCK, "beta").status == 200
    assert call(server, UNLOCK, "alpha").status == 200  # of the other group: it holds nothing there
    assert holders(server, "databases") == ["alpha"]


def test_a_host_gives_back_its_own_only_whatever_id_is_sent(server: Server) -> None:
    assert call(server, LOCK, "alpha", id_="one").status == 200
    assert call(server, UNLOCK, "beta", id_="one").status == 200
    assert holders(server, "reboots") == ["alpha"]
    assert call(server, UNLOCK, "alpha", id_="installed anew").status == 200
    assert holders(server, "reboots") == []


def test_by_address_the_host_is_who_calls(server: Server) -> None:
    for path in ("/fleetlock/v1/pre-reboot", "/fleetlock//v1/pre-reboot"):
        assert Client(server.api).request("POST", path, body=body(), headers=ZINCATI).status == 200
    assert holders(server, "reboots") == ["alpha"]
    assert raw(server, body(), source="127.0.0.2")[0] == 200
    assert sorted(holders(server, "reboots")) == ["alpha", "beta"]
    status, said = raw(server, body(), source="127.0.0.3")
    assert (status, json.loads(said)["kind"]) == (403, "unauthorized")


def raw(server: Server, data: bytes, head: str = "fleet-lock-protocol: true\r\n", source: str = "127.0.0.1",
        path: str = "/fleetlock/v1/pre-reboot") -> tuple[int, bytes]:
    """Send `data` as Zincati does: no Content-Type at all."""
    port = int(server.api.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0)) as wire:
        wire.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}"
                     f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain", "application/x-www-form-urlencoded",
                                          "multipart/form-data; boundary=x", "\xff"])
def test_the_body_is_read_whatever_the_content_type(server: Server, content_type: str) -> None:
    head = "fleet-lock-protocol: true\r\n" + (f"Content-Type: {content_type}\r\n" if content_type else "")
    assert raw(server, body(), head)[0] == 200


@pytest.mark.parametrize("data", [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b"\0" * 100, b"[" * 4000, b'{"client_params":null}',
    b'{"client_params":{"id":"x"}}', b'{"client_params":{"group":"default"}}', body(7), body("default", 7),
    body(""), body("default", ""), body("a b"), body("default\n"), body("../x"), body("dé"), body("x" * 201),
    body("default", "x" * 256), body(["default"]), b" " * 4097, body() + b"x", b'{"client_params":{"id":NaN}}',
    body("default", {"$gt": ""})])
def test_bodies_that_are_none(server: Server, data: bytes) -> None:
    status, said = raw(server, data)
    assert (status, json.loads(said)["kind"]) == (400, "bad_request"), said
    assert holders(server, "reboots") == []


@pytest.mark.parametrize("head", ["", "fleet-lock-protocol: false\r\n", "fleet-lock-protocol: \r\n",
                                  "X: true\r\n"])
def test_without_its_header_it_is_no_fleetlock_request(server: Server, head: str) -> None:
    status, said = raw(server, body(), head)
    assert (status, json.loads(said)["kind"]) == (400, "bad_request")


def test_keys_of_a_later_protocol_are_let_pass(server: Server) -> None:
    data = json.loads(body())
    data["client_params"]["zone"], data["version"] = "b", 2
    assert raw(server, json.dumps(data).encode())[0] == 200


def test_unknown_groups_name_those_there_are(server: Server) -> None:
    answer = call(server, LOCK, "alpha", "nope")
    assert told(answer) == (404, "unknown_group")
    assert b"default, db-1.a" in answer.body


@pytest.mark.parametrize("path", ["/fleetlock/v1/reboot", "/fleetlock/", "/fleetlock/v1", "/fleetlock/a/v1/pre-reboot",
                                  "/fleetlock/a/b/c/v1/pre-reboot", "/fleetlock/v1/pre-reboot/x"])
def test_paths_that_are_none(server: Server, path: str) -> None:
    assert told(Client(server.api).request("POST", path, body=body(), headers=ZINCATI)) == (404, "bad_request")


def test_other_methods_change_nothing(server: Server) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = Client(server.api).request(method, f"{base(server, 'alpha')}/v1/pre-reboot", body=body(),
                                            headers=ZINCATI)
        assert answer.status == 405, method
    assert holders(server, "reboots") == []


@pytest.mark.parametrize(("host", "token"), [
    ("alpha", "x"), ("alpha", "%C3%A9"), ("nobody", None), ("beta", "alpha"), ("%2e%2e", "x"), ("alpha", "A" * 4000)])
def test_tokens_that_are_wrong(server: Server, host: str, token: str | None) -> None:
    token = auth.fleetlock_token(server.site.admin_token(), token or host) if token in {None, "alpha"} else token
    path = f"/fleetlock/{host}/{token}/v1/pre-reboot"
    status, said = raw(server, body(), path=path)
    assert (status, json.loads(said)["kind"]) == (403, "unauthorized"), said
    assert server.site.admin_token().encode() not in said


def test_tokens_never_reach_the_log(server: Server) -> None:
    call(server, LOCK, "alpha")
    call(server, LOCK, "alpha", "nope")
    raw(server, b"{", path=f"{base(server, 'alpha')}/v1/{LOCK}")
    assert auth.fleetlock_token(server.site.admin_token(), "alpha") not in server.log.read_text()


def test_the_url_that_the_command_prints_works(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ticket", "fleetlock", "gamma", "--site", str(server.site.root), "--json"]) == 0
    url = json.loads(capsys.readouterr().out)["base_url"]
    assert url.endswith("/")  # Zincati replaces what stands after the last slash
    assert Client(url).request("POST", "/v1/pre-reboot", body=body(), headers=ZINCATI).status == 200
    assert holders(server, "reboots") == ["gamma"]
    assert run(["ticket", "fleetlock", "gama", "--site", str(server.site.root)]) == 4
    assert "did you mean 'gamma'?" in capsys.readouterr().err


def test_until_it_is_configured_everybody_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    site.hosts.write_text(HOSTS)
    with serving(site) as server:
        for path in ("/fleetlock", base(server, "alpha")):
            answer = Client(server.api).request("POST", f"{path}/v1/pre-reboot", body=body(), headers=ZINCATI)
            assert told(answer) == (403, "unauthorized")
            assert b"[fleetlock]" in answer.body


def test_an_address_alone_is_not_believed_unless_the_site_says_so(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", '[fleetlock]\ngroups = { default = "root-dump" }\n')
    site.hosts.write_text(HOSTS)
    with serving(site) as server:
        assert told(Client(server.api).request("POST", "/fleetlock/v1/pre-reboot", body=body(), headers=ZINCATI)) == (
            403, "unauthorized")
        assert call(server, LOCK, "alpha").status == 200


def test_a_group_without_a_service_is_refused_at_start(tmp_path: Path) -> None:
    from control import config

    with pytest.raises(ConfigError, match=r"\[fleetlock\] groups names 'reboot'.*did you mean 'reboots'\?"):
        config.check_services(["reboot"], ["reboots"], "[fleetlock] groups")


@pytest.mark.parametrize(("address", "host"), [
    ("10.1.0.11", "a"), ("::ffff:10.1.0.11", "a"), ("fd00::5", "c"), ("10.1.0.12", None), ("10.1.0.13", None),
    ("", None), ("testclient", None)])
def test_which_host_is_at_an_address(address: str, host: str | None) -> None:
    hosts = [Host("a", address="10.1.0.11/24"), Host("b", subnet="10.1.0.0/24"), Host("c", address="fd00::5/64"),
             Host("d", address="10.1.0.13/24"), Host("e", address="10.1.0.13/24")]
    if host is None:
        with pytest.raises(TrustError):
            auth.host_at(address, hosts)
    else:
        assert auth.host_at(address, hosts) == host
