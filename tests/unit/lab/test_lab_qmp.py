"""QMP, spoken with a real QEMU that has nothing to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.process import Process
from lab.qmp import Qmp
from plumbing.errors import CommandError


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[tuple[Process, Qmp]]:
    socket = tmp_path / "qmp"
    process = Process(["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-vga", "std",
                       "-m", "32M", "-qmp", f"unix:{socket},server=on,wait=off"], name="qemu", log=tmp_path / "log")
    qmp = Qmp(socket)
    yield process, qmp
    qmp.close()
    process.kill()


def test_status_reset_and_quit(qemu: tuple[Process, Qmp]) -> None:
    process, qmp = qemu
    assert qmp.status() == "running"
    qmp.reset()
    assert qmp.status() == "running"
    qmp.quit()
    assert process.wait(10) == 0
    with pytest.raises(CommandError, match="did it end"):
        qmp.status()


def test_screenshot_is_a_png(qemu: tuple[Process, Qmp], tmp_path: Path) -> None:
    qemu[1].screenshot(tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_refusal_is_told_in_qemus_words(qemu: tuple[Process, Qmp]) -> None:
    with pytest.raises(CommandError, match="QEMU refused no-such-thing: The command no-such-thing has not been found"):
        qemu[1].execute("no-such-thing")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="did not open"):
        Qmp(tmp_path / "qmp", timeout_s=0)
