"""Nightly: the power goes at random moments of an upgrade, many times; the outcomes are printed as a table."""

from __future__ import annotations

import random
import threading

import pytest
from conftest import Begin, Tell

from lab import demo, fleet
from lab.demo import Wish
from plumbing.errors import CommandError

pytestmark = [pytest.mark.root, pytest.mark.nightly]

CUTS = 40
LONGEST_S = 45.0


@pytest.mark.parametrize("uefi", [False, True], ids=["bios", "uefi"])
def test_power_cuts_at_random_moments(begin: Begin, tell: Tell, uefi: bool) -> None:
    """Fault 1: after each cut the machine comes back by itself; in the end nothing precious is lost."""
    dice, pause, rows = random.Random(7), threading.Event(), []
    run = begin(Wish(uefi=uefi))
    before = run.boot_fleet()
    run.order()
    machine = run.hosts[0].on
    for number in range(CUTS):
        after_s = dice.uniform(0.0, LONGEST_S)
        pause.wait(after_s)
        last = machine.console.tail(1)
        machine.power_cut()
        machine.start()
        rows.append(f"cut {number:>3} after {after_s:5.1f} s  {last[:80]}")
        if run.control.order_of("alpha").get("state") == "completed":
            break
    machine.wait_for_login(fleet.LOGIN_S)
    try:
        phases = run.follow(forgive=True)
    finally:
        tell("\n".join(rows))
    story = run.compare(dict(before), phases)
    if missing := demo.lost(story):
        raise CommandError("; ".join(missing))
    assert story.after["alpha"].answers["system"].startswith("Debian GNU/Linux 13")


def test_three_hosts_on_two_subnets_roll_out(begin: Begin) -> None:
    run = begin(Wish(hosts=3))
    story = run.upgrade()
    assert demo.lost(story) == []
