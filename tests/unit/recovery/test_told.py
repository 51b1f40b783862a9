"""Who is told, and when nobody is told: failures of a host of loop devices, and mail gateways on loopback."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from mailboxes import Mailbox
from one_host import Host, PowerCutError, cut, drive, free_port, reissue

from plumbing.errors import DiskError, NetworkError
from recovery import disks
from recovery.journal import Journal
from recovery.lastgasp import spooled
from recovery.machine import State
from recovery.order import Gateway, Mail
from recovery.session import Session

pytestmark = pytest.mark.root


def _with_gateway(made: Host) -> Gateway:
    gateway = Gateway("127.0.0.1", free_port())
    reissue(made, mail=Mail("reroot@site.example", ("night@site.example",), (gateway,)))
    return gateway


def test_after_a_cut_without_a_control_server_the_gateways_of_the_verified_order_are_asked(alpha: Host) -> None:
    """The order cannot be verified anew then: the journal knows where it said that mails go."""
    gateway = _with_gateway(alpha)
    with pytest.raises(PowerCutError):
        drive(alpha, {State.RESTORE: cut})

    def gone(_: Session) -> Mapping[str, object]:
        raise NetworkError("no control server answers; look at it")

    box = Mailbox()
    controller = Controller(box, hostname=gateway.host, port=gateway.port)
    controller.start()
    try:
        made, menus = drive(alpha, {State.ORDER: gone}, default_attempts=2)
    finally:
        controller.stop()
    assert made.order is None and len(menus) == 1
    (mail,) = box.mails
    assert mail.rcpt_tos == ["night@site.example"]
    assert isinstance(mail.content, bytes)
    assert b"no control server answers" in mail.content and str(made.order_id).encode() in mail.content


def test_nobody_takes_the_mail_and_it_waits_on_local(alpha: Host) -> None:
    """Fault 25: spooled before the menu is shown, and told once however often the machine tries again."""
    _with_gateway(alpha)
    with pytest.raises(PowerCutError):
        drive(alpha, {State.RESTORE: cut})

    def fails(_: Session) -> Mapping[str, object]:
        raise OSError(5, "Input/output error", "/dev/vda3")

    for _ in range(2):
        drive(alpha, {State.VERIFY: fails})
    with alpha.mounted("local") as local:
        (kept,) = spooled(local / "recover/spool")
        message = base64.b64decode(json.loads(kept.read_bytes())["message"])
    assert b"EIO on /dev/vda3" in message and b"phase:  verify" in message and b"kind:   disk" in message


def test_a_failed_sync_is_no_success_and_is_not_repeated(alpha: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 5: after it the kernel may have dropped what was written; a second sync that says yes would be a lie."""
    synced: list[Path] = []
    real = disks.sync_filesystem

    def sync(path: Path) -> None:
        synced.append(path)
        if path == alpha.places.root:
            raise DiskError(f"writing to the filesystem of {path} failed: Input/output error; look at the disk")
        real(path)

    monkeypatch.setattr(disks, "sync_filesystem", sync)
    reissue(alpha, attempts=1)
    _, menus = drive(alpha)
    assert "Input/output error" in menus[0] and alpha.boots() == "recovery"
    assert synced.count(alpha.places.root) == 1
    with alpha.mounted("local") as local:
        state = Journal(local / "recover/journal").state
    assert state.wiped and "restore" not in state.done and not state.finished
    print(f"syncfs of the new root failed once: {menus[0]}; boots {alpha.boots()}; done {sorted(state.done)}")
    monkeypatch.undo()
    drive(alpha)
    with alpha.mounted("root") as root:
        assert (root / "usr/bin/tool").read_text() == "new\n"
    assert alpha.boots() == "system"
