"""Process 1: the command line it is given, drivers, and the parent that watches a child; with real processes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.run import run
from recovery import init
from recovery.cmdline import CommandLine, parse
from recovery.init import Start, aliases, load_modules, supervise

GUID = "8d1b2c3d-0000-4000-8000-00000000000a"

# -- the command line ----------------------------------------------------------------------------------------


def test_the_words_of_the_boot_menu() -> None:
    line = parse(f"BOOT_IMAGE=/reroot/vmlinuz reroot.local=PARTUUID={GUID.upper()} "
                 "reroot.control=http://10.1.0.1:8080/ console=tty0 console=ttyS0,115200 panic=30\n")
    assert line == CommandLine(GUID, "http://10.1.0.1:8080", False, ("tty0", "ttyS0,115200"))


def test_the_menu_that_bootloader_writes_is_understood() -> None:
    from recovery.bootloader import BootSpec, SystemBoot, menu

    text = menu(BootSpec("alpha", GUID, "u-u-i-d", GUID, "http://[fd00::1]:8080", SystemBoot("/vmlinuz", None)))
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


# -- the parent and its child --------------------------------------------------------------------------------


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    # nothing of supervise may outlive it: neither handler nor child
    assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, None)
    assert signal.set_wakeup_fd(-1) == -1


def _starts(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_child_that_ends_well_is_the_end(said: list[str], tmp_path: Path) -> None:
    def worker(start: Start, _: int) -> None:
        (tmp_path / "starts").open("a").write(f"{start}\n")

    supervise(worker, say=said.append)
    assert _starts(tmp_path / "starts") == 1 and said == []


def test_a_defect_costs_an_attempt_and_is_shown(
        said: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def worker(start: Start, _: int) -> None:
        (tmp_path / "starts").open("a").write(f"{start.spent}\n")
        if start.spent == 0:
            raise KeyError("a defect")
        if start.spent == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    supervise(worker, say=said.append)
    assert (tmp_path / "starts").read_text().split() == ["0", "1", "2"]
    assert [line.split("(")[1].split(")")[0] for line in said] == ["70", "-9"]
    assert "KeyError: 'a defect'" in capfd.readouterr().err


def test_after_too_many_starts_it_is_for_the_rescue_menu_alone(said: list[str], tmp_path: Path) -> None:
    def worker(start: Start, _: int) -> None:
        (tmp_path / "starts").open("a").write(f"{start.broken}\n")
        if not start.broken:
            os._exit(9)

    supervise(worker, say=said.append, starts=2)
    assert (tmp_path / "starts").read_text().split() == ["False", "False", "True"]


def test_a_child_that_stands_still_is_killed(said: list[str]) -> None:
    def worker(start: Start, _: int) -> None:
        if start.spent == 0:
            threading.Event().wait()

    began = time.monotonic()
    supervise(worker, say=said.append, stall_s=0.5)
    assert 0.4 < time.monotonic() - began < 10
    assert "stood still" in said[0] and "(-9)" in said[1]


def test_a_child_that_works_is_left_alone(said: list[str]) -> None:
    def worker(_: Start, heartbeat: int) -> None:
        for _beat in range(10):
            os.write(heartbeat, b".")
            threading.Event().wait(0.4)

    supervise(worker, say=said.append, stall_s=3)
    assert said == []


def test_a_heartbeat_nobody_reads_does_not_block(said: list[str]) -> None:
    def worker(_: Start, heartbeat: int) -> None:
        sent = 0
        try:
            for _beat in range(200_000):
                os.write(heartbeat, b"." * 64)
                sent += 1
        except BlockingIOError:
            pass
        os._exit(0 if sent else 1)

    supervise(worker, say=said.append)
    assert said == []


def test_programs_the_child_starts_are_its_own_to_wait_for(said: list[str]) -> None:
    def worker(_: Start, __: int) -> None:
        for _program in range(20):
            assert run(["sh", "-c", "exit 3"], check=False).status == 3

    supervise(worker, say=said.append)
    assert said == []


@pytest.mark.root
def test_as_process_1_it_reaps_orphans(tmp_path: Path) -> None:
    """In a PID namespace of its own, where orphans come to it as they do in the initramfs."""
    script = f"""
import os, subprocess, time
from pathlib import Path
from recovery.init import supervise

def worker(start, heartbeat):
    subprocess.run(["sh", "-c", "(sleep 0.05; :) & (sleep 0.05; :) & exit 0"], check=True)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        states = [line.split()[2] for line in (p.read_text() for p in Path("/proc").glob("[0-9]*/stat"))]
        if len(states) == 2:
            os._exit(0)
        time.sleep(0.02)
    os._exit(1)

assert os.getpid() == 1
said = []
supervise(worker, say=said.append, starts=1)
Path({str(tmp_path / "said")!r}).write_text(repr(said))
"""
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script], check=True, timeout=60,
                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert (tmp_path / "said").read_text() == "[]"


def test_on_a_living_host_it_does_nothing() -> None:
    done = run([sys.executable, "-m", "recovery.init"], check=False,
               env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert done.status == 2
    assert b"nothing was done" in done.stderr
    assert done.stdout.startswith(b"reroot [")
