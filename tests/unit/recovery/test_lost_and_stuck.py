"""Ways in which a host could lose what is precious, or come to a stand with its old system whole."""

from __future__ import annotations

import resource
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from loopdevice import attached
from one_host import Host, PowerCutError, cut, drive, reissue

from plumbing import durable
from plumbing.run import run
from recovery import bootloader, disks, hostkeys
from recovery.bootloader import BootSpec, RecoveryFiles, SystemBoot
from recovery.init import last_resort
from recovery.journal import Journal
from recovery.machine import State
from recovery.phases import blank
from recovery.supervise import Start, supervise

pytestmark = pytest.mark.root


def test_what_the_old_system_wrote_after_a_cut_is_kept(alpha: Host) -> None:
    """Cut between `done preserve` and the boot default: the old system lives on, so its files are collected again."""
    with pytest.raises(PowerCutError):
        drive(alpha, {State.WIPE: cut})
    assert alpha.boots() == "system"
    with alpha.mounted("root") as root:
        (root / "etc/hostname").write_text("renamed-since\n")
    _, menus = drive(alpha)
    assert menus == []
    with alpha.mounted("root") as root:
        assert (root / "etc/hostname").read_text() == "renamed-since\n"


def test_after_the_border_the_archive_is_not_collected_from_the_new_root(alpha: Host) -> None:
    with pytest.raises(PowerCutError):
        drive(alpha, {State.VERIFY: cut})
    session, menus = drive(alpha)
    assert menus == []
    assert not any("preserve: begins" in line for line in session.log.last(200))


def test_a_root_that_recovery_cannot_make_is_refused_before_the_wipe(alpha: Host) -> None:
    assert alpha.order.disks is not None
    run(["mkfs.ext4", "-q", "-F", "-t", "ext3", alpha.devices["root"]])
    reissue(alpha, disks=replace(alpha.order.disks, root=replace(alpha.order.disks.root, fstype="ext3")))
    session, menus = drive(alpha)
    assert menus == [] and any("makes roots of type ext4 or xfs, not ext3" in line for line in session.log.last(50))
    assert alpha.boots() == "system"


def test_precious_files_that_do_not_fit_into_the_new_root_are_refused_before_the_wipe(
        alpha: Host, tmp_path: Path) -> None:
    with alpha.mounted("root") as root:
        (root / "srv/large").write_bytes(bytes(16 << 20))
    (tmp_path / "new/more").write_bytes(bytes(26 << 20))
    reissue(alpha, release=alpha.site.release(tmp_path / "new", "14"), precious={
        "rules": [{"keep": ["/srv/**"], "exclude": [], "when": "host", "origin": "test"}], "unlisted": {}})
    session, menus = drive(alpha)
    assert menus == [] and any("with the precious files" in line for line in session.log.last(50))
    assert alpha.boots() == "system"
    with alpha.mounted("root") as root:
        assert (root / "srv/large").stat().st_size == 16 << 20


def test_the_label_of_the_root_stays(alpha: Host) -> None:
    run(["e2label", alpha.devices["root"], "web-root"])
    drive(alpha)
    there = disks.identify(alpha.devices["root"])
    assert there is not None and there.label == "web-root"


def test_a_full_disk_leaves_no_half_line_in_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.order("order-1", "upgrade", "sha256:1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 30, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            journal.begin("preserve")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.failed("preserve", "the disk was full")
    journal.attempt()
    assert [record.event for record in Journal(journal.path).records] == ["order", "failed", "attempt"]


# -- recovery itself is broken -------------------------------------------------------------------------------


def test_a_broken_recovery_goes_back_to_a_whole_system(alpha: Host) -> None:
    session = alpha.session()
    assert last_resort(session) is State.FAILED
    session.close()
    with pytest.raises(PowerCutError):
        drive(alpha, {State.RESTORE: cut})
    session = alpha.session()
    assert last_resort(session) is State.GASP, "the root was wiped"
    session.close()


def test_a_worker_that_cannot_even_show_the_menu_is_not_started_without_a_pause(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    said: list[str] = []

    def worker(start: Start, _: int) -> None:
        with starts.open("a") as stream:
            stream.write(f"{start.broken}\n")
        if start.spent < 3:
            raise SystemExit(1)

    began = time.monotonic()
    supervise(worker, say=said.append, starts=1, pause=lambda _: 0.3)
    assert starts.read_text().split() == ["False", "True", "True", "True"]
    assert time.monotonic() - began >= 0.9, "three pauses of 0.3 s"


# -- installing over a broken host ---------------------------------------------------------------------------


def test_what_was_synced_just_before_a_power_cut_is_found_on_the_old_local(alpha: Host, tmp_path: Path) -> None:
    """A copy of what was written is what a power cut leaves: the newest of it is in the filesystem's journal."""
    image = tmp_path / "old-local.img"
    with image.open("wb") as stream:
        stream.truncate(32 << 20)
    run(["mkfs.ext4", "-q", "-F", image])
    with attached(image) as device, disks.mounted(device, tmp_path / "mnt", "ext4") as folder:
        durable.make_folder(folder / "recover")
        durable.append(folder / "recover/journal", b"what was done last\n")
        shutil.copyfile(image, tmp_path / "cut.img")  # not the device, whose cache has more than the disk
    session = alpha.session()
    with attached(tmp_path / "cut.img") as device:
        assert blank._mount_broken(session, device, "ext4")
        assert (session.places.root / "recover/journal").read_bytes() == b"what was done last\n"
        session.detach()


def test_a_broken_filesystem_does_not_keep_a_host_from_being_installed(alpha: Host, tmp_path: Path) -> None:
    image = tmp_path / "broken.img"
    with image.open("wb") as stream:
        stream.truncate(32 << 20)
    run(["mkfs.ext4", "-q", "-F", image])
    with image.open("r+b") as stream:  # what follows the superblock; its copies as well
        stream.seek(4096)
        stream.write(b"\xff" * (20 << 20))
    session = alpha.session()
    with attached(image) as device:
        assert disks.identify(device) is not None
        assert not blank._mount_broken(session, device, "ext4")
    assert any("nothing can be kept" in line for line in session.log.last())


def test_an_installed_system_gets_host_keys_of_its_own(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert not hostkeys.wanted(root)
    (root / "etc/ssh").mkdir(parents=True)
    (root / "etc/ssh/sshd_config").touch()
    assert hostkeys.wanted(root)
    told = hostkeys.make("alpha", lambda path, data, mode: durable.write_file(root / path, data, mode))
    assert not hostkeys.wanted(root)
    for name, line in zip(("ed25519", "ecdsa"), told, strict=True):
        key = root / f"etc/ssh/ssh_host_{name}_key"
        status = key.stat()
        assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o600, 0, 0)
        public = key.with_name(key.name + ".pub").read_text()
        assert public.endswith(" root@alpha\n")
        assert run(["ssh-keygen", "-y", "-f", key]).text.split()[:2] == public.split()[:2]
        assert run(["ssh-keygen", "-lf", key]).text.split()[1] in line


# -- the boot area while it is made --------------------------------------------------------------------------


@pytest.mark.parametrize("writes", range(1, 9))
def test_no_cut_leaves_a_loader_without_menu_or_default(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    esp = tmp_path / "esp"
    (esp / "EFI/BOOT").mkdir(parents=True)
    (esp / "EFI/BOOT/BOOTX64.EFI").write_bytes(b"the host's own loader")
    parts = [tmp_path / name for name in ("vmlinuz", "initrd.img", "grubx64.efi")]
    for part in parts:
        part.write_bytes(part.name.encode() + b" /reroot/grub.cfg")
    spec = BootSpec("alpha", "aaaa", "bbbb", "cccc", "http://control:8080", SystemBoot("/vmlinuz", None))
    real, done = durable.write_file, list[Path]()

    def cut_later(path: Path, data: bytes, mode: int = 0o644) -> None:
        if len(done) == writes:
            raise PowerCutError
        done.append(path)
        real(path, data, mode)

    monkeypatch.setattr(durable, "write_file", cut_later)
    with suppress(PowerCutError):
        bootloader.install(esp, RecoveryFiles(*parts), spec, when_unset="system")
    loader = (esp / "EFI/BOOT/BOOTX64.EFI").read_bytes()
    if loader != b"the host's own loader":
        assert "menuentry" in (esp / "reroot/grub.cfg").read_text()
        assert bootloader.state(esp).saved == "system"
