"""The last gasp against real SMTP servers on loopback: they take mail, encrypt, refuse, or never finish a sentence."""

from __future__ import annotations

import datetime
import email
import email.policy
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from hypothesis import given, settings
from hypothesis import strategies as st
from mailboxes import Mailbox

from recovery.lastgasp import Gasp, LastGasp, compose, deliver, deliver_spool, spooled
from recovery.order import Gateway, Mail

GASP = Gasp("alpha", "6a1c", "restore", "network", "no content server answers; check that one runs",
            "2026-11-21T12:00:00Z", ("reroot [1.0] restore: 12 MB", "reroot [2.0] restore: FAILED"),
            ("look at the cable",))


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Mailbox, Gateway]]]:
    running: list[Controller] = []

    def start(answer: str = "250 taken", **options: Any) -> tuple[Mailbox, Gateway]:
        box = Mailbox(answer)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        controller = Controller(box, hostname="127.0.0.1", port=port, **options)
        controller.start()
        running.append(controller)
        return box, Gateway("127.0.0.1", port)

    yield start
    for controller in running:
        controller.stop()


@pytest.fixture
def tarpit() -> Iterator[Gateway]:
    """A gateway that sends a byte of its greeting now and then, for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        while not over.is_set():
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                while not over.wait(0.05):
                    try:
                        peer.sendall(b"2")
                    except OSError:
                        break

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    yield Gateway("127.0.0.1", listener.getsockname()[1])
    over.set()
    listener.close()
    thread.join(5)


@pytest.fixture
def nobody() -> Gateway:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Gateway("127.0.0.1", probe.getsockname()[1])


def _mail(*gateways: Gateway) -> Mail:
    return Mail("reroot@site.example", ("admin@site.example", "night@site.example"), gateways)


def _gasp(spool: Path | None = None, **limits: float) -> tuple[LastGasp, list[str]]:
    said: list[str] = []
    return LastGasp(say=said.append, spool=spool, gateway_wait_s=limits.get("gateway", 5),
                    total_wait_s=limits.get("total", 10)), said


def test_a_mail_is_taken(serve: Callable[..., tuple[Mailbox, Gateway]], tmp_path: Path) -> None:
    box, gateway = serve()
    lastgasp, _ = _gasp(tmp_path / "spool")
    assert lastgasp.tell(GASP, _mail(gateway)) == "sent"
    assert box.mails[0].rcpt_tos == ["admin@site.example", "night@site.example"]
    assert box.mails[0].mail_from == "reroot@site.example"
    text = box.message().get_content()
    for word in ("alpha", "6a1c", "restore", "network", GASP.sentence, "look at the cable", *GASP.lines):
        assert word in text
    assert box.message()["Subject"] == "reroot: alpha stopped in restore (network)"
    assert spooled(tmp_path / "spool") == []


def test_the_same_failure_is_told_once(serve: Callable[..., tuple[Mailbox, Gateway]], tmp_path: Path) -> None:
    box, gateway = serve()
    assert _gasp(tmp_path / "spool")[0].tell(GASP, _mail(gateway)) == "sent"
    # another boot knows it from the spool, another log makes no difference
    assert _gasp(tmp_path / "spool")[0].tell(replace(GASP, lines=("other",), at="2026-11-21T13:00:00Z"),
                                             _mail(gateway)) == "duplicate"
    assert _gasp(tmp_path / "spool")[0].tell(replace(GASP, phase="verify"), _mail(gateway)) == "sent"
    assert len(box.mails) == 2


def test_without_local_it_is_remembered_for_this_boot(serve: Callable[..., tuple[Mailbox, Gateway]]) -> None:
    _, gateway = serve()
    lastgasp, _ = _gasp()
    assert [lastgasp.tell(GASP, _mail(gateway)) for _ in range(2)] == ["sent", "duplicate"]


def test_gateways_are_asked_in_turn(serve: Callable[..., tuple[Mailbox, Gateway]], nobody: Gateway) -> None:
    refusing, first = serve("554 not here")
    box, second = serve()
    lastgasp, said = _gasp()
    assert lastgasp.tell(GASP, _mail(nobody, first, second)) == "sent"
    assert not refusing.mails and len(box.mails) == 1
    assert any("554" in line for line in said) and any(str(nobody.port) in line for line in said)


def test_a_tarpit_costs_its_share_and_no_more(serve: Callable[..., tuple[Mailbox, Gateway]], tarpit: Gateway) -> None:
    box, gateway = serve()
    lastgasp, said = _gasp(gateway=0.5)
    began = time.monotonic()
    assert lastgasp.tell(GASP, _mail(tarpit, gateway)) == "sent"
    assert time.monotonic() - began < 5
    assert len(box.mails) == 1
    assert any("within" in line for line in said)


def test_tarpits_all_the_way_down(tarpit: Gateway, tmp_path: Path) -> None:
    lastgasp, _ = _gasp(tmp_path / "spool", gateway=0.4, total=1.0)
    began = time.monotonic()
    assert lastgasp.tell(GASP, _mail(*[tarpit] * 50)) == "spooled"
    assert time.monotonic() - began < 5


def test_nobody_takes_it_and_the_agent_sends_it_later(
        serve: Callable[..., tuple[Mailbox, Gateway]], nobody: Gateway, tmp_path: Path) -> None:
    spool = tmp_path / "recover/spool"
    lastgasp, _ = _gasp(spool)
    assert lastgasp.tell(GASP, _mail(nobody)) == "spooled"
    assert lastgasp.tell(GASP, _mail(nobody)) == "spooled", "it is tried again, and still kept once"
    assert len(spooled(spool)) == 1
    assert deliver_spool(spool, say=lambda _: None) == 0
    box, gateway = serve()
    kept = json.loads(spooled(spool)[0].read_bytes())
    kept["gateways"] = [{"host": gateway.host, "port": gateway.port}]  # the gateway is back, at its address
    spooled(spool)[0].write_text(json.dumps(kept))
    assert deliver_spool(spool, say=lambda _: None) == 1
    assert box.message()["Subject"] == "reroot: alpha stopped in restore (network)"
    assert spooled(spool) == []
    assert lastgasp.tell(GASP, _mail(gateway)) == "duplicate"


def test_a_damaged_spool_is_said_and_left(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"spec": 1, "from": 7}')
    said: list[str] = []
    assert deliver_spool(tmp_path, say=said.append) == 0
    assert "not a spooled mail" in said[0]


def test_a_spool_that_cannot_be_written_does_not_hide_the_failure(nobody: Gateway, tmp_path: Path) -> None:
    (tmp_path / "recover").write_text("a file where a folder should be")
    lastgasp, said = _gasp(tmp_path / "recover/spool")
    assert lastgasp.tell(GASP, _mail(nobody)) == "untold"
    assert any("cannot be written" in line for line in said)


def test_no_mail_section(tmp_path: Path) -> None:
    assert _gasp(tmp_path / "spool")[0].tell(GASP, None) == "untold"


def test_a_dripping_gateway_after_the_greeting(tmp_path: Path) -> None:
    """It greets at once, and then takes for ever to answer the rest."""
    listener = socket.create_server(("127.0.0.1", 0))

    def half() -> None:
        peer, _ = listener.accept()
        peer.sendall(b"220 hello\r\n")
        while peer.recv(1024):
            pass

    threading.Thread(target=half, daemon=True).start()
    gateway = Gateway("127.0.0.1", listener.getsockname()[1])
    began = time.monotonic()
    assert deliver(b"x", _mail(gateway), say=lambda _: None, gateway_wait_s=0.3, total_wait_s=0.5) is None
    assert time.monotonic() - began < 3
    listener.close()


def test_a_gateway_that_hangs_up_amid_the_mail(serve: Callable[..., tuple[Mailbox, Gateway]]) -> None:
    """It said 354 and took half: that mail is not taken, and the next gateway gets a whole one."""
    listener = socket.create_server(("127.0.0.1", 0))

    def half() -> None:
        peer, _ = listener.accept()
        with peer, peer.makefile("rb") as lines:
            peer.sendall(b"220 hello\r\n")
            for line in lines:
                data = line.startswith(b"DATA")
                peer.sendall(b"354 go on\r\n" if data else b"250 fine\r\n")
                if data:
                    lines.readline()
                    return

    threading.Thread(target=half, daemon=True).start()
    box, second = serve()
    lastgasp, said = _gasp()
    assert lastgasp.tell(GASP, _mail(Gateway("127.0.0.1", listener.getsockname()[1]), second)) == "sent"
    listener.close()
    assert len(box.mails) == 1 and GASP.sentence in box.message().get_content()
    assert any("did not take the mail" in line for line in said)


@pytest.mark.root
def test_without_any_network_it_is_spooled_at_once(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from recovery.lastgasp import Gasp, LastGasp
from recovery.order import Gateway, Mail
gateways = (Gateway("10.9.8.7", 25), Gateway("mail.site.example", 25))
mail = Mail("reroot@site.example", ("night@site.example",), gateways)
gasp = Gasp("alpha", None, "network", "network", "no cable; look", "2026-11-21T12:00:00Z")
print(LastGasp(say=print, spool=Path({str(tmp_path / "spool")!r})).tell(gasp, mail))
"""
    began = time.monotonic()
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", script], check=True, timeout=90, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert done.stdout.split()[-1] == "spooled" and time.monotonic() - began < 60
    assert "10.9.8.7:25 did not take the mail" in done.stdout
    assert len(spooled(tmp_path / "spool")) == 1


# -- encryption ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail")])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .sign(key, hashes.SHA256()))
    folder = tmp_path_factory.mktemp("tls")
    (folder / "pem").write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem")
    return context


def test_starttls_is_used_where_it_is_offered(
        serve: Callable[..., tuple[Mailbox, Gateway]], certificate: ssl.SSLContext) -> None:
    box, gateway = serve(tls_context=certificate, require_starttls=True)
    assert _gasp()[0].tell(GASP, _mail(gateway)) == "sent"
    assert box.encrypted == [True]


def test_a_long_mail_is_encrypted_whole(
        serve: Callable[..., tuple[Mailbox, Gateway]], certificate: ssl.SSLContext) -> None:
    box, gateway = serve(tls_context=certificate, require_starttls=True)
    lines = tuple(f"{number} " + "x" * 500 for number in range(400))
    assert _gasp()[0].tell(replace(GASP, lines=lines), _mail(gateway)) == "sent"
    assert all(line in box.message().get_content() for line in lines)


def test_plain_where_encryption_is_broken(serve: Callable[..., tuple[Mailbox, Gateway]]) -> None:
    # a context without a certificate: offered, and the handshake fails
    box, gateway = serve(tls_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert _gasp()[0].tell(GASP, _mail(gateway)) == "sent"
    assert box.encrypted == [False]


# -- injection -----------------------------------------------------------------------------------------------

HOSTILE = st.text(alphabet=st.sampled_from("\r\n\0\t .:aB<>@é\u2028\ud800"), max_size=40)


@settings(max_examples=200)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_no_text_adds_a_header_or_a_recipient(host: str, phase: str, kind: str, sentence: str, line: str) -> None:
    raw = compose(Gasp(host, "o" + host, phase, kind, sentence, GASP.at, (line,), (line,)), _mail(Gateway("g", 25)))
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert sorted(message.keys()) == sorted([
        "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Type",
        "Content-Transfer-Encoding", "MIME-Version"])
    assert message["To"] == "admin@site.example, night@site.example"
    assert b"\r" not in raw.replace(b"\r\n", b"") and b"\n" not in raw.replace(b"\r\n", b"")


def test_a_line_that_is_a_dot_does_not_end_the_mail(serve: Callable[..., tuple[Mailbox, Gateway]]) -> None:
    box, gateway = serve()
    hostile = replace(GASP, sentence="x\r\n.\r\nMAIL FROM:<evil@example>", lines=(".", "\r\n.\r\nQUIT"))
    assert _gasp()[0].tell(hostile, _mail(gateway)) == "sent"
    assert len(box.mails) == 1
    assert "MAIL FROM:<evil@example>" in box.message().get_content()
