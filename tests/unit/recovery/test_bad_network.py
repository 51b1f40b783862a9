"""Fault 24: a network that loses a third of its packets, and one that is gone amid the download; in a namespace."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from one_host import Host, actions, drive, host, reissue

from plumbing.run import run
from recovery.machine import State
from recovery.session import Session

pytestmark = pytest.mark.root

CLONE_NEWNET = 0x4000_0000


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Host]:
    """Make a host and its site in a network namespace of their own; this thread goes back to the old one."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    try:
        run(["ip", "link", "set", "lo", "up"])
        with host(tmp_path) as made:
            yield made
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)


def _input(action: str, *rule: str) -> None:
    run(["iptables", action, "INPUT", "-p", "tcp", *rule, "-j", "DROP"])


def test_a_third_of_the_packets_lost(alone: Host) -> None:
    """Nothing is given up: what is lost comes again."""
    reissue(alone, attempts=10)
    _input("-A", "-m", "statistic", "--mode", "random", "--probability", "0.3")
    session, menus = drive(alone)
    dropped = int(run(["iptables", "-nvxL", "INPUT"]).text.splitlines()[-1].split()[0])
    assert menus == [] and dropped > 10
    assert alone.boots() == "system"
    with alone.mounted("root") as root:
        assert (root / "usr/bin/tool").read_text() == "new\n"
    failed = [line for line in session.log.last(400) if "FAILED" in line]
    print(f"30 % loss: {dropped} packets dropped, {len(failed)} attempts failed, the new system boots")


@pytest.mark.nightly
def test_a_cut_amid_the_download_tells_and_goes_on_later(alone: Host) -> None:
    """The line goes dead after the first range: last gasp, and recovery is what boots; back again, it goes through."""
    reissue(alone, attempts=1)
    real = actions()[State.RESTORE]
    asked: list[int] = []

    def note(offset: int, data: bytes) -> bytes:
        asked.append(offset)
        return data

    def restore(session: Session) -> Mapping[str, object]:
        alone.site.break_blob = cut_after_one
        return real(session)

    def cut_after_one(offset: int, data: bytes) -> bytes:
        if asked:
            _input("-A")
        return note(offset, data)

    session, menus = drive(alone, {State.RESTORE: restore})
    assert len(menus) == 1 and alone.boots() == "recovery"
    assert any("gasp" in line for line in session.log.last(400))
    _input("-D")
    first, asked = asked[0], []
    alone.site.break_blob = note
    drive(alone)
    assert alone.boots() == "system"
    with alone.mounted("root") as root:
        assert (root / "usr/bin/tool").read_text() == "new\n"
    print(f"cut after the range at {first}: {menus[0]}; later fetched: {asked}")
