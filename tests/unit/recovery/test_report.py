"""Reports and enrolment against a real HTTP server that checks signatures and fails when it is told to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from plumbing import clock, hostauth
from plumbing.errors import ConfigError, NetworkError, TrustError
from plumbing.http import Client
from recovery import identity, report, servers
from recovery.identity import Identity
from recovery.log import Log
from recovery.report import QUEUE_LIMIT, Reporter, enrol
from throttle import client as throttle


@dataclass
class Control:
    """The control server's side: what it took, and the statuses it answers next (then 204)."""

    url: str = ""
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    taken: list[dict[str, object]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    asked: int = 0
    change: threading.Condition = field(default_factory=threading.Condition)

    def identity(self) -> Identity:
        return Identity("alpha", self.url, (), self.key)


@pytest.fixture
def control() -> Iterator[Control]:
    state = Control()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            claim = hostauth.read_claim(dict(self.headers.items()))
            hostauth.verify(claim, state.key.public_key(), clock.wall(), "POST", self.path, body)
            with state.change:
                state.asked += 1
                status = state.answers.pop(0) if state.answers else 204
                if status < 300:
                    state.taken.append({"path": self.path, **json.loads(body)})
                state.change.notify_all()
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def _reporter() -> tuple[Reporter, io.StringIO]:
    out = io.StringIO()
    return Reporter(Log([out])), out


def test_reports_arrive_signed_and_in_order(control: Control) -> None:
    reporter, _ = _reporter()
    reporter.send("network", "begin")
    reporter.identify(control.identity())
    reporter.order = "o-1"
    reporter.send("network", "done", {"seconds": 1.5})
    reporter.send("order", "failed", {"kind": "trust"}, "it is not for us; look")
    assert reporter.flush()
    assert [(r["phase"], r["event"], r["order"]) for r in control.taken] == [
        ("network", "begin", None), ("network", "done", "o-1"), ("order", "failed", "o-1")]
    assert control.taken[0]["path"] == "/api/v1/hosts/alpha/report"
    assert control.taken[2]["message"] == "it is not for us; look"
    assert clock.from_iso(str(control.taken[1]["at"])) > 0


def test_a_server_that_is_down_delays_nothing_and_loses_nothing(control: Control) -> None:
    reporter, out = _reporter()
    control.answers = [503, 500]
    reporter.identify(control.identity())
    reporter.send("disks", "begin")
    assert not reporter.flush()
    assert [r.phase for r in reporter.waiting()] == ["disks"]
    reporter.send("disks", "done")
    assert any(reporter.flush() for _ in range(5))
    assert [(r["phase"], r["event"]) for r in control.taken] == [("disks", "begin"), ("disks", "done")]
    assert out.getvalue().count("kept and tried again") == 1


def test_nobody_there(control: Control) -> None:
    reporter, _ = _reporter()
    reporter.identify(Identity("alpha", "http://127.0.0.1:9", (), control.key))
    reporter.send("disks", "begin")
    assert not reporter.flush(5)
    assert len(reporter.waiting()) == 1


def test_a_refused_report_is_dropped_and_the_next_one_goes(control: Control) -> None:
    reporter, _ = _reporter()
    control.answers = [404]
    reporter.identify(control.identity())
    reporter.send("disks", "begin")
    reporter.send("disks", "done")
    assert reporter.flush()
    assert [r["event"] for r in control.taken] == ["done"]


def test_progress_is_thinned_and_the_queue_bounded() -> None:
    reporter, _ = _reporter()
    for number in range(50):
        reporter.send("restore", "progress", {"done": number})
    assert len(reporter.waiting()) == 1
    for number in range(QUEUE_LIMIT + 50):
        reporter.send("restore", "failed", {"n": number})
    kept = reporter.waiting()
    assert len(kept) == QUEUE_LIMIT and dict(kept[-1].data) == {"n": QUEUE_LIMIT + 49}


def test_without_an_identity_nothing_is_sent_and_nothing_hangs() -> None:
    reporter, _ = _reporter()
    assert reporter.flush()
    reporter.send("network", "begin")
    assert not reporter.flush()


# -- enrolment and identity ----------------------------------------------------------------------------------


def test_enrolling_gives_the_key(control: Control) -> None:
    control.answers = [201]
    enrol(control.identity(), {"order": "o", "nonce": "n" * 16})
    asked = control.taken[0]
    assert asked["path"] == "/api/v1/enrol" and asked["host"] == "alpha" and asked["nonce"] == "n" * 16
    assert base64.b64decode(str(asked["public_key"])) == control.key.public_key().public_bytes_raw()


def test_a_token_is_proved_and_never_sent(control: Control) -> None:
    control.answers = [201]
    enrol(control.identity(), {"token": "a secret word"})
    asked = control.taken[0]
    assert asked.keys() == {"path", "host", "public_key", "proof"}
    digest = hashlib.sha256(b"a secret word").digest()
    said = f"reroot-enrol-1\nalpha\n{asked['public_key']}".encode()
    assert asked["proof"] == hmac.new(digest, said, "sha256").hexdigest()


@pytest.mark.parametrize(("status", "error"), [(404, TrustError), (401, TrustError), (500, NetworkError)])
def test_an_enrolment_that_is_not_taken(control: Control, status: int, error: type[Exception]) -> None:
    control.answers = [status]
    with pytest.raises(error, match="enrolment"):
        enrol(control.identity(), {"token": "x"})


def test_an_identity_is_made_once_and_read_back(tmp_path: Path) -> None:
    assert identity.load(tmp_path) is None
    made = identity.create(tmp_path, "alpha", "http://c:1", ["http://d:2"], b"{}", b'{"links": []}')
    read = identity.load(tmp_path)
    assert read is not None and read.key.private_bytes_raw() == made.key.private_bytes_raw()
    assert (read.host, read.control, read.content) == ("alpha", "http://c:1", ("http://d:2",))
    assert (tmp_path / "recover/agent/host.key").stat().st_mode & 0o777 == 0o600
    again = identity.create(tmp_path, "alpha", "http://c:1", [], b"{}", b"{}")
    assert again.key.private_bytes_raw() == made.key.private_bytes_raw(), "a power cut in between keeps the key"
    other = identity.create(tmp_path, "beta", "http://c:1", [], b"{}", b"{}")
    assert other.key.private_bytes_raw() != made.key.private_bytes_raw()


@pytest.mark.parametrize(("name", "data"), [("agent.json", b"{"), ("agent.json", b'{"host": 1}'), ("host.key", b"no")])
def test_a_damaged_identity_is_one_sentence(tmp_path: Path, name: str, data: bytes) -> None:
    identity.create(tmp_path, "alpha", "http://c:1", [], b"{}", b"{}")
    (tmp_path / "recover/agent" / name).write_bytes(data)
    with pytest.raises(ConfigError, match="enrol the host again"):
        identity.load(tmp_path)


# -- a server that drips -------------------------------------------------------------------------------------


@pytest.fixture
def dripping() -> Iterator[str]:
    """The URL of a server that sends a byte of its answer's head every now and then, and never ends."""
    done = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not done.wait(0.02):
                connection.sendall(b"x")

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    done.set()
    server.close()


def test_a_server_that_drips_holds_no_question_no_report_and_no_enrolment(
        dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "DEADLINE_S", 0.2)
    monkeypatch.setattr(throttle, "DEADLINE_S", 0.2)
    known = Identity("alpha", dripping, (), Ed25519PrivateKey.generate())
    with pytest.raises(NetworkError, match="does not answer"):
        servers.current_order(Client(dripping), "/api/v1/hosts/alpha/order", deadline_s=0.2)
    with pytest.raises(NetworkError, match="does not answer"):
        enrol(known, {"token": "t"})
    with pytest.raises(NetworkError, match="does not answer"):
        throttle.acquire(known.client(), "root-dump", wait_s=0)
    reporter = Reporter(Log([io.StringIO()]))
    reporter.identify(known)
    reporter.send("network", "begin")
    assert not reporter.flush(wait_s=10), "it was tried and is kept"
    assert any("does not answer" in line for line in reporter._log.last(10))
