"""Blobs, manifests, catalogue and boot files from both servers, and paths that want out."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from servers import Machine, Server, wait_until

from imaging.audit import audit
from imaging.registry import Place, Registry
from imaging.release import Release
from imaging.store import Store
from imaging.transfer import receive
from imaging.trusted import TrustedCatalogue
from plumbing import clock
from plumbing.http import Client


@pytest.fixture(params=["api", "content"])
def base(request: pytest.FixtureRequest, server: Server) -> str:
    return str(getattr(server, request.param))


def release_of(server: Server) -> Release:
    return Release.parse(Store(server.site.store).manifest("debian/13.1/amd64"))


def test_another_site_pulls_a_release(server: Server, base: str, tmp_path: Path) -> None:
    release, other = release_of(server), Store(tmp_path / "other")
    got = receive(other, Registry(Place.parse(f"{base}/debian")), "13.1-amd64")
    assert got.release == release
    assert audit(other, release.ref).release == release


def test_blob_whole_head_and_ranges(server: Server, base: str) -> None:
    release = release_of(server)
    path = f"/v2/reroot/blobs/{release.layer_digest}"
    client = Client(base)
    whole = client.request("GET", path)
    assert whole.status == 200
    assert "sha256:" + hashlib.sha256(whole.body).hexdigest() == release.layer_digest
    assert whole.headers["docker-content-digest"] == release.layer_digest
    head = client.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) == release.layer_size
    assert client.get_range(path, 10, 1000) == whole.body[10:1010]
    assert client.get_range(path, release.layer_size - 5, 5) == whole.body[-5:]
    tail = client.request("GET", path, headers={"Range": "bytes=-7"})
    assert (tail.status, tail.body) == (206, whole.body[-7:])
    beyond = client.request("GET", path, headers={"Range": f"bytes={release.layer_size}-"})
    assert beyond.status == 416
    again = client.request("GET", path, headers={"If-None-Match": whole.headers["etag"]})
    assert again.status == (304 if base == server.content else 200)


def test_oci_pull_side(server: Server, base: str) -> None:
    release, client = release_of(server), Client(base)
    assert client.request("GET", "/v2/").headers["docker-distribution-api-version"] == "registry/2.0"
    for repo in ("debian", "reroot/debian"):
        tagged = client.request("GET", f"/v2/{repo}/manifests/13.1-amd64")
        assert tagged.status == 200
        assert tagged.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
        assert tagged.headers["docker-content-digest"] == release.digest
        assert client.request("GET", f"/v2/{repo}/manifests/{release.digest}").body == tagged.body
        assert client.request("GET", f"/v2/{repo}/tags/list").json() == {"name": repo, "tags": ["13.1-amd64"]}
    config = client.request("GET", f"/v2/debian/blobs/{release.config_digest}")
    assert (config.status, len(config.body)) == (200, release.config_size)
    missing = client.request("GET", "/v2/debian/manifests/none")
    assert missing.status == 404
    assert client.request("GET", f"/v2/debian/blobs/sha256:{'0' * 64}").status == 404
    assert client.request("GET", f"/v2/debian/manifests/{release.layer_digest}").status in (404, 500)


def test_catalogue_is_what_a_host_trusts(server: Server, base: str, tmp_path: Path) -> None:
    root = (server.site.catalogue / "metadata/1.root.json").read_bytes()
    trusted = TrustedCatalogue(root, f"{base}/catalogue/metadata/", f"{base}/catalogue/targets/", tmp_path / "trust")
    manifest = trusted.fetch("releases/debian/13.1/amd64.json")
    assert Release.parse(manifest).digest == release_of(server).digest
    assert json.loads(trusted.fetch("orders/keys.json"))["threshold"] == 1


HOSTILE = (
    "/catalogue/metadata/../../keys/root.pem", "/catalogue/metadata/..%2f..%2fkeys/root.pem",
    "/catalogue/%2e%2e/keys/root.pem", "/catalogue/keys/root.pem", "/boot/files/../keys/admin.token",
    "/boot/files/%2e%2e/keys/admin.token", "/boot/files/..\\keys", "/boot/files//etc/passwd", "/boot/files/etc%00",
    "/boot/files/%2Fetc%2Fpasswd", "/boot/files/way-out/passwd", "/boot/files/way-out-file", "/boot/files/folder",
    "/boot/files/", "/boot/files", "/v2/x/blobs/sha256:../../index.json", "/v2/x/blobs/../../../index.json",
    "/v2/x/blobs/sha256:" + "A" * 64, "/v2/blobs/sha256:" + "0" * 64, "/v2/x/manifests/..", "/v2/../keys/root.pem",
    "/boot/files/recovery/../../keys/root.pem", "/boot/files/recovery/a/b/c/d", "/boot/files/.hidden",
    "/boot/files/%ff%fe", "/boot/files/" + "a" * 5000, "/store/index.json", "/reroot.toml", "/keys/admin.token",
)


@pytest.mark.parametrize("path", HOSTILE)
def test_nothing_outside_is_served(server: Server, base: str, path: str) -> None:
    boot = server.site.boot
    (boot / "folder").mkdir(exist_ok=True)
    (boot / ".hidden").write_bytes(b"secret")
    for name, target in (("way-out", "/etc"), ("way-out-file", server.site.keys / "root.pem")):
        if not (boot / name).is_symlink():
            (boot / name).symlink_to(target)
    place = urlsplit(base)
    with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    status = answer.split(b" ", 2)[1]
    assert status in (b"404", b"400"), answer[:300]
    assert b"PRIVATE KEY" not in answer
    assert b"secret" not in answer
    assert Client(base).request("GET", "/healthz").status == 200


def test_boot_files(server: Server, base: str) -> None:
    (server.site.boot / "sub").mkdir(exist_ok=True)
    (server.site.boot / "sub/undionly.kpxe").write_bytes(b"ipxe")
    assert Client(base).request("GET", "/boot/files/sub/undionly.kpxe").body == b"ipxe"


def test_only_reading(server: Server, base: str) -> None:
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        assert Client(base).request(method, "/v2/reroot/blobs/uploads/").status in (404, 405)


TAB = "service root-dump 3600\ncontrol 10\nservice brief 1\ncontrol 10\n"


def test_a_live_ticket_is_served_and_a_stale_or_foreign_one_is_refused(
    base: str, server: Server, machine: Callable[[], Machine],
) -> None:
    server.site.tickettab.write_text(TAB)
    host, path = machine().join(), f"/v2/reroot/blobs/{release_of(server).layer_digest}"
    client = Client(base)

    def shown(ticket: str) -> int:
        span = {"Reroot-Ticket": ticket, "Range": "bytes=0-99"}
        return client.request("GET", path, headers=span).status

    first, brief = (host.client().post_json("/api/v1/tickets", {"service": name}).json()["ticket"]
                    for name in ("root-dump", "brief"))
    assert shown(first) == 206
    wait_until(lambda: shown(brief) == 403)  # nobody renewed it
    for wrong in (first.replace("control", "other"), "control_999999", "x", "control_" + "9" * 30, "' OR 1=1"):
        assert shown(wrong) == 403, wrong
    refused = client.request("GET", path, headers={"Reroot-Ticket": brief}).json()
    assert "get a new one" in json.dumps(refused)
    assert host.client().request("DELETE", f"/api/v1/tickets/{first}").status == 204
    assert shown(first) == 403
    assert client.request("GET", path).status == 200  # who has no ticket needs none


def test_all_transfers_under_one_ticket_share_its_bandwidth(server: Server, machine: Callable[[], Machine]) -> None:
    tab = server.site.tickettab.with_name("tickettab.toml")
    tab.write_text("[service.slow]\nlifetime_s = 60\nbandwidth = 200_000\nprovider.control = 5\n")
    host, path = machine().join(), f"/v2/reroot/blobs/{release_of(server).layer_digest}"
    whole = Client(server.content).request("GET", path).body
    ticket = host.client().post_json("/api/v1/tickets", {"service": "slow"}).json()
    assert isinstance(ticket, dict)
    began, headers = clock.monotonic(), {"Reroot-Ticket": str(ticket["ticket"])}
    with ThreadPoolExecutor(2) as pool:
        bodies = list(pool.map(lambda _: Client(server.content).request("GET", path, headers=headers).body, range(2)))
    took = clock.monotonic() - began
    assert bodies == [whole, whole]
    assert took > 2 * len(whole) / 200_000 - 0.6  # a burst and the last pieces are not waited for
    assert host.client().request("DELETE", f"/api/v1/tickets/{ticket['ticket']}").status == 204
    tab.unlink()


def test_a_transfer_ends_when_its_ticket_does(server: Server, machine: Callable[[], Machine]) -> None:
    tab = server.site.tickettab.with_name("tickettab.toml")
    tab.write_text("[service.slow]\nlifetime_s = 60\nbandwidth = 131_072\nprovider.control = 5\n")
    host = machine().join()
    (server.site.boot / "big").write_bytes(bytes(1 << 20))
    ticket = host.client().post_json("/api/v1/tickets", {"service": "slow"}).json()
    assert isinstance(ticket, dict)
    parts = urlsplit(server.content)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        shown = f"Reroot-Ticket: {ticket['ticket']}"
        connection.sendall(f"GET /boot/files/big HTTP/1.1\r\nHost: x\r\n{shown}\r\n\r\n".encode())
        got = len(connection.recv(65536))
        assert host.client().request("DELETE", f"/api/v1/tickets/{ticket['ticket']}").status == 204
        try:
            while piece := connection.recv(65536):
                got += len(piece)
        except ConnectionResetError:
            pass
    assert got < 1 << 20
    tab.unlink()
