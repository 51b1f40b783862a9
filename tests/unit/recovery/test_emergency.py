"""What the rescue menu's entries do to real filesystems, and what they refuse."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from loopdevice import attached
from one_host import Host, actions, drive, reissue

from imaging.keys import order_keys, signer
from plumbing import clock
from plumbing.errors import DiskError, NotFoundError, RefusedError, RerootError, TrustError
from plumbing.run import run
from recovery import disks, emergency, offload, ownprogram
from recovery.dialogue import Ask, Dialogue, Start
from recovery.drive import Drive
from recovery.machine import Event
from recovery.ownprogram import Program
from recovery.session import Session


def converse(dialogue: Dialogue, *answers: str) -> tuple[list[str], Event | None]:
    """Be the person: give the answers in their order; programs run for real, without a terminal."""
    said, left = list[str](), list(answers)
    try:
        step = next(dialogue)
        while True:
            if isinstance(step, Ask):
                said.append(step.prompt)
                step = dialogue.send(left.pop(0))
            elif isinstance(step, Start):
                step = dialogue.send(str(subprocess.run(step.argv, check=False).returncode))
            else:
                said.append(step)
                step = next(dialogue)
    except StopIteration as end:
        assert not left, f"nobody asked for {left}"
        return said, end.value
    finally:
        dialogue.close()


# -- restoring the last release --------------------------------------------------------------------------------


def _boot(made: Host, *answers: str) -> list[str]:
    """Boot recovery from the boot area; in the menu the last release is asked for, then the machine goes down."""
    session, said = made.session(), list[str]()

    def menu(why: str, _: float | None) -> Event:
        if said:
            return Event.DONE
        said.append(why)
        try:
            told, event = converse(emergency.restore_last(session), *answers)
        except RerootError as error:
            said.append(error.sentence)
            return Event.DONE
        said.extend(told)
        return event or Event.DONE

    try:
        Drive(session, actions(), menu=menu, jitter=lambda: 0.0, pause=lambda _: None).run()
    finally:
        session.close()
        print("\n".join(session.log.last(200)))
    return said


def _tool(made: Host) -> str:
    with made.mounted("root") as root:
        return (root / "usr/bin/tool").read_text()


@pytest.mark.root
def test_the_last_release_once_more(alpha: Host) -> None:
    drive(alpha)
    with alpha.mounted("root") as root:
        (root / "usr/bin/tool").write_text("broken\n")
        (root / "etc/hostname").write_text("alpha-2\n")
    told = "\n".join(_boot(alpha, "no"))
    assert "could not be started" in told and "nothing was done" in told
    assert _tool(alpha) == "broken\n", "without the word nothing is touched"
    told = "\n".join(_boot(alpha, "alpha"))
    assert "releases/test/13/amd64.json" in told and "makes the root of alpha anew" in told
    assert _tool(alpha) == "new\n"
    with alpha.mounted("root") as root:
        assert (root / "etc/hostname").read_text() == "alpha-2\n", "precious files were kept first"
    assert alpha.boots() == "system"


@pytest.mark.root
def test_the_last_release_is_not_restored_by_an_order_that_is_over(
    alpha: Host, monkeypatch: pytest.MonkeyPatch,
) -> None:
    drive(alpha)
    with alpha.mounted("root") as root:
        (root / "usr/bin/tool").write_text("broken\n")
    later = clock.wall() + 7200
    session = alpha.session()
    actions()[next(iter(actions()))](session)
    monkeypatch.setattr(clock, "wall", lambda: later)
    try:
        with pytest.raises(TrustError, match="expired"):
            converse(emergency.restore_last(session))
    finally:
        session.close()
    assert _tool(alpha) == "broken\n"


@pytest.mark.root
def test_another_order_on_local_is_not_the_last_release(alpha: Host) -> None:
    drive(alpha)
    reissue(alpha)
    assert alpha.site.order is not None
    with alpha.mounted("local") as local:
        (local / "recover/order.json").write_bytes(alpha.site.order)
    alpha.site.order = None
    session = alpha.session()
    actions()[next(iter(actions()))](session)
    try:
        with pytest.raises(RefusedError, match="not the upgrade that was carried out last"):
            converse(emergency.restore_last(session))
    finally:
        session.close()


def test_a_machine_started_from_a_stick_knows_no_last_release(tmp_path: Path) -> None:
    from test_rescue import _session

    with pytest.raises(RefusedError, match="not started from its own boot area"):
        converse(emergency.restore_last(_session(tmp_path, tmp_path)))


# -- copying off -----------------------------------------------------------------------------------------------


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Path]:
    """Another disk, with a label that would like to be more than a label."""
    image = tmp_path / "stick.img"
    with image.open("wb") as stream:
        stream.truncate(40 << 20)
    run(["mkfs.ext4", "-q", "-F", "-L", "\x1b[2J$(halt)\n'", image])
    with attached(image) as device:
        yield device


def _with(made: Host, stick: Path) -> Session:
    """A machine started from a stick or the network: nothing is mounted."""
    session = made.session()
    disk = disks.Disk(stick, "STICK", 40 << 20, 512, ())
    session.inventory = lambda: (*made.inventory(), disk)
    return session


def _digest(device: Path) -> str:
    return hashlib.sha256(device.read_bytes()).hexdigest()


@pytest.mark.root
def test_precious_files_go_to_another_disk(alpha: Host, stick: Path, tmp_path: Path) -> None:
    drive(alpha)
    alpha.local_word = None
    own = [_digest(device) for device in alpha.devices.values()]
    names = [target.device for target in offload.candidates(_with(alpha, stick), alpha.devices["local"])]
    number = str(names.index(stick) + 1)
    blank = _digest(stick)
    said, _ = converse(offload.to_disk(_with(alpha, stick)), "1", number, "yes")
    assert "nothing was done" in said[-1] and _digest(stick) == blank, "only the device's name is a yes"
    said, _ = converse(offload.to_disk(_with(alpha, stick)), "1", number, stick.name)
    assert "written and read back" in said[-1]
    assert not any(char in line for line in said for char in "\x1b\n"), "a label is inert"
    name = f"reroot-precious-{alpha.order.id}"
    with disks.mounted(stick, tmp_path / "there", "ext4") as there, alpha.mounted("local") as local:
        kept = local / "recover/precious" / alpha.order.id
        assert {one.name: one.read_bytes() for one in (there / name).iterdir()} == {
            one.name: one.read_bytes() for one in kept.iterdir()}
        assert (there / name / "precious.tar.zst").stat().st_size > 0
    with pytest.raises(DiskError, match="already"):
        converse(offload.to_disk(_with(alpha, stick)), "1", number, stick.name)
    for device, before in zip(list(alpha.devices.values())[:1], own[:1], strict=True):
        assert _digest(device) == before, "the root was only looked at"


@pytest.mark.root
def test_local_is_read_without_a_byte_written_to_it(alpha: Host, stick: Path) -> None:
    drive(alpha)
    alpha.local_word = None
    before = {name: _digest(device) for name, device in alpha.devices.items()}
    converse(offload.to_disk(_with(alpha, stick)), "")
    converse(offload.to_disk(_with(alpha, stick)), "1", "99")
    assert {name: _digest(device) for name, device in alpha.devices.items()} == before


@pytest.mark.root
def test_a_local_of_type_xfs_is_found_and_read_without_a_byte_written_to_it(alpha: Host, tmp_path: Path) -> None:
    image = tmp_path / "local.img"
    with image.open("wb") as stream:
        stream.truncate(320 << 20)
    disks.make_filesystem(image, "xfs")
    with attached(image) as device:
        with disks.mounted(device, tmp_path / "there", "xfs") as there:
            (there / "recover/precious").mkdir(parents=True)
        session, before = alpha.session(), _digest(device)
        part = disks.Partition(device, 1, "p", "t", "local", 0, 320 << 20, device, "D")
        session.inventory = lambda: (disks.Disk(device, "D", 320 << 20, 512, (part,)),)
        with offload.recover_folder(session) as (recover, found):
            assert found == device and (recover / "precious").is_dir()
        assert _digest(device) == before


@pytest.mark.root
def test_hostile_archives_are_not_followed(tmp_path: Path) -> None:
    good, outside = tmp_path / "precious/good", tmp_path / "outside"
    for folder in (good, outside, tmp_path / "precious/e\x1bvil"):
        folder.mkdir(parents=True)
        (folder / "kept.json").write_text("{}")
    (good / "precious.tar.zst").symlink_to("/etc/shadow")
    (tmp_path / "precious/link").symlink_to(outside)
    assert offload.finished(tmp_path / "precious") == [good]
    assert [one.name for one in offload._files(good)] == ["kept.json"]


# -- a program of the site's own -------------------------------------------------------------------------------

SCRIPT = b"#!/bin/sh\necho ran > \"$(dirname \"$0\")/proof\"; exit 4\n"


@pytest.mark.root
def test_a_signed_program_runs_when_the_host_is_typed(alpha: Host) -> None:
    def put(data: bytes) -> None:
        with alpha.mounted("local") as local:
            (local / "recover/precious").mkdir(exist_ok=True)
            (local / "recover/recover").write_bytes(data)

    def run_it(*answers: str) -> list[str]:
        return converse(emergency.run_own(alpha.session()), *answers)[0]

    proof, good = alpha.places.scratch / "proof", Program("alpha", clock.wall() + 60, SCRIPT)
    put(ownprogram.sign(good, alpha.site.order_key))
    assert run_it("no")[-1] == "nothing was done" and not proof.exists()
    said = run_it("alpha")
    assert "may touch everything" in said[0] and said[-1] == "it ended with status 4" and proof.exists()
    proof.unlink()
    put(SCRIPT)
    with pytest.raises(TrustError, match="not a signed envelope"):
        run_it()
    put(ownprogram.sign(good, Ed25519PrivateKey.generate()))
    with pytest.raises(TrustError, match="is not signed by"):
        run_it()
    with alpha.mounted("local") as local:
        (local / "recover/recover").unlink()
        (local / "recover/recover").symlink_to("/etc/passwd")
    with pytest.raises(NotFoundError, match="reroot recovery program"):
        run_it()
    assert not proof.exists()


def test_what_a_program_s_signature_holds() -> None:
    key = Ed25519PrivateKey.generate()
    keys = order_keys([signer(key).public_key])
    program = Program("alpha", 2_000_000_000.0, b"\0" * ownprogram.MAX_BYTES)
    envelope = ownprogram.sign(program, key)
    assert ownprogram.verify(envelope, keys, host="alpha", now=1_999_999_999.0) == program
    with pytest.raises(TrustError, match="is for alpha"):
        ownprogram.verify(envelope, keys, host="bravo", now=0.0)
    with pytest.raises(TrustError, match="expired"):
        ownprogram.verify(envelope, keys, host="alpha", now=2_000_000_000.0)
    with pytest.raises(TrustError, match="is no order"):
        from recovery import signed_order

        signed_order.verify(envelope, keys, host_macs=[], now=0.0)
    with pytest.raises(RerootError, match="1 to"):
        ownprogram.sign(replace(program, data=b""), key)
