"""Second copies at a real server: sent, resumed, refused, listed, pruned, and all of it on the audit log."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from servers import Machine, Server, make_site, publish_release, serving, wait_until

from control.audit import REFUSED_A_MINUTE, Access, Audit
from control.second_copies import ABANDONED_S, Limits, NoRoomError, SecondCopies
from plumbing.errors import CorruptError, DiskError, NotFoundError, RefusedError
from plumbing.http import Client, Response

Make = Callable[[], Machine]
LIMITS = Limits(host_bytes=10 << 20, reserve_bytes=0, keep_days=30, keep_orders=2)
ORDERS = [str(uuid.UUID(int=number)) for number in range(5)]


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def announce(host: Machine, order: str, data: bytes, **changed: object) -> Response:
    return host.client().post_json(f"/api/v1/hosts/{host.name}/precious/{order}",
                                   {"bytes": len(data), "blake3": digest(data), **changed})


def put(host: Machine, order: str, data: bytes, piece: bytes, offset: int, owner: str = "") -> Response:
    return host.client().request(
        "PUT", f"/api/v1/hosts/{owner or host.name}/precious/{order}?blake3={digest(data)}&offset={offset}", body=piece)


def send(host: Machine, order: str, data: bytes, step: int = 1 << 20) -> None:
    assert announce(host, order, data).json() == {"offset": 0, "stored": False}
    for start in range(0, len(data), step):
        piece = data[start:start + step]
        assert put(host, order, data, piece, start).json() == {
            "offset": start + len(piece), "stored": start + len(piece) == len(data)}


def token(server: Server) -> str:
    return server.site.precious_token.read_text().strip()


def entries(server: Server, host: str) -> list[dict[str, str]]:
    answer = server.admin("GET", f"/precious/audit?limit=10000&host={host}").json()
    assert isinstance(answer, dict)
    found: list[dict[str, str]] = answer["entries"]
    return found


def test_a_copy_is_sent_in_pieces_kept_and_given_out_to_readers_only(machine: Make, server: Server) -> None:
    host = machine().join()
    order, data = host.issued(), os.urandom(2_500_000)
    send(host, order, data)
    assert announce(host, order, data).json() == {"offset": len(data), "stored": True}, "said again"
    (row,) = server.admin("GET", f"/precious?host={host.name}").json()["copies"]
    assert (row["order"], row["bytes"], row["blake3"]) == (order, len(data), digest(data))
    path = f"/precious/copies/{host.name}/{order}"
    fetched = server.admin("GET", path, token=token(server))
    assert fetched.body == data and fetched.headers["reroot-blake3"] == digest(data)
    assert server.admin("GET", path).status == 401, "an administrator's token gives out nothing precious"
    assert host.client().get_range(f"/api/v1/hosts/{host.name}/precious/{order}", 1000, 10) == data[1000:1010]
    folder = server.site.state / "precious"
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / host.name)} == {0o700}
    (file,) = (folder / host.name).iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    told = [(one["who"], one["what"], one["outcome"]) for one in entries(server, host.name)]
    assert told == [(f"host {host.name}", "announce", "ok"), (f"host {host.name}", "store", "ok"),
                    (f"host {host.name}", "announce", "ok"), ("admin", "list", "ok"), ("precious", "fetch", "ok"),
                    ("unproven a bearer", "GET fetch", "trust"), (f"host {host.name}", "read", "ok")]
    assert {one["from"] for one in entries(server, host.name)} == {"127.0.0.1"}


def test_a_cut_upload_goes_on_where_the_server_is(machine: Make) -> None:
    host = machine().join()
    order, data = host.issued(), os.urandom(1000)
    announce(host, order, data)
    assert put(host, order, data, data[:400], 0).json() == {"offset": 400, "stored": False}
    # the answer was lost, and the host sends the piece again; then one that is ahead
    assert put(host, order, data, data[:400], 0).json() == {"offset": 400, "stored": False}
    assert put(host, order, data, data[600:], 600).json() == {"offset": 400, "stored": False}
    assert announce(host, order, data).json() == {"offset": 400, "stored": False}
    assert put(host, order, data, data[400:], 400).json() == {"offset": 1000, "stored": True}
    assert put(host, order, data, data[400:], 400).json() == {"offset": 1000, "stored": True}


def test_another_host_order_or_key_gets_nowhere(machine: Make, server: Server) -> None:
    host, other = machine().join(), machine().join()
    order, theirs, data = host.issued(), other.issued(), os.urandom(1000)
    send(host, order, data)
    path = f"/api/v1/hosts/{host.name}/precious/{order}"
    for client in (other.client(), Client(server.api)):
        assert client.request("GET", path).status == 401
        assert client.post_json(path, {"bytes": 3, "blake3": digest(b"abc")}).status == 401
        assert client.request("PUT", f"{path}?blake3={digest(data)}&offset=0", body=b"abc").status == 401
    assert announce(host, theirs, data).status == 404, "an order of another host"
    assert announce(host, str(uuid.uuid4()), data).status == 404
    assert host.client().request("GET", f"/api/v1/hosts/{host.name}/precious/{theirs}").status == 404
    for path in ("/precious/copies/..%2F..%2Fkeys/x", f"/precious/copies/{host.name}/..%2F..%2Freroot.db",
                 f"/precious/copies/nobody/{order}"):
        assert server.admin("GET", path, token=token(server)).status == 404
    assert server.admin("POST", f"/orders/{order}/cancel").status == 200
    again = announce(host, order, b"other")
    assert again.status == 403 and "under way" in str(again.json())
    refused = [one for one in entries(server, host.name) if one["outcome"] != "ok"]
    assert {one["who"] for one in refused} == {"unproven somebody", f"host {host.name}", f"host {other.name}"}
    assert {"trust", "not_found", "refused"} == {one["outcome"] for one in refused}


def test_what_was_not_announced_is_not_taken(machine: Make) -> None:
    host = machine().join()
    order, data = host.issued(), os.urandom(1000)
    assert put(host, order, data, data, 0).status == 404
    announce(host, order, data)
    assert put(host, order, data, data + b"x", 0).status == 400
    bent = bytes([data[0] ^ 1]) + data[1:]
    answer = put(host, order, data, bent, 0)
    assert answer.status == 400 and answer.json()["kind"] == "corrupt"  # type: ignore[index]
    assert announce(host, order, data).json() == {"offset": 0, "stored": False}, "nothing of it is left"
    for body in ({"bytes": 0}, {"bytes": -1}, {"blake3": "ab"}, {"blake3": "../" * 21 + "x"}, {"more": 1}):
        assert announce(host, order, data, **body).status == 400
    assert put(host, order, data, bytes((1 << 20) + 1), 0).status == 400


def test_two_hosts_at_once_and_a_newer_copy_of_the_same_order(machine: Make, server: Server) -> None:
    pairs = [(host, host.issued(), os.urandom(3_000_000)) for host in (machine().join(), machine().join())]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: send(pair[0], pair[1], pair[2], 300_000), pairs))
    host, order, _ = pairs[0]
    newer = os.urandom(2000)
    send(host, order, newer)
    for one, which, data in ((host, order, newer), pairs[1]):
        assert server.admin("GET", f"/precious/copies/{one.name}/{which}", token=token(server)).body == data
    assert len(server.admin("GET", f"/precious?host={host.name}").json()["copies"]) == 1


def test_pruning_spares_what_an_open_order_needs(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", "[precious]\nkeep_orders = 1\nreserve_bytes = 0\n")
    publish_release(site, tmp_path)
    with serving(site) as server:
        host = Machine(server, "alpha", "52:54:00:00:00:01").join()
        orders = []
        for number in range(3):
            orders.append(host.issued(replace=True))
            send(host, orders[-1], bytes([number]) * 100)
            (file,) = (site.state / "precious/alpha").glob(f"{orders[-1]}.*")
            os.utime(file, (number * 1e9,) * 2)  # the first two are years old
        dry = server.admin("POST", "/precious/prune", {"dry_run": True}).json()
        assert [row["order"] for row in dry["removed"]] == [orders[1], orders[0]]
        assert "days old" in dry["removed"][0]["why"]
        assert server.admin("POST", "/precious/prune", {}, token=token(server)).status == 401
        assert server.admin("POST", "/precious/prune", {}).json() == dry
        left = server.admin("GET", "/precious", token=token(server)).json()["copies"]
        assert [row["order"] for row in left] == [orders[2]]
        assert server.admin("POST", f"/orders/{orders[2]}/cancel").status == 200
        os.utime(file, (1e9,) * 2)
    with serving(site) as server:  # the upkeep does it by itself, at the start too
        wait_until(lambda: "removed the second copy" in server.log.read_text(), 60)
        assert list((site.state / "precious/alpha").iterdir()) == []
        assert "recovery.pem opens every second copy" in server.log.read_text()


# -- without HTTP: disks and files ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def store(copies: SecondCopies, host: str, order: str, data: bytes) -> None:
    assert copies.begin(host, order, len(data), digest(data)).offset == 0
    assert copies.write(host, order, digest(data), 0, data).stored


def test_a_full_disk_is_told_before_anything_comes_and_what_is_promised_counts(small_disk: Path) -> None:
    copies = SecondCopies(small_disk, Limits(1 << 30, 1 << 20, 30, 2))
    with pytest.raises(NoRoomError, match=r"3200000 bytes are to come, 0 are promised .* and \d+ bytes are missing"):
        copies.begin("alpha", ORDERS[0], 3_200_000, "a" * 64)
    copies.begin("alpha", ORDERS[0], 2_000_000, "a" * 64)
    with pytest.raises(NoRoomError, match="2000000 are promised"):
        copies.begin("beta", ORDERS[1], 2_000_000, "b" * 64)
    copies.begin("beta", ORDERS[1], 1_000_000, "b" * 64)
    # another copy of alpha takes the place of its first
    copies.begin("alpha", ORDERS[0], 2_000_001, "c" * 64)
    assert len(list((small_disk / "alpha").iterdir())) == 1


def test_a_disk_that_fills_up_on_the_way_keeps_what_came_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    copies = SecondCopies(small_disk, Limits(1 << 30, 0, 30, 2))
    data = os.urandom(3 << 20)
    copies.begin("alpha", ORDERS[0], len(data), digest(data))
    copies.write("alpha", ORDERS[0], digest(data), 0, data[:1 << 20])
    (small_disk / "somebody").write_bytes(bytes(5 << 19))
    with pytest.raises(NoRoomError, match=f"from byte {1 << 20}"):
        copies.write("alpha", ORDERS[0], digest(data), 1 << 20, data[1 << 20:2 << 20])
    (small_disk / "somebody").unlink()
    assert copies.begin("alpha", ORDERS[0], len(data), digest(data)).offset == 1 << 20
    assert copies.write("alpha", ORDERS[0], digest(data), 1 << 20, data[1 << 20:]).stored
    path, _ = copies.find("alpha", ORDERS[0])
    assert path.read_bytes() == data


def test_a_host_has_a_quota(tmp_path: Path) -> None:
    copies = SecondCopies(tmp_path, Limits(1000, 0, 30, 5))
    store(copies, "alpha", ORDERS[0], b"x" * 600)
    with pytest.raises(RefusedError, match="together 100 bytes more"):
        copies.begin("alpha", ORDERS[1], 500, "a" * 64)
    store(copies, "alpha", ORDERS[0], b"y" * 1000)  # in place of the first
    store(copies, "beta", ORDERS[1], b"z" * 1000)


def test_a_server_that_died_with_the_last_piece_keeps_the_copy_when_it_is_asked_again(tmp_path: Path) -> None:
    copies = SecondCopies(tmp_path, LIMITS)
    data = b"abc" * 100
    copies.begin("alpha", ORDERS[0], len(data), digest(data))
    (part,) = (tmp_path / "alpha").iterdir()
    part.write_bytes(data)
    assert SecondCopies(tmp_path, LIMITS).begin("alpha", ORDERS[0], len(data), digest(data)).stored
    copies.begin("alpha", ORDERS[1], len(data), digest(data))
    (part,) = (tmp_path / "alpha").glob("*.part")
    part.write_bytes(bytes(len(data)))  # what a power cut left of it
    with pytest.raises(CorruptError):
        copies.begin("alpha", ORDERS[1], len(data), digest(data))
    assert copies.begin("alpha", ORDERS[1], len(data), digest(data)).offset == 0


def test_abandoned_parts_go_and_nothing_else_of_the_folder(tmp_path: Path) -> None:
    copies = SecondCopies(tmp_path, LIMITS)
    copies.begin("alpha", ORDERS[0], 10, "a" * 64)
    copies.begin("beta", ORDERS[1], 10, "b" * 64)
    (tmp_path / "alpha/README").write_text("a person's")
    (old,) = (tmp_path / "alpha").glob("*.part")
    now = old.stat().st_mtime
    os.utime(old, (now - ABANDONED_S - 1,) * 2)
    assert copies.prune((), now) == []
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "README", f"{ORDERS[1]}.{'b' * 64}.10.part"}
    with pytest.raises(NotFoundError):
        copies.find("alpha", ORDERS[0])


def test_the_audit_log_bounds_strangers_and_never_loses_an_answered_access(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "log")
    stranger = Access("unproven somebody", "GET fetch", "alpha", ORDERS[0], "10.0.0.9", "trust", "x" * 1000 + "\n")
    for number in range(3 * REFUSED_A_MINUTE):
        audit.note(stranger, 1000 + number / 10)
    audit.note(Access("precious", "fetch", "alpha", ORDERS[0], "10.0.0.1"), 1020)
    audit.note(stranger, 1090)
    rows = audit.entries(None, 10_000)
    assert len(rows) == REFUSED_A_MINUTE + 2
    assert [row.get("more") for row in rows[-2:]] == [2 * REFUSED_A_MINUTE, None]
    assert all(len(line) < 1000 for line in (tmp_path / "log").read_text().splitlines())
    with (tmp_path / "log").open("ab") as stream:
        stream.write(b'{"at": "torn')
    assert len(audit.entries("alpha", 3)) == 3 and audit.entries("beta", 3) == []
    assert json.loads((tmp_path / "log").read_text().splitlines()[0])["from"] == "10.0.0.9"
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
    with pytest.raises(DiskError, match="was not answered"):
        Audit(tmp_path / "no/folder").note(Access("admin", "list", "", "", ""), 0)
