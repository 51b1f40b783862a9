"""Process 1: the command line it is given, drivers, and what a worker that was killed leaves mounted."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.run import run
from recovery import init
from recovery.cmdline import CommandLine, parse
from recovery.init import aliases, let_go, load_modules

GUID = "8d1b2c3d-0000-4000-8000-00000000000a"

# -- the command line ----------------------------------------------------------------------------------------


def test_the_words_of_the_boot_menu() -> None:
    line = parse(f"BOOT_IMAGE=/reroot/vmlinuz reroot.local=PARTUUID={GUID.upper()} "
                 "reroot.control=http://10.1.0.1:8080/ console=tty0 console=ttyS0,115200 panic=30\n")
    assert line == CommandLine(GUID, "http://10.1.0.1:8080", False, ("tty0", "ttyS0,115200"))


def test_the_menu_that_bootloader_writes_is_understood() -> None:
    from recovery.bootloader import BootSpec, SystemBoot, menu

    word = f"PARTUUID={GUID}"
    text = menu(BootSpec("alpha", word, "u-u-i-d", word, "http://[fd00::1]:8080", SystemBoot("/vmlinuz", None)))
    (linux,) = (line for line in text.splitlines() if "reroot.local" in line)
    line = parse(" ".join(shlex.split(linux)))  # GRUB takes the quotes away as a shell does
    assert (line.local, line.control, line.complaints) == (GUID, "http://[fd00::1]:8080", ())


@pytest.mark.parametrize("words", [
    "reroot.local=/dev/sda1", "reroot.local=PARTUUID=$(reboot)", "reroot.local=PARTUUID=../../x", "reroot.local",
    "reroot.control=ftp://x", "reroot.control=http://x/`id`", "reroot.control=http://a@b:c/", "reroot.control=",
    "reroot.control=http://" + "x" * 300, "reroot.rescue=no", "reroot.wipe=yes", "reroot.order=evil",
])
def test_what_is_malformed_or_unknown_is_ignored_aloud(words: str) -> None:
    line = parse(words)
    assert (line.local, line.control, line.rescue) == (None, None, False)
    assert len(line.complaints) == 1


def test_the_first_word_counts() -> None:
    assert parse("reroot.control=http://good:1 reroot.control=http://evil:1").control == "http://good:1"
    assert parse("reroot.rescue quiet").rescue


@given(st.text(max_size=400))
def test_any_text_is_read(text: str) -> None:
    line = parse("reroot.local=" + text)
    assert line.local is None or set(line.local) <= set("0123456789abcdef-")
    assert all(part.isprintable() for part in line.complaints)


# -- drivers -------------------------------------------------------------------------------------------------


def test_drivers_are_asked_for_until_no_new_device_shows_up(tmp_path: Path) -> None:
    def device(bus: str, name: str, alias: str) -> None:
        folder = tmp_path / "bus" / bus / "devices" / name
        folder.mkdir(parents=True)
        (folder / "modalias").write_text(alias + "\n")

    device("pci", "0000:00:01.0", "pci:v1AF4d1000")
    device("pci", "0000:00:02.0", "pci:v1AF4d1000")
    device("pci", "0000:00:03.0", "bad alias\x07")
    asked: list[list[str]] = []

    def load(names: list[str]) -> None:
        asked.append(names)
        if "pci:v1AF4d1000" in names:
            device("virtio", "virtio0", "virtio:d00000001v00001AF4")

    assert load_modules(tmp_path, load) == 2
    assert asked == [list(init.ALWAYS_LOADED), ["pci:v1AF4d1000"], ["virtio:d00000001v00001AF4"]]
    assert sorted(aliases(tmp_path)) == ["pci:v1AF4d1000", "pci:v1AF4d1000", "virtio:d00000001v00001AF4"]


def test_an_unknown_module_is_no_error() -> None:
    init.modprobe(["no-such-module-at-all"])


@pytest.mark.root
def test_a_new_worker_lets_go_of_what_the_one_before_had_mounted(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of what one that was left behind still uses; what others mounted stays."""
    monkeypatch.setattr(init, "WORKED_IN", (f"{tmp_path}/mnt/", f"{tmp_path}/local"))
    for name in ("mnt/root", "local", "other"):
        (tmp_path / name).mkdir(parents=True)
        run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / name])
    used = os.open(tmp_path / "local", os.O_RDONLY)
    try:
        let_go()
        assert [os.path.ismount(tmp_path / name) for name in ("mnt/root", "local", "other")] == [False, False, True]
    finally:
        os.close(used)
        run(["umount", tmp_path / "other"])


def test_on_a_living_host_it_does_nothing() -> None:
    done = run([sys.executable, "-m", "recovery.init"], check=False,
               env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert done.status == 2
    assert b"nothing was done" in done.stderr
    assert done.stdout.startswith(b"reroot [")
