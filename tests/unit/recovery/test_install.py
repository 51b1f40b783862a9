"""Installing over a disk: replayed orders, what an unfinished upgrade left precious, and what the new root says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from one_host import GUIDS, Host, actions, host, installing, reissue

from recovery.drive import Drive
from recovery.journal import PHASES, Journal
from recovery.machine import Event, State
from recovery.session import Session

pytestmark = pytest.mark.root


@pytest.fixture
def alpha(tmp_path: Path) -> Iterator[Host]:
    with host(tmp_path) as made:
        yield made


class PowerCutError(BaseException):
    """Not an Exception: nothing in recovery may catch it."""


def _cut(_: Session) -> Mapping[str, object]:
    raise PowerCutError


def _drive(made: Host, changed: object = None, **settings: object) -> tuple[Session, list[str]]:
    session, menus = made.session(**settings), list[str]()

    def menu(why: str, _: float | None) -> Event:
        menus.append(why)
        return Event.DONE

    drive = Drive(session, {**actions(), **(changed or {})}, menu=menu, jitter=lambda: 0.0, pause=lambda _: None)  # type: ignore[dict-item]
    try:
        drive.run()
    finally:
        session.close()
        print("\n".join(session.log.last(200)))  # shown when a test fails
    return session, menus


def _journal(made: Host) -> bytes:
    with made.mounted("local") as local:
        return (local / "recover/journal").read_bytes()


def test_an_install(alpha: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    makes = installing(alpha, monkeypatch)
    _, menus = _drive(alpha)
    assert menus == []
    assert makes == ["boot", "root", "local"]
    with alpha.mounted("root") as root, alpha.mounted("local") as local:
        assert (root / "usr/bin/tool").read_text() == "new\n"
        assert (root / "etc/hostname").read_text() == "alpha\n"
        assert (local / "recover/agent/agent.json").exists()
    assert alpha.boots() == "system"


# -- a host carries out one id once --------------------------------------------------------------------------


def test_a_replayed_install_order_is_refused_and_leaves_no_trace(alpha: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever recorded the order plays it again, from a boot server of his own, after the host was upgraded."""
    makes = installing(alpha, monkeypatch)
    _drive(alpha)
    with alpha.mounted("local") as local:
        journal = Journal(local / "recover/journal")
        journal.order("later", "upgrade", "sha256:2")
        for phase in PHASES[3:]:
            journal.begin(phase)
            journal.done(phase)
    with alpha.mounted("root") as root:
        (root / "since").write_text("the host has lived")
    before, makes[:] = _journal(alpha), []
    session, menus = _drive(alpha)
    assert len(menus) == 1 and "was carried out before" in menus[0]
    assert makes == [] and _journal(alpha) == before
    with alpha.mounted("root") as root:
        assert (root / "since").exists()
    assert session.journal is not None and session.journal.finished(alpha.order.id)


# -- who this host is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [None, "boot"])
def test_a_command_line_that_hides_local_does_not_spare_the_comparison(alpha: Host, word: str | None) -> None:
    """An order for another host with this machine's MAC address, and a boot server that leaves /local out."""
    reissue(alpha, host="beta")
    alpha.local_word = None if word is None else GUIDS[word]
    session, menus = _drive(alpha, {State.DISKS: _cut})
    assert len(menus) == 1 and "was not started with that host's /local" in menus[0]
    assert any("FAILED (refused)" in line for line in session.log.last(100))
    with alpha.mounted("root") as root, alpha.mounted("local") as local:
        assert (root / "usr/bin/tool").read_text() == "old\n"
        assert not (local / "recover/journal").exists()


def test_an_upgrade_without_an_identity_on_local_is_refused(alpha: Host) -> None:
    with alpha.mounted("local") as local:
        (local / "recover/agent/agent.json").unlink()
    session, menus = _drive(alpha)
    assert menus == [] and any("the identity on it" in line for line in session.log.last(100))
    assert alpha.boots() == "system"
    with alpha.mounted("local") as local:
        assert not (local / "recover/journal").exists()
