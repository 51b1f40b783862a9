"""Fault 4 on the whole road: saving what is precious fails, and the old system is what starts, untouched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from one_host import Host, drive, host, reissue

from plumbing.run import run

pytestmark = pytest.mark.root

MIB = 1 << 20
RULE = {"rules": [{"keep": ["/etc/**", "/srv/**"], "exclude": [], "when": "host", "origin": "test"}],
        "unlisted": {"look": [], "skip": [], "max_bytes": 0}}


@contextmanager
def full_local(folder: Path) -> Iterator[tuple[Host, Callable[[], None]]]:
    """ENOSPC, foreseen: /local is nearly full."""
    with host(folder) as made:
        def fault() -> None:
            with made.mounted("local") as local:
                (local / "somebody's").write_bytes(bytes(20 * MIB))

        yield made, fault


@contextmanager
def failing_disk(folder: Path) -> Iterator[tuple[Host, Callable[[], None]]]:
    """An error of the disk amid saving: /local has room, and the device under it takes no more."""
    place = folder / "device"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", place])
    try:
        with host(place) as made:
            def fault() -> None:
                os.sync()
                free = os.statvfs(place)
                with (place / "filler").open("wb") as stream:
                    stream.write(bytes(free.f_bavail * free.f_frsize - 2 * MIB))

            yield made, fault
    finally:
        run(["umount", "--lazy", place])


def picture(device: Path) -> str:
    return hashlib.sha256(device.read_bytes()).hexdigest()


@pytest.mark.parametrize("fault", [full_local, failing_disk])
def test_fault_4_the_old_system_boots(
        tmp_path: Path, fault: Callable[[Path], AbstractContextManager[tuple[Host, Callable[[], None]]]]) -> None:
    with fault(tmp_path) as (made, strike):
        with made.mounted("root") as root:
            (root / "srv/data").write_bytes(os.urandom(12 * MIB))
        reissue(made, precious=RULE)
        before = picture(made.devices["root"])
        strike()
        session, menus = drive(made)
        assert menus == []
        (failed,) = {line.partition("FAILED ")[2] for line in session.log.last(200) if "FAILED" in line}
        print(f"{fault.__name__:<14} old system boots, root untouched: {failed}")
        assert "MiB free" in failed or "cannot be written" in failed or "Input/output" in failed
        assert made.boots() == "system"
        assert picture(made.devices["root"]) == before, "not a byte of the old root"
