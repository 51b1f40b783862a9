"""Recovery sends a second copy to a real control server before it wipes, and what comes of it when that fails."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from blake3 import blake3
from one_host import BOOT_FS, GUIDS, MAC, SERIAL, Host, actions, drive, free_port
from servers import RECOVERY, Machine, Server, make_site, serving

from imaging.capture import capture
from imaging.catalogue import Catalogue
from imaging.store import Store
from plumbing.errors import BusyError, CorruptError, DiskError, NetworkError, RefusedError
from plumbing.http import Client
from precious import keep, sealing, sealkeys
from recovery import identity
from recovery.machine import State
from recovery.session import Session
from recovery.upload import FAILURES, Upload

pytestmark = pytest.mark.root

BLOB = os.urandom(3_500_000)
KEEP = '[loss]\nrule = "warn"\n[[rule]]\nkeep = ["/srv/**", "/etc/hostname", "/etc/ssh/ssh_host_*"]\n'


@dataclass
class Upgrade:
    """A host with an open upgrade order of a real server."""

    host: Host
    server: Server
    machine: Machine
    order: str = ""

    def phase(self, event: str) -> list[dict[str, object]]:
        found = self.server.admin("GET", "/hosts/alpha/events").json()["events"]
        return [one for one in found if (one["phase"], one["event"]) == ("preserve", event)]

    def copy(self) -> bytes:
        token = self.server.site.precious_token.read_text().strip()
        answer = self.server.admin("GET", f"/precious/copies/alpha/{self.order}", token=token)
        assert answer.status == 200
        return answer.body

    def root_is(self, word: str) -> bool:
        with self.host.mounted("root") as root:
            return (root / "usr/bin/tool").read_text() == f"{word}\n"


@contextmanager
def upgrade(alpha: Host, folder: Path, policy: str = "", config: str = "", orders: str = "", through: str = "",
            ) -> Iterator[Upgrade]:
    """Give the host to a real control server, which it asks at the URL `through`, and order an upgrade."""
    site = make_site(folder / "real", f"[precious]\nreserve_bytes = 0\n{config}")
    site.precious.write_text(KEEP + policy)
    site.config.write_text(site.config.read_text().replace("[orders]\n", f"[orders]\n{orders}"))
    manifest = capture(alpha.folder / "new", Store(site.store), name="test", version="13", arch="amd64",
                       recovery=RECOVERY)
    catalogue = Catalogue(site.catalogue, site.keys)
    catalogue.publish_all({"releases/test/13/amd64.json": manifest, RECOVERY: b"{}"})
    alpha.places.trust_root.write_bytes(catalogue.root_json())
    with serving(site) as server:
        with alpha.mounted("local") as local:
            (local / "recover/order.json").unlink()
            made = identity.create(local, "alpha", through or server.api, [server.content], catalogue.root_json(),
                                   b'{"links": []}')
        with alpha.mounted("root") as root:
            (root / "srv/blob").write_bytes(BLOB)
        machine = Machine(server, "alpha", MAC, made.key)
        assert machine.enrol(token=machine.add()).status == 201
        machine.report("inventory", "inventory", {
            "arch": "amd64", "firmware": "bios", "memory_bytes": 1 << 30, "serial": "", "links": [],
            "disks": {name: {"partuuid": guid, "disk_serial": SERIAL, "fstype": BOOT_FS if name == "boot" else "ext4"}
                      for name, guid in GUIDS.items()}})
        order = machine.issued(release="test/13/amd64", recovery="base/1/amd64")
        yield Upgrade(alpha, server, machine, order)


def test_a_copy_is_on_the_server_before_the_wipe_and_its_files_are_the_host_s(alpha: Host, tmp_path: Path) -> None:
    with alpha.mounted("root") as root:
        key = (root / "etc/ssh/ssh_host_ed25519_key").read_bytes()
    with upgrade(alpha, tmp_path) as made:
        session, menus = drive(alpha)
        assert menus == [] and made.root_is("new")
        (done,) = made.phase("done")
        told = done["data"]["second_copy"]  # type: ignore[index]
        data = made.copy()
        assert told["stored"] is True
        assert (told["bytes"], told["blake3"]) == (len(data), blake3(data).hexdigest())
        assert BLOB[:64] not in data and b"ssh_host" not in data
        recovery = sealkeys.load(made.server.site.recovery_key)
        with alpha.mounted("local") as local:
            kept = (local / "recover/precious" / made.order / keep.ARCHIVE).read_bytes()
            own = sealkeys.load(local / "recover/agent/precious.key")
        for number, reader in enumerate((recovery, own)):
            sealing.unseal(io.BytesIO(data), reader, tmp_path / str(number), host="alpha", order=made.order)
            found = keep.verify(tmp_path / str(number))
            assert found.archive.read_bytes() == kept
            paths = frozenset({b"srv/blob", b"etc/ssh/ssh_host_ed25519_key"})
            assert keep.read_files(found, paths) == {b"srv/blob": BLOB, b"etc/ssh/ssh_host_ed25519_key": key}
        text = "\n".join(session.log.last(500))
        assert "ticket control_" in text, "the copy is sent under a ticket"
        tickets = made.server.admin("GET", "/status").json()["tickets"]
        assert "alpha" not in json.dumps(tickets), "and it is given back"


@pytest.mark.parametrize("required", [True, False])
def test_a_server_without_room_ends_the_upgrade_only_where_the_copy_is_required(
        alpha: Host, tmp_path: Path, required: bool) -> None:
    policy = f'[second_copy]\nwhen = "always"\nrequired = {str(required).lower()}\n'
    with upgrade(alpha, tmp_path, policy, "host_bytes = 1000\n") as made:
        _, menus = drive(alpha)
        assert menus == []
        if required:
            assert made.root_is("old") and alpha.boots() == "system"
            (failed,) = made.phase("failed")
            assert "the policy requires it, so nothing is wiped" in str(failed["message"])
            assert "more than a host may have" in str(failed["message"])
            assert made.machine.state() == "failed"
        else:
            assert made.root_is("new")
            (done,) = made.phase("done")
            assert done["data"]["second_copy"]["stored"] is False  # type: ignore[index]
            assert "more than a host may have" in done["data"]["second_copy"]["why"]  # type: ignore[index]


def test_no_copy_is_sent_where_the_policy_wants_none(alpha: Host, tmp_path: Path) -> None:
    with upgrade(alpha, tmp_path, '[second_copy]\nwhen = "never"\n') as made:
        _, menus = drive(alpha)
        assert menus == [] and made.root_is("new")
        (done,) = made.phase("done")
        assert "second_copy" not in done["data"]  # type: ignore[operator]
        assert made.server.admin("GET", "/precious").json() == {"copies": []}


def test_a_site_without_a_recovery_key_goes_on_without_and_orders_nothing_that_requires_one(
        alpha: Host, tmp_path: Path) -> None:
    with upgrade(alpha, tmp_path) as made:
        site = made.server.site
        Catalogue(site.catalogue, site.keys).withdraw(sealkeys.TARGET)
        site.precious.write_text(KEEP + "[second_copy]\nrequired = true\n")
        answer = made.machine.issue(release="test/13/amd64", recovery="base/1/amd64", replace=True)
        assert answer.status == 403 and "reroot trust recovery-key" in str(answer.json())
        _, menus = drive(alpha)
        assert menus == [] and made.root_is("new")
        (done,) = made.phase("done")
        assert "no recovery key" in done["data"]["second_copy"]["why"]  # type: ignore[index]


def rotten(alpha: Host, order: str) -> None:
    """Rot the archive on /local as a dying disk would."""
    file = alpha.places.local / "recover/precious" / order / keep.ARCHIVE
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


def test_a_rotten_archive_is_made_good_by_the_second_copy_after_the_wipe(alpha: Host, tmp_path: Path) -> None:
    with upgrade(alpha, tmp_path) as made:
        def rot_and_put_back(session: Session) -> Mapping[str, object]:
            rotten(alpha, made.order)
            return actions()[State.PUTBACK](session)

        session, menus = drive(alpha, {State.PUTBACK: rot_and_put_back})
        assert menus == [], session.log.last(50)
        with alpha.mounted("root") as root:
            assert (root / "srv/blob").read_bytes() == BLOB
            assert (root / "etc/hostname").read_text() == "alpha\n"
        events = made.server.admin("GET", "/hosts/alpha/events").json()["events"]
        (done,) = [one["data"] for one in events if (one["phase"], one["event"]) == ("putback", "done")]
        assert "the second copy was put back" in done["notes"][0]
        audit = made.server.admin("GET", "/precious/audit?host=alpha").json()["entries"]
        assert [one["what"] for one in audit][-1] == "read"


def test_a_rotten_archive_without_a_second_copy_is_told_as_before(alpha: Host, tmp_path: Path) -> None:
    with upgrade(alpha, tmp_path, '[second_copy]\nwhen = "never"\n', "", "attempts = 1\n") as made:
        def rot_and_put_back(session: Session) -> Mapping[str, object]:
            rotten(alpha, made.order)
            return actions()[State.PUTBACK](session)

        _, menus = drive(alpha, {State.PUTBACK: rot_and_put_back})
        assert len(menus) == 1 and "the second copy is not to be had: this host never made a key" in menus[0]
        assert alpha.boots() == "recovery"


# -- the wire is cut -----------------------------------------------------------------------------------------


@dataclass
class Cutter:
    """A proxy to a server that goes down whenever it has brought `after` bytes there, `cuts` times, until `rise`."""

    port: int = field(default_factory=free_port)
    target: tuple[str, int] = ("127.0.0.1", 0)
    after: int = 1_500_000
    cuts: int = 1
    passed: int = 0
    down: bool = False

    def rise(self, _: float) -> None:
        self.down = False

    def run(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            if self.down:
                near.close()
                continue
            try:
                far = socket.create_connection(self.target)
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.passed += len(data) if upward else 0
                if upward and self.cuts and self.passed > self.after:
                    self.cuts, self.passed, self.down = self.cuts - 1, 0, True
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(cuts: int) -> Iterator[Cutter]:
    cutter = Cutter(cuts=cuts)
    with closing(socket.create_server(("127.0.0.1", cutter.port))) as listener:
        threading.Thread(target=cutter.run, args=(listener,), daemon=True).start()
        yield cutter
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def test_a_cut_connection_goes_on_where_the_server_is(alpha: Host, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    from recovery.phases import second

    with cutting(cuts=2) as cutter, upgrade(alpha, tmp_path, "[second_copy]\nrequired = true\n",
                                            through=f"http://127.0.0.1:{cutter.port}") as made:
        parts = urlsplit(made.server.api)
        cutter.target = ("127.0.0.1", parts.port or 0)
        monkeypatch.setattr(second, "Upload", partial(Upload, pause=cutter.rise))
        session, menus = drive(alpha)
        assert menus == [] and made.root_is("new") and cutter.cuts == 0
        assert "; again in 2 s" in "\n".join(session.log.last(500))
        sealing.unseal(io.BytesIO(made.copy()), sealkeys.load(made.server.site.recovery_key), tmp_path / "out")
        assert keep.read_files(keep.verify(tmp_path / "out"), frozenset({b"srv/blob"})) == {b"srv/blob": BLOB}
        answer = made.server.admin("GET", "/precious/audit?host=alpha").json()
        lines = answer["entries"]
        assert [one["what"] for one in lines].count("announce") == 3, "it asked where to go on, and sent no piece twice"


@dataclass
class Memory:
    """A copy of 2.5 pieces."""

    size: int = 2_621_440

    def read(self, offset: int, length: int) -> bytes:
        return bytes(min(length, self.size - offset))


def tried(error: Exception | None, answers: list[dict[str, object]]) -> tuple[list[float], Upload]:
    """An upload whose server raises `error` always, or answers in turn; and the pauses it makes."""
    pauses: list[float] = []
    made = Upload(Client("http://127.0.0.1:1"), "/x", Memory(), "0" * 64, say=lambda _: None, pause=pauses.append)

    def answer(*_: object) -> tuple[int, bool]:
        if error is not None:
            raise error
        return made._came(answers.pop(0))

    made._announce = made._piece = answer  # type: ignore[method-assign,assignment]
    return pauses, made


@pytest.mark.parametrize("error", [NetworkError("gone"), BusyError("busy"), CorruptError("nonsense")])
def test_what_may_pass_is_tried_so_often_and_no_more(error: Exception) -> None:
    pauses, made = tried(error, [])
    with pytest.raises(type(error)):
        made.run(lambda *_: None)
    assert pauses == [2, 4, 8, 16, 30, 30, 30] and len(pauses) == FAILURES - 1


@pytest.mark.parametrize("error", [RefusedError("quota"), DiskError("full")])
def test_a_refusal_is_not_argued_with(error: Exception) -> None:
    pauses, made = tried(error, [])
    with pytest.raises(type(error)):
        made.run(lambda *_: None)
    assert pauses == []


def test_a_server_that_does_not_move_or_speaks_nonsense_is_given_up() -> None:
    answers: list[dict[str, object]] = [
        {"offset": -1, "stored": False}, {"offset": Memory.size, "stored": False}, {"offset": True},
        {"offset": 5, "stored": True}, {}]
    for nonsense in answers:
        _, made = tried(None, [nonsense] * FAILURES)
        with pytest.raises(CorruptError, match="how much"):
            made.run(lambda *_: None)
