"""Installing over a disk: replayed orders, what an unfinished upgrade left precious, and what the new root says."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from one_host import GUIDS, Host, PowerCutError, cut, drive, installing, reissue

from plumbing.errors import RefusedError
from plumbing.run import run
from recovery import layout
from recovery.journal import PHASES, Journal
from recovery.log import Log
from recovery.machine import State
from recovery.phases import blank, settle
from recovery.session import Session

pytestmark = pytest.mark.root


def _journal(made: Host) -> bytes:
    with made.mounted("local") as local:
        return (local / "recover/journal").read_bytes()


def test_an_install(alpha: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    makes = installing(alpha, monkeypatch)
    _, menus = drive(alpha)
    assert menus == []
    assert makes == ["boot", "root", "local"]
    with alpha.mounted("root") as root, alpha.mounted("local") as local:
        assert (root / "usr/bin/tool").read_text() == "new\n"
        assert (root / "etc/hostname").read_text() == "alpha\n"
        assert (local / "recover/agent/agent.json").exists()
    assert alpha.boots() == "system"


def test_a_release_that_the_layout_s_root_does_not_take_is_refused_before_the_layout(
        alpha: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    makes = installing(alpha, monkeypatch)
    (tmp_path / "new/more").write_bytes(bytes(45 << 20))
    alpha.order = reissue(alpha, release=alpha.site.release(tmp_path / "new", "14"))
    _, menus = drive(alpha)
    assert len(menus) == 1 and "takes 48 MiB" in menus[0] and makes == []


# -- what an unfinished upgrade left ---------------------------------------------------------------------------


def _broken_upgrade(made: Host) -> bytes:
    """Cut an upgrade behind the border; returns the precious host key that is on /local alone from then on."""
    with made.mounted("root") as root:
        key = (root / "etc/ssh/ssh_host_ed25519_key").read_bytes()
    with pytest.raises(PowerCutError):
        drive(made, {State.RESTORE: cut})
    return key


def _has_precious(made: Host, key: bytes) -> None:
    with made.mounted("root") as root:
        assert (root / "etc/ssh/ssh_host_ed25519_key").read_bytes() == key
    assert not (made.places.scratch / "salvaged").exists()
    assert made.boots() == "system"


def test_precious_files_of_an_unfinished_upgrade_come_back_and_the_fstab_names_the_new_partitions(
        alpha: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with alpha.mounted("root") as root:
        (root / "etc/fstab").write_text("UUID=old / ext4 noatime 0 1\ntmpfs /tmp tmpfs size=9m 0 0\n")
    key = _broken_upgrade(alpha)
    installing(alpha, monkeypatch)
    session, menus = drive(alpha)
    assert menus == []
    _has_precious(alpha, key)
    with alpha.mounted("root") as root:
        assert (root / "etc/fstab").read_text().splitlines() == [
            f"PARTUUID={GUIDS['root']} / ext4 errors=remount-ro 0 1", "tmpfs /tmp tmpfs size=9m 0 0",
            f"PARTUUID={GUIDS['local']} /local ext4 defaults 0 2",
            f"PARTUUID={GUIDS['boot']} /boot/efi vfat umask=0077 0 2"]
        assert "UUID=old / ext4" in (root / "etc/fstab.before-reroot").read_text()
    assert any("fstab.before-reroot" in line for line in session.log.last(200))


@pytest.mark.parametrize("dies", ["after apply", "in apply", "while copying"])
def test_a_process_that_dies_while_the_only_copy_is_in_memory_loses_nothing(
        alpha: Host, monkeypatch: pytest.MonkeyPatch, dies: str) -> None:
    """Process 1 starts another one; what is in memory outlives it."""
    key = _broken_upgrade(alpha)
    makes = installing(alpha, monkeypatch)
    real_apply, real_keep, real_copy = layout.apply, blank._keep_salvaged, blank._copy

    def half_applied(wanted: layout.LayoutPlan, **_: object) -> object:
        real_apply(wanted)
        run(["mkfs.ext4", "-q", "-F", alpha.devices["local"]])  # not this order's yet: is_finished says no
        raise PowerCutError

    def half_copied(session: Session, folder: Path, into: Path) -> None:
        real_copy(session, folder, into)
        (into / "precious.tar.zst").write_bytes(b"half")
        raise PowerCutError

    where = {"after apply": ("_keep_salvaged", _cut_anything), "while copying": ("_copy", half_copied)}
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        if dies == "in apply":
            patch.setattr(layout, "apply", half_applied)
        else:
            patch.setattr(blank, *where[dies])
        drive(alpha)
    assert (makes == []) is (dies == "while copying")
    assert blank._keep_salvaged is real_keep
    _, menus = drive(alpha)
    assert menus == []
    _has_precious(alpha, key)


def _cut_anything(*_: object) -> None:
    raise PowerCutError


def test_copying_is_a_sign_of_life(alpha: Host, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/large").write_bytes(bytes(5 << 20))
    beats: list[int] = []
    session = alpha.session(log=Log([io.StringIO()], alive=lambda: beats.append(1)))
    blank._copy(session, tmp_path / "from", tmp_path / "to")
    assert len(beats) >= 5
    assert (tmp_path / "to/large").stat().st_size == 5 << 20


def test_nothing_is_finished_while_a_copy_is_in_memory_alone(alpha: Host) -> None:
    session = alpha.session()
    blank.refuse_unwritten(session)
    (session.places.scratch / "salvaged").mkdir()
    with pytest.raises(RefusedError, match="do not reboot"):
        settle.finish(session)


def test_precious_files_that_do_not_fit_are_refused_before_the_layout(
        alpha: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with alpha.mounted("root") as root:
        (root / "etc/hostname").write_bytes(os.urandom(16 << 20))
    _broken_upgrade(alpha)
    makes = installing(alpha, monkeypatch)
    (tmp_path / "new/more").write_bytes(bytes(20 << 20))
    alpha.order = reissue(alpha, release=alpha.site.release(tmp_path / "new", "14"))
    _, menus = drive(alpha)
    assert len(menus) == 1 and "with the precious files takes" in menus[0] and makes == []


# -- a host carries out one id once --------------------------------------------------------------------------


def test_a_replayed_install_order_is_refused_and_leaves_no_trace(alpha: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever recorded the order plays it again, from a boot server of his own, after the host was upgraded."""
    makes = installing(alpha, monkeypatch)
    drive(alpha)
    with alpha.mounted("local") as local:
        journal = Journal(local / "recover/journal")
        journal.order("later", "upgrade", "sha256:2")
        for phase in PHASES[3:]:
            journal.begin(phase)
            journal.done(phase)
    with alpha.mounted("root") as root:
        (root / "since").write_text("the host has lived")
    before, makes[:] = _journal(alpha), []
    session, menus = drive(alpha)
    assert len(menus) == 1 and "was carried out before" in menus[0]
    assert makes == [] and _journal(alpha) == before
    with alpha.mounted("root") as root:
        assert (root / "since").exists()
    assert session.journal is not None and session.journal.finished(alpha.order.id)


def test_an_order_that_another_local_on_the_disk_says_is_done_is_refused(
        alpha: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout is not this order's any more and its /local is not taken up; its journal knows it all the same."""
    makes = installing(alpha, monkeypatch)
    drive(alpha)
    run(["e2fsck", "-fp", alpha.devices["local"]], check=False)  # tune2fs wants it checked since it was mounted last
    run(["tune2fs", "-U", "random", alpha.devices["local"]])
    makes.clear()
    _, menus = drive(alpha)
    assert len(menus) == 1 and "was carried out before" in menus[0] and makes == []


# -- who this host is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [None, "boot"])
def test_a_command_line_that_hides_local_does_not_spare_the_comparison(alpha: Host, word: str | None) -> None:
    """An order for another host with this machine's MAC address, and a boot server that leaves /local out."""
    reissue(alpha, host="beta")
    alpha.local_word = None if word is None else GUIDS[word]
    session, menus = drive(alpha, {State.DISKS: cut})
    assert len(menus) == 1 and "was not started with that host's /local" in menus[0]
    assert any("FAILED (refused)" in line for line in session.log.last(100))
    with alpha.mounted("root") as root, alpha.mounted("local") as local:
        assert (root / "usr/bin/tool").read_text() == "old\n"
        assert not (local / "recover/journal").exists()


def test_an_upgrade_without_an_identity_on_local_is_refused(alpha: Host) -> None:
    with alpha.mounted("local") as local:
        (local / "recover/agent/agent.json").unlink()
    session, menus = drive(alpha)
    assert menus == [] and any("the identity on it" in line for line in session.log.last(100))
    assert alpha.boots() == "system"
    with alpha.mounted("local") as local:
        assert not (local / "recover/journal").exists()
