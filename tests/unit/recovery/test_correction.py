"""A wrong order keeps a wiped host from going on; a correction on a real control server heals it untouched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from one_host import GUIDS, MAC, SERIAL, Host, PowerCutError, actions, cut, drive
from servers import RECOVERY, Machine, Server, make_site, publish_release, serving

from imaging.capture import capture
from imaging.catalogue import Catalogue
from imaging.store import Store
from recovery import identity, report
from recovery.drive import Drive
from recovery.machine import Event, State

pytestmark = pytest.mark.root


@pytest.fixture
def server(tmp_path: Path, alpha: Host) -> Iterator[Server]:
    """Serve alpha's release from a real site."""
    site = make_site(tmp_path / "real")
    publish_release(site, tmp_path, "1")
    manifest = capture(tmp_path / "new", Store(site.store), name="debian", version="13.1", arch="amd64",
                       recovery=RECOVERY)
    Catalogue(site.catalogue, site.keys).publish_all({"releases/debian/13.1/amd64.json": manifest})
    alpha.places.trust_root.write_bytes(Catalogue(site.catalogue, site.keys).root_json())
    with serving(site) as running:
        yield running


def _enrolled(alpha: Host, server: Server) -> Machine:
    machine = Machine(server, "alpha", MAC)
    token = machine.add()
    with alpha.mounted("local") as local:
        shutil.rmtree(local / "recover")
        made = identity.create(local, "alpha", server.api, [server.content], alpha.places.trust_root.read_bytes(),
                               b'{"links": []}')
    report.enrol(made, {"token": token})
    machine.key = made.key
    return machine


def _ordered(machine: Machine, serial: str) -> str:
    """Have the host's disk known by `serial`, and an order issued in place of any other."""
    parts = {name: {"partuuid": guid, "disk_serial": serial, "fstype": "ext4"} for name, guid in GUIDS.items()}
    facts = {"arch": "amd64", "firmware": "bios", "memory_bytes": 1 << 30, "serial": "", "links": [
        {"name": "lan0", "mac": MAC, "address": "10.1.0.11/24", "gateway": None}], "disks": parts}
    assert machine.report("inventory", "inventory", facts).status == 204
    return machine.issued(replace=True)


def test_a_corrected_order_heals_a_host_that_is_stuck(alpha: Host, server: Server) -> None:
    machine = _enrolled(alpha, server)
    first = _ordered(machine, SERIAL)
    with pytest.raises(PowerCutError):
        drive(alpha, {State.RESTORE: cut})
    assert alpha.boots() == "recovery"
    wrong = _ordered(machine, "A-DISK-OF-ANOTHER-HOST")
    session, menus, pauses, right = alpha.session(), list[str](), list[float](), list[str]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:  # somebody has looked at the console, and corrects it where he sits
            right.append(_ordered(machine, SERIAL))

    def menu(why: str, _: float | None) -> Event:
        menus.append(why)
        return Event.DONE

    Drive(session, actions(), menu=menu, jitter=lambda: 0.0, pause=pause).run()
    session.close()
    told = "\n".join(session.log.last(400))
    assert menus == [], told
    assert told.count("disks: FAILED (disk)") == 3 and "A-DISK-OF-ANOTHER-HOST" in told
    assert "attempt 1 of 10" in told and "attempt 4 of 10" in told
    assert len(pauses) == 3 and len({first, wrong, *right}) == 3
    assert alpha.boots() == "system"
    with alpha.mounted("root") as root, alpha.mounted("local") as local:
        assert (root / "usr/bin/tool").read_text() == "new\n"
        assert (root / "etc/hostname").read_text() == "alpha\n", "precious, by the archive of the first order"
        assert (local / "recover/precious" / first).is_dir()
    assert session.reporter.flush(20)
    print(f"three attempts failed by order {wrong}; healed by {right[0]} after pauses of {pauses} s")
