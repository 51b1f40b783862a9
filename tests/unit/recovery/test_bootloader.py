"""The menu's text against hostile words, the boot area's files, and finding a root's kernel. Real grub-script-check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plumbing.errors import DiskError, NotFoundError, RefusedError
from plumbing.run import run
from recovery import bootloader
from recovery.bootloader import BootSpec, BootState, RecoveryFiles, SystemBoot, boot_once, menu, set_default, state

GUID = "00000001-1111-4222-8333-444444444444"
SPEC = BootSpec("alpha", f"PARTUUID={GUID}", "6f1d5f0e-5b0b-4d53-9f0b-8f1d6a2c7e11",
                f"PARTUUID={GUID.replace('1', '2')}", "http://10.0.0.1:8080",
                SystemBoot("/vmlinuz", "/initrd.img", ("console=ttyS0",)))


def checked(text: str) -> str:
    """The text, after GRUB's own parser took it."""
    run(["grub-script-check"], stdin=text.encode())
    return text


@pytest.fixture
def files(tmp_path: Path) -> RecoveryFiles:
    for name in ("vmlinuz", "initrd", "grub"):
        (tmp_path / name).write_bytes(name.encode() * 1000 + b"/reroot/grub.cfg")
    return RecoveryFiles(tmp_path / "vmlinuz", tmp_path / "initrd", tmp_path / "grub")


@pytest.fixture
def esp(tmp_path: Path) -> Path:
    (tmp_path / "esp").mkdir()
    return tmp_path / "esp"


def test_the_menu_names_what_it_starts() -> None:
    text = checked(menu(SPEC))
    assert f"linux /vmlinuz root=PARTUUID={GUID} ro console=ttyS0\n    initrd /initrd.img\n" in text
    recovery = f"reroot.local={SPEC.local} reroot.control=http://10.0.0.1:8080"
    assert f"linux /reroot/vmlinuz {recovery} console=tty0 console=ttyS0,115200 panic=30\n" in text
    assert "configfile" not in text
    own = checked(menu(replace(SPEC, system=replace(SPEC.system, config="/boot/grub/grub.cfg", initrd=None))))
    assert "configfile /boot/grub/grub.cfg" in own
    assert "initrd /initrd.img" not in own
    volume = "LVM-" + 64 * "a"
    on_lvm = checked(menu(replace(SPEC, root="/dev/mapper/vg0-root", local=volume)))
    assert "root=/dev/mapper/vg0-root ro" in on_lvm and f"reroot.local={volume} " in on_lvm
    assert "reroot.local" not in checked(menu(replace(SPEC, local=None)))
    assert "'reroot.control=http://[fd00::1]:8080'" in checked(menu(replace(SPEC, control="http://[fd00::1]:8080")))


@pytest.mark.parametrize("word", [
    "a b", "a\nb", "a;reboot", "$root", "a'b", 'a"b', "a\\b", "{", "a|b", "a&b", "a#b", "é", "a\tb", "*", "a\0b",
    "a\rb", "`id`", "<x", "(hd0)",
])
def test_a_hostile_word_is_refused(word: str) -> None:
    for spec in (
        replace(SPEC, control=word), replace(SPEC, root=word), replace(SPEC, root_fs_uuid=word),
        replace(SPEC, recovery_arguments=(word,)), replace(SPEC, system=SystemBoot(word, None)),
        replace(SPEC, system=SystemBoot("/vmlinuz", word)), replace(SPEC, system=SystemBoot("/vmlinuz", None, (word,))),
        replace(SPEC, system=SystemBoot("/vmlinuz", None, (), word)),
    ):
        with pytest.raises(RefusedError, match="cannot be put into the boot menu"):
            menu(spec)


def test_an_empty_word_is_refused() -> None:
    for spec in (replace(SPEC, root_fs_uuid=""), replace(SPEC, recovery_arguments=("",))):
        with pytest.raises(RefusedError):
            menu(spec)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(title=st.text(max_size=60))
def test_a_hostile_title_changes_nothing_but_the_title(title: str) -> None:
    plain = checked(menu(SPEC)).splitlines()
    text = checked(menu(replace(SPEC, title=title))).split("\n")[:-1]
    assert len(text) == len(plain)
    assert [a for a, b in zip(plain, text, strict=True) if a != b and not a.lstrip().startswith("menuentry ")] == []


def test_titles_are_quoted() -> None:
    text = menu(replace(SPEC, title="a'; reboot; '\n${x}"))
    line = next(line for line in text.splitlines() if "--id recovery" in line)
    assert line == "menuentry 'Start reroot recovery of a'\\''; reboot; '\\''?${x}' --id recovery {"


def test_what_starts_is_remembered(esp: Path) -> None:
    assert state(esp) == BootState(None, None)
    with pytest.raises(RefusedError, match="install the boot area first"):
        boot_once(esp, "recovery")
    set_default(esp, "system")
    boot_once(esp, "recovery")
    assert state(esp) == BootState("system", "recovery")
    set_default(esp, "recovery")
    assert state(esp) == BootState("recovery", None)
    (esp / "reroot/grubenv").write_bytes(b"torn")
    assert state(esp) == BootState(None, None)
    set_default(esp, "recovery")
    assert state(esp) == BootState("recovery", None)


def test_it_is_installed_once(esp: Path, files: RecoveryFiles) -> None:
    assert bootloader.install(esp, files, SPEC, when_unset="system")
    assert state(esp) == BootState("system", None)
    assert (esp / "reroot/vmlinuz").read_bytes() == files.vmlinuz.read_bytes()
    assert (esp / "EFI/BOOT/BOOTX64.EFI").read_bytes() == (esp / "EFI/reroot/grubx64.efi").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in esp.rglob("*") if path.is_file()}
    assert not bootloader.install(esp, files, SPEC, when_unset="recovery")
    assert {path: path.stat().st_mtime_ns for path in esp.rglob("*") if path.is_file()} == before
    assert bootloader.install(esp, files, replace(SPEC, control="http://other"), when_unset="recovery")
    assert "http://other" in (esp / "reroot/grub.cfg").read_text()
    assert state(esp) == BootState("system", None)


def test_in_recovery_a_damaged_state_stays_with_recovery(esp: Path, files: RecoveryFiles) -> None:
    set_default(esp, "recovery")
    (esp / "reroot/grubenv").write_bytes(b"")
    bootloader.install(esp, files, SPEC, when_unset="recovery")
    assert state(esp).saved == "recovery"


def test_a_foreign_loader_is_kept_once(esp: Path, files: RecoveryFiles) -> None:
    (esp / "EFI/BOOT").mkdir(parents=True)
    (esp / "EFI/BOOT/BOOTX64.EFI").write_bytes(b"shim of somebody")
    bootloader.install(esp, files, SPEC, when_unset="system")
    assert files.grub_efi is not None
    files.grub_efi.write_bytes(b"our next version, with /reroot/grub.cfg")
    bootloader.install(esp, files, SPEC, when_unset="system")
    assert (esp / "EFI/BOOT/BOOTX64.EFI").read_bytes() == files.grub_efi.read_bytes()
    assert (esp / "EFI/BOOT/BOOTX64.EFI.before-reroot").read_bytes() == b"shim of somebody"


def test_too_small_a_partition_is_refused_before_anything(
    esp: Path, files: RecoveryFiles, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recovery.disks.free_bytes", lambda _: 1 << 19)
    monkeypatch.setattr("recovery.bootloader.free_bytes", lambda _: 1 << 19)
    with pytest.raises(DiskError, match="the recovery image needs"):
        bootloader.install(esp, files, SPEC, when_unset="system")
    assert list(esp.iterdir()) == []


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def find(root: Path) -> SystemBoot:
    return bootloader.find_system(root, GUID, SPEC.root_fs_uuid)


def test_debian_s_links_are_preferred(tmp_path: Path) -> None:
    root = tree(tmp_path, "boot/vmlinuz-6.1", "boot/initrd.img-6.1", "boot/vmlinuz-6.12")
    (root / "vmlinuz").symlink_to("boot/vmlinuz-6.1")
    (root / "initrd.img").symlink_to("/boot/initrd.img-6.1")
    assert find(root) == SystemBoot("/vmlinuz", "/initrd.img")


def test_the_newest_kernel_is_found(tmp_path: Path) -> None:
    root = tree(tmp_path, "boot/vmlinuz-6.9.0", "boot/vmlinuz-6.12.0", "boot/vmlinuz-0-rescue-7.0", "boot/vmlinuz-9 ;x",
                "boot/initramfs-6.12.0.img")
    (root / "vmlinuz").symlink_to("boot/gone")
    assert find(root) == SystemBoot("/boot/vmlinuz-6.12.0", "/boot/initramfs-6.12.0.img")


def test_links_do_not_leave_the_root(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", "kernel") / "kernel"
    root = tree(tmp_path / "root", "etc/hostname")
    for target in (outside, Path("../outside/kernel"), Path("vmlinuz")):
        (root / "vmlinuz").unlink(missing_ok=True)
        (root / "vmlinuz").symlink_to(target)
        with pytest.raises(NotFoundError, match="no kernel was found"):
            find(root)


def test_a_grub_cfg_is_used_only_without_a_kernel_and_when_it_is_this_root_s(tmp_path: Path) -> None:
    root = tree(tmp_path, "vmlinuz", "boot/grub/grub.cfg")
    (root / "boot/grub/grub.cfg").write_text(f"search --fs-uuid --set=root {SPEC.root_fs_uuid}\n")
    assert find(root).config is None
    (root / "vmlinuz").unlink()
    assert find(root).config == "/boot/grub/grub.cfg"
    (root / "boot/grub/grub.cfg").write_text("search --fs-uuid --set=root another\n")
    with pytest.raises(NotFoundError, match="no kernel was found"):
        find(root)


def test_kernel_arguments_are_kept(tmp_path: Path) -> None:
    root = tree(tmp_path, "vmlinuz", "etc/default/grub")
    (root / "etc/default/grub").write_text(
        "GRUB_CMDLINE_LINUX_DEFAULT='quiet root=/dev/sda1'\n#GRUB_CMDLINE_LINUX=\"no\"\n"
        'GRUB_CMDLINE_LINUX="console=ttyS0,115200 mitigations=auto"  # why\nGRUB_CMDLINE_LINUX="$(id)"\n')
    assert find(root).arguments == ("quiet", "console=ttyS0,115200", "mitigations=auto")
    tree(root, "etc/kernel/cmdline")
    (root / "etc/kernel/cmdline").write_text("root=UUID=1 rw quiet a;b BOOT_IMAGE=/x\n")
    assert find(root).arguments == ("quiet",)
    with_console = bootloader.find_system(root, GUID, SPEC.root_fs_uuid, extra=("console=ttyS0", "quiet"))
    assert with_console.arguments == ("quiet", "console=ttyS0")
