"""The whole road on a host of loop devices, and what every cut and every failure on it leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from one_host import POLICY, Host, PowerCutError, actions, cut, drive, free_port, host, reissue

from imaging.audit import load_index
from imaging.release import Release
from imaging.sources import StageWriter
from plumbing.errors import NetworkError, RefusedError
from recovery import bootloader, disks
from recovery.drive import Action
from recovery.machine import PHASES, State
from recovery.session import Session

pytestmark = pytest.mark.root


def _is_new(made: Host) -> None:
    with made.mounted("root") as root, made.mounted("local") as local:
        assert (root / "usr/bin/tool").read_text() == "new\n"
        assert (root / "etc/hostname").read_text() == "alpha\n", "precious"
        assert len((root / "etc/ssh/ssh_host_ed25519_key").read_bytes()) == 400
        assert (root / "etc/fstab").read_text().startswith("UUID=whatever")
        release = json.loads((root / "etc/reroot/release.json").read_bytes())
        assert release["release"] == "test/13/amd64" and release["level"] == "debian13-1"
        assert (root / "usr/lib/reroot/bin/python3").read_text() == "python"
        wants = root / "etc/systemd/system/multi-user.target.wants/reroot-agent.service"
        assert str(wants.readlink()) == "/etc/systemd/system/reroot-agent.service"
        assert (local / "file").read_text() == "stays"
    with made.mounted("boot") as area:
        assert "/boot/vmlinuz-6.1.0-1-amd64" in (area / "reroot/grub.cfg").read_text()
    assert made.boots() == "system"


def _is_old(made: Host) -> None:
    with made.mounted("root") as root:
        assert (root / "usr/bin/tool").read_text() == "old\n"
    assert made.boots() == "system"


def test_an_upgrade(alpha: Host) -> None:
    before = disks.identify(alpha.devices["root"])
    session, menus = drive(alpha)
    assert menus == [], session.log.last(50)
    _is_new(alpha)
    after = disks.identify(alpha.devices["root"])
    assert before is not None and after is not None and before.uuid == after.uuid
    assert alpha.site.reports >= 2 * len(PHASES)
    assert session.reporter.waiting() == ()


def test_an_upgrade_of_an_xfs_root(tmp_path: Path) -> None:
    with host(tmp_path, "xfs") as made:
        before = disks.identify(made.devices["root"])
        _, menus = drive(made)
        assert menus == []
        _is_new(made)
        assert before is not None and disks.identify(made.devices["root"]) == replace(before, label="root")


def test_reading_the_archive_and_putting_back_say_how_far_they_are(alpha: Host) -> None:
    """Process 1 kills what says nothing for too long."""
    told: set[tuple[str, str]] = set()
    _, menus = drive(alpha, progress=lambda phase: lambda what, done, total: told.add((phase, what)))
    assert menus == []
    assert told >= {("preserve", "look"), ("preserve", "read back"), ("putback", "read back"), ("putback", "restore"),
                    ("putback", "check")}


@pytest.mark.parametrize("phase", [state for state in PHASES if state not in (State.NETWORK, State.ORDER)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_power_cut_resumes(alpha: Host, phase: State, when: str) -> None:
    """The cut comes before the phase did anything, or after all of it but before anyone was told."""
    real = actions()[phase]

    def cut_here(session: Session) -> Mapping[str, object]:
        if when == "after":
            real(session)
        return cut(session)

    with pytest.raises(PowerCutError):
        drive(alpha, {phase: cut_here})
    if PHASES.index(phase) <= PHASES.index(State.DISKS) or (phase, when) == (State.PRESERVE, "before"):
        _is_old(alpha)
    elif phase is not State.FINISH and (phase, when) not in ((State.PRESERVE, "after"), (State.WIPE, "before")):
        assert alpha.boots() == "recovery", "a half-restored root must never start"
    if (phase, when) == (State.FINISH, "after"):
        _is_new(alpha)  # and that is what starts
        return
    ran: list[State] = []
    watched = {state: _noted(ran, state, action) for state, action in actions().items()}
    _, menus = drive(alpha, watched)
    assert menus == []
    _is_new(alpha)
    if when == "after" and phase in (State.WIPE, State.RESTORE, State.VERIFY):
        assert phase not in ran, "what the journal says is done is not done again"


def _noted(ran: list[State], state: State, action: Action) -> Action:
    def act(session: Session) -> Mapping[str, object]:
        ran.append(state)
        return action(session)

    return act


@pytest.mark.parametrize("default", ["recovery", "system"])
def test_after_finish_nothing_is_done_twice(alpha: Host, default: Literal["recovery", "system"]) -> None:
    """A cut before the boot default was set is made good; GRUB's fallback from a system that does not load is told."""
    drive(alpha)
    with alpha.mounted("root") as root, alpha.mounted("boot") as area:
        (root / "since").write_text("the new system has lived")
        bootloader.set_default(area, default)
    ran: list[State] = []
    watched = {state: _noted(ran, state, action) for state, action in actions().items()}
    _, menus = drive(alpha, watched)
    if default == "recovery":
        assert menus == [] and ran == [State.NETWORK, State.ORDER, State.DISKS, State.FINISH]
    else:
        assert "could not be started" in menus[0] and ran == [State.NETWORK, State.ORDER]
    with alpha.mounted("root") as root:
        assert (root / "since").exists()
    _is_new(alpha)


def test_a_new_order_after_a_finished_one(alpha: Host, tmp_path: Path) -> None:
    drive(alpha)
    (tmp_path / "new/usr/bin/tool").write_text("newer\n")
    reissue(alpha, release=alpha.site.release(tmp_path / "new", "14"))
    _, menus = drive(alpha)
    assert menus == []
    with alpha.mounted("root") as root:
        assert (root / "usr/bin/tool").read_text() == "newer\n"


# -- refusals: nothing is touched ----------------------------------------------------------------------------


def _refused(made: Host, word: str, **settings: object) -> None:
    session, menus = drive(made, None, **settings)
    assert menus == []
    assert any("FAILED" in line and word in line for line in session.log.last(100)), session.log.last(20)
    _is_old(made)


def test_an_order_for_another_machine(alpha: Host) -> None:
    reissue(alpha, machine=replace(alpha.order.machine, macs=("52:54:00:00:00:01",)))
    with alpha.mounted("local") as local:
        (local / "recover/order.json").write_bytes(alpha.site.order or b"")
    _refused(alpha, "52:54:00:00:00:01")


def test_an_expired_order(alpha: Host) -> None:
    reissue(alpha, issued="2026-01-01T00:00:00Z", expires="2026-01-02T00:00:00Z")
    with alpha.mounted("local") as local:
        (local / "recover/order.json").write_bytes(alpha.site.order or b"")
    _refused(alpha, "expired")


def test_a_cancelled_order(alpha: Host) -> None:
    alpha.site.order = None
    _refused(alpha, "no current order")


def test_an_order_signed_by_another_key(alpha: Host) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from recovery import signed_order

    alpha.site.order = signed_order.sign(alpha.order, Ed25519PrivateKey.generate())
    with alpha.mounted("local") as local:
        (local / "recover/order.json").write_bytes(alpha.site.order)
    _refused(alpha, "not signed by")


def test_a_bad_fresh_order_and_a_good_one_on_local(alpha: Host) -> None:
    alpha.site.order = b"{}"
    _, menus = drive(alpha)
    assert menus == []
    _is_new(alpha)


def test_the_wrong_disk(alpha: Host) -> None:
    assert alpha.order.disks is not None
    root = replace(alpha.order.disks.root, disk_serial="ANOTHER")
    reissue(alpha, disks=replace(alpha.order.disks, root=root))
    _refused(alpha, "ANOTHER")


def test_another_release_than_the_order_names(alpha: Host) -> None:
    assert alpha.order.release is not None
    reissue(alpha, release=replace(alpha.order.release, digest="sha256:" + "1" * 64))
    _refused(alpha, "is not what order")


def test_too_little_memory(alpha: Host, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 65536 kB\nMemAvailable: 20000 kB\n")
    _refused(alpha, "memory", places=replace(alpha.places, meminfo=tmp_path / "meminfo"))


def test_a_release_larger_than_the_disk(alpha: Host, tmp_path: Path) -> None:
    tree = tmp_path / "large"
    tree.mkdir()
    (tree / "large").write_bytes(bytes(48 << 20))
    (tree / "vmlinuz").touch()
    reissue(alpha, release=alpha.site.release(tree, "14"))
    _refused(alpha, "MiB")


def test_a_sparse_file_takes_what_it_takes(alpha: Host, tmp_path: Path) -> None:
    with (tmp_path / "new/sparse").open("wb") as stream:
        stream.truncate(200 << 20)
    reissue(alpha, release=alpha.site.release(tmp_path / "new", "14"))
    _, menus = drive(alpha)
    assert menus == []
    with alpha.mounted("root") as root:
        assert (root / "sparse").stat().st_size == 200 << 20


def test_a_release_of_many_small_files_that_take_more_blocks_than_bytes(alpha: Host, tmp_path: Path) -> None:
    tree = tmp_path / "small"
    tree.mkdir()
    (tree / "vmlinuz").touch()
    for number in range(10000):
        (tree / f"{number}").write_bytes(b"x")
    reissue(alpha, release=alpha.site.release(tree, "14"))
    _refused(alpha, "inodes")


def test_a_release_of_more_inodes_than_mkfs_makes_by_itself(alpha: Host, tmp_path: Path) -> None:
    for number in range(13500):
        (tmp_path / f"new/usr/share/data/f{number}").touch()
    reissue(alpha, release=alpha.site.release(tmp_path / "new", "14"))
    _, menus = drive(alpha)
    assert menus == []
    with alpha.mounted("root") as root:
        assert (root / "usr/share/data/f13499").exists()


def test_a_release_without_a_kernel(alpha: Host, tmp_path: Path) -> None:
    (tmp_path / "new/boot/vmlinuz-6.1.0-1-amd64").unlink()
    reissue(alpha, release=alpha.site.release(tmp_path / "new", "14"))
    _refused(alpha, "has no kernel")


def test_a_separate_boot(alpha: Host) -> None:
    with alpha.mounted("root") as root:
        (root / "etc/fstab").write_text("UUID=a / ext4 defaults 0 1\nUUID=b /boot ext4 defaults 0 2\n")
    _refused(alpha, "separate /boot")


def _stage(made: Host, rotten: frozenset[int] = frozenset()) -> None:
    """Stage the whole release, some frames of it with a flipped bit."""
    store = made.site.store
    release = Release.parse(store.manifest("test/13/amd64"))
    index, blob = load_index(store, release), store.blob_path(release.layer_digest).read_bytes()
    with made.mounted("local") as local, StageWriter(local / "recover/stage", release.layer_digest) as stage:
        stage.put(release.index_offset, blob[release.index_offset:release.index_offset + release.index_length])
        for number, frame in enumerate(index.frames):
            data = bytearray(blob[frame.offset:frame.offset + frame.length])
            data[10] ^= number in rotten
            stage.put(frame.offset, bytes(data), number)


def test_a_whole_stage_needs_no_content_server(alpha: Host) -> None:
    _stage(alpha)
    alpha.site.break_blob = lambda offset, data: None
    _, menus = drive(alpha)
    assert menus == []
    _is_new(alpha)


def test_staged_frames_that_rotted_and_no_server_that_has_them(alpha: Host) -> None:
    _stage(alpha, frozenset({0, 1}))
    alpha.site.break_blob = lambda offset, data: None
    _refused(alpha, "no content server")


def test_staged_frames_that_rotted_are_fetched_and_the_others_are_not(alpha: Host) -> None:
    _stage(alpha, frozenset({0, 1, 2}))
    session, menus = drive(alpha)
    assert menus == []
    assert any("3 of" in line and "do not read back" in line for line in session.log.last(200))
    assert alpha.site.blobs_read == 1 + 1, "neighbours in one range, and one frame to see that a server has it"
    _is_new(alpha)


def test_a_server_that_answers_with_other_bytes_does_not_count(alpha: Host) -> None:
    alpha.site.break_blob = lambda offset, data: bytes(len(data)) if len(data) > 1 and offset < 1000 else data
    _stage(alpha, frozenset({0}))
    _refused(alpha, "no content server")


def test_content_servers_that_lack_the_release(alpha: Host) -> None:
    alpha.site.break_blob = lambda offset, data: None
    _refused(alpha, "no content server")


def test_a_boot_area_without_recovery(alpha: Host) -> None:
    with alpha.mounted("boot") as area:
        (area / "reroot/initrd.img").unlink()
    _refused(alpha, "lacks initrd.img")


def test_no_room_for_what_is_precious(alpha: Host) -> None:
    with alpha.mounted("local") as local, (local / "filler").open("wb") as stream:
        while True:
            try:
                stream.write(bytes(1 << 20))
                stream.flush()
            except OSError:
                break
    session, _ = drive(alpha)
    assert any("preserve" in line or "ENOSPC" in line for line in session.log.last(20))
    _is_old(alpha)


def test_a_pattern_that_a_link_makes_keep_nothing(alpha: Host) -> None:
    with alpha.mounted("root") as root:
        (root / "data/app").mkdir(parents=True)
        (root / "data/app/db").write_text("precious")
        (root / "srv/app").symlink_to("../data/app")
    rule = {"keep": ["/srv/app/**"], "exclude": [], "when": "host", "origin": "site"}
    reissue(alpha, precious={**POLICY, "rules": [rule]})
    _refused(alpha, "name the real path /data/app")


# -- after the border ----------------------------------------------------------------------------------------


def test_a_failure_after_the_wipe_is_told_and_never_boots_the_half(alpha: Host) -> None:
    reissue(alpha, mail=None)

    def fail(session: Session) -> Mapping[str, object]:
        raise NetworkError("no source has the next frame; check the content servers")

    session, menus = drive(alpha, {State.RESTORE: fail})
    assert len(menus) == 1 and "no source has the next frame" in menus[0]
    assert alpha.boots() == "recovery"
    assert session.journal is not None and session.journal.state.failures == 3
    _, menus = drive(alpha)
    assert menus == []
    _is_new(alpha)


def test_a_repair_on_the_server_heals_with_a_new_release(alpha: Host, tmp_path: Path) -> None:
    """The first release cannot be restored; the next order, fetched by itself, names another one."""
    attempts: list[int] = []
    real = actions()[State.RESTORE]

    def fail_once(session: Session) -> object:
        attempts.append(1)
        if len(attempts) == 1:
            tree = tmp_path / "repaired"
            tree.mkdir()
            os.system(f"cp -a {tmp_path}/new/. {tree}")
            (tree / "repaired").write_text("yes")
            reissue(alpha, release=alpha.site.release(tree, "13.1"))
            raise RefusedError("this release is broken; issue another")
        return real(session)

    _, menus = drive(alpha, {State.RESTORE: fail_once})  # type: ignore[dict-item]
    assert menus == []
    with alpha.mounted("root") as root:
        assert (root / "repaired").exists()
        assert (root / "etc/hostname").read_text() == "alpha\n", "the precious archive of the first order was used"
    assert alpha.boots() == "system"


def test_a_difference_found_by_verify_makes_the_root_anew(alpha: Host) -> None:
    real = actions()[State.VERIFY]
    spoilt: list[int] = []

    def spoil_once(session: Session) -> object:
        if not spoilt:
            spoilt.append(1)
            (session.places.root / "usr/bin/tool").write_text("rot\n")
        return real(session)

    session, menus = drive(alpha, {State.VERIFY: spoil_once})  # type: ignore[dict-item]
    assert menus == []
    assert any("usr/bin/tool" in line for line in session.log.last(200))
    _is_new(alpha)


def test_the_last_gasp_is_spooled_when_nobody_takes_it(alpha: Host) -> None:
    from recovery.order import Gateway, Mail

    reissue(alpha, mail=Mail("a@b.example", ("c@d.example",), (Gateway("127.0.0.1", free_port()),)), attempts=1)

    def fail(session: Session) -> Mapping[str, object]:
        raise OSError(5, "Input/output error", "/dev/vda2")

    drive(alpha, {State.RESTORE: fail})
    with alpha.mounted("local") as local:
        (spooled,) = (local / "recover/spool").glob("*.json")
        assert b"message" in spooled.read_bytes()


def test_without_a_control_server_nothing_is_wiped(alpha: Host) -> None:
    session = alpha.session()
    with alpha.mounted("local") as local:
        words = json.loads((local / "recover/agent/agent.json").read_bytes())
        words["control_url"] = f"http://127.0.0.1:{free_port()}"
        (local / "recover/agent/agent.json").write_text(json.dumps(words))
    del session
    _, menus = drive(alpha)
    assert menus == []
    _is_old(alpha)


def test_a_corrupt_journal_goes_back_while_the_boot_area_says_so(alpha: Host) -> None:
    with alpha.mounted("local") as local:
        (local / "recover/journal").write_bytes(b"garbage\nmore garbage\n")
    session, menus = drive(alpha)
    assert menus == [] and any("journal" in line for line in session.log.last(50))
    _is_old(alpha)


def test_a_corrupt_journal_after_the_wipe_waits_for_a_person(alpha: Host) -> None:
    with pytest.raises(PowerCutError):
        drive(alpha, {State.RESTORE: cut})
    with alpha.mounted("local") as local:
        journal = local / "recover/journal"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join([lines[0][:20] + b"x" + lines[0][21:], *lines[1:]]))
    _, menus = drive(alpha)
    assert len(menus) == 1
    assert alpha.boots() == "recovery"


def test_links_in_the_new_root_lead_nowhere_outside(alpha: Host, tmp_path: Path) -> None:
    from recovery.phases import settle

    root, outside = tmp_path / "r", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "etc").symlink_to(outside)
    with pytest.raises(RefusedError, match="leads out"):
        settle.write_inside(root, "etc/hostname", b"x")
    assert list(outside.iterdir()) == []
