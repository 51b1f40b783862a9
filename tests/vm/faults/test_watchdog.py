"""A machine on which even process 1 does not go on is reset by its watchdog (QEMU's i6300esb, Debian 13's kernel)."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import OpenLab, Tell

from imaging.recovery_image import build, kernel
from imaging.recovery_image.build import Recipe
from lab import roots
from lab.qemu import DirectKernel, MachineSpec
from recovery.watchdog import WANTED_S

pytestmark = [pytest.mark.root, pytest.mark.nightly]


def test_a_frozen_process_1_is_reset_and_a_living_one_is_not(open_lab: OpenLab, tell: Tell, tmp_path: Path) -> None:
    system = kernel.from_root(roots.root_tree(roots.RootSpec("trixie")))
    image = build.make(Recipe("test", "1", "amd64", system, b"{}", level=3))
    for title in ("vmlinuz", "initrd.img"):
        (tmp_path / title).write_bytes(image.parts[title])
    machine = open_lab().machine("watched", spec=MachineSpec(
        memory_mib=512, reboots=False, watchdog=True, kernel=DirectKernel(
            tmp_path / "vmlinuz", tmp_path / "initrd.img", "console=ttyS0 reroot.rescue quiet panic=-1")))
    machine.start()
    said = machine.wait_for_console("the hardware watchdog resets this machine when nothing goes on for (.*)", 120)[1]
    machine.wait_for_console("choose 1-6: ", 120)
    machine.send_console("4\n")
    machine.wait_for_console("rescue# ", 60)
    # the menu is up for longer than the watchdog waits: process 1 feeds it
    assert machine.console_command(f"sleep {WANTED_S + 15}", 3 * WANTED_S) == (0, "")
    assert machine.running
    machine.console_command("mount -t cgroup2 none /sys/fs/cgroup && mkdir /sys/fs/cgroup/x")
    machine.send_console("echo 1 > /sys/fs/cgroup/x/cgroup.procs; echo 1 > /sys/fs/cgroup/x/cgroup.freeze\n")
    began = machine.elapsed_s()
    machine.wait_for_power_off(4 * WANTED_S)
    took = machine.elapsed_s() - began
    tell(f"watchdog of {said}: fed for {WANTED_S + 15} s; process 1 frozen, reset after {took:.0f} s")
