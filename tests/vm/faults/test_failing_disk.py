"""Fault 3: writes that fail in the middle (QEMU's blkdebug) end in a last gasp that says where, never in success."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Begin, Tell

from lab.demo import Demo, Wish
from lab.fleet import LabHost
from lab.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.nightly]

MIB, SECTOR, GROUP_MIB = 1 << 20, 512, 128
BEFORE_WIPE = ("network", "order", "disks", "preserve")


def failing_sectors(path: Path, sectors: Iterable[int]) -> Path:
    """Write blkdebug rules: each write that touches one of the sectors fails with EIO."""
    path.write_text("".join(f'[inject-error]\nevent = "none"\niotype = "write"\nerrno = "5"\nsector = "{sector}"\n'
                            'once = "off"\n\n' for sector in sectors))
    return path


def failing_from(path: Path, number: int) -> Path:
    """Write blkdebug rules: write number `number` (from 1) and each after it fail with EIO."""
    states = "".join(f'[set-state]\nevent = "pwritev"\nstate = "{n}"\nnew_state = "{n + 1}"\n\n'
                     for n in range(1, number))
    path.write_text(f'{states}[inject-error]\nevent = "pwritev"\nstate = "{number}"\nerrno = "5"\nonce = "off"\n')
    return path


def recovery_on(run: Demo, rules: Callable[[LabHost], Path]) -> Machine:
    """Let the old system stage its order and go down; what starts then has a disk that fails by the rules."""
    run.boot_fleet()
    run.order()
    machine = run.hosts[0].on
    machine.wait_for_console(r"reboot: (Restarting system|machine restart)", 300)
    machine.power_cut()
    machine.disks = (replace(machine.disks[0], faults=rules(run.hosts[0])),)
    machine.start()
    return machine


def repaired(machine: Machine) -> str:
    """Start the machine with a sound disk; returns what came first, recovery or a system."""
    machine.power_cut()
    machine.disks = (replace(machine.disks[0], faults=None),)
    machine.start()
    return machine.wait_for_console(r"init: reroot recovery|login:", 240).group(0)


def test_a_disk_that_fails_under_the_new_root_is_no_success(begin: Begin, tell: Tell, tmp_path: Path) -> None:
    """Sectors amid the new root fail; the mail names phase and errno, and nothing but recovery starts afterwards."""
    def rules(host: LabHost) -> Path:
        assert host.built is not None
        root = host.built.plan.partition("root").offset
        # block groups without a copy of the superblock, so that mkfs does not write there
        return failing_sectors(tmp_path / "rules", [
            (root + (group * GROUP_MIB + mib) * MIB) // SECTOR for group in (2, 4) for mib in range(GROUP_MIB)])

    run = begin(Wish(attempts=1))
    machine = recovery_on(run, rules)
    mail = run.mailbox.wait_for_mail(500)[0]
    text = mail.get_content()
    tell(f"writes to 256 sectors under the new root fail: {mail['Subject']}\n" + text.split("What to try")[0])
    assert "phase:  restore" in text and "kind:   disk" in text
    assert "EIO" in text or "Input/output error" in text
    machine.wait_for_console("a shell on this console", 120)
    assert run.control.order_of("alpha")["state"] == "failed"
    assert "init" in repaired(machine), "a half-made root never starts"


@pytest.mark.parametrize("number", [40, 400])
def test_a_disk_that_fails_from_one_write_on(begin: Begin, tell: Tell, tmp_path: Path, number: int) -> None:
    """Whatever write it is: the old system, untouched, or recovery that tells; never a half-made root."""
    run = begin(Wish(attempts=1))
    machine = recovery_on(run, lambda _: failing_from(tmp_path / "rules", number))
    failed = machine.wait_for_console(r"(\w+): FAILED \((\w+)\): (.*)", 500)
    machine.wait_for_console(r"a shell on this console|going back to the system", 300)
    came = repaired(machine)
    tell(f"write {number} and all after it fail: {failed.group(0)}; with a sound disk then: {came}")
    assert run.control.order_of("alpha")["state"] != "completed"
    if failed.group(1) not in BEFORE_WIPE:
        assert "init" in came, "a half-made root never starts"
