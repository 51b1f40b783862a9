"""The whole road on real machines: upgrades, installs, and what happens when something goes wrong on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import Begin, Tell

from lab import demo, fleet, roots
from lab.demo import Demo, Wish
from lab.qemu import Disk

pytestmark = pytest.mark.root

BLOCK = 4096
OLD, NEW = "Debian GNU/Linux 12 (bookworm)", "Debian GNU/Linux 13 (trixie)"
BEFORE_WIPE = ("preserve: begins", "wipe: begins")
"""A cut as these begin finds the boot default still at the old system."""
PHASES = ("network", "order", "disks", "preserve", "wipe", "restore", "verify", "putback", "bootloader", "finish")


def check_kept(story: demo.Story, tell: Tell) -> None:
    tell(demo.table(story))
    assert demo.lost(story) == []
    for name, after in story.after.items():
        assert after.answers["system"] == NEW, name
        assert after.answers["unlisted file"] == "archived, reported", name


def test_a_debian_12_host_becomes_a_debian_13_host(begin: Begin, tell: Tell, tmp_path: Path) -> None:
    run = begin(Wish())
    story = run.upgrade()
    check_kept(story, tell)
    assert set(PHASES) <= set(story.phases["alpha"])
    machine = run.hosts[0].on
    assert machine.succeed("mount | grep -c ' / '").strip() == "1"
    assert machine.succeed("passwd -S carol").split()[1] == "P", "the password is still one"
    assert "reroot.local" not in machine.read_file("/proc/cmdline").decode()
    tickets = [event["data"] for event in run.control.events("alpha") if event["phase"] == "stage"]
    assert any(data.get("tickets") for data in tickets if isinstance(data, dict)), "a ticket was held while staging"
    services = run.control.get("/status")["tickets"]
    assert "alpha" not in str(services), "and given back"
    assert run.mailbox.messages == []
    tell(check_second_copy(run, tmp_path / "extracted"))


def check_second_copy(run: Demo, into: Path) -> str:
    """Its /local is on the disk of /: precious files are on the server, for whoever has the recovery key."""
    (done,) = [event["data"] for event in run.control.events("alpha")
               if (event["phase"], event["event"]) == ("preserve", "done")]
    assert isinstance(done, dict)
    told = done["second_copy"]
    assert told["stored"], told
    path = "/etc/ssh/ssh_host_ed25519_key"
    run.control.command("precious", "extract", "alpha", path, "/home", "-C", into,
                        "--key", run.control.folder / "keys/recovery.pem")
    machine = run.hosts[0].on
    for file in [into / path[1:], *(file for file in (into / "home").rglob("*") if file.is_file())]:
        assert file.read_bytes() == machine.read_file(f"/{file.relative_to(into)}"), file
    audit = run.control.command("precious", "audit", "alpha", "--json").text
    assert [line["what"] for line in json.loads(audit)][-2:] == ["list", "fetch"]
    return f"second copy: {told['bytes']} bytes in {told['seconds']} s"


def test_two_uefi_hosts_with_xfs_roots_on_two_subnets_roll_out(begin: Begin, tell: Tell) -> None:
    run = begin(Wish(hosts=2, uefi=True, root_fs="xfs"))
    story = run.upgrade()
    check_kept(story, tell)
    assert {host.spec.address.rsplit(".", 1)[0] for host in run.hosts} == {"10.77.1", "10.77.2"}
    rollouts = run.control.get("/rollouts")["rollouts"]
    assert isinstance(rollouts, list)
    assert [rollout["phase"] for rollout in rollouts] == ["done"]


def test_a_broken_uefi_machine_installs_itself_from_the_network(begin: Begin) -> None:
    run = begin(Wish(uefi=True, emergency=True, broken=True, root_fs="xfs"))
    _installed(run, run.install())


def test_a_blank_bios_machine_gets_logical_volumes_and_is_upgraded_on_them(begin: Begin) -> None:
    run = begin(Wish(emergency=True, group="vg0"))
    _installed(run, run.install())
    machine = run.hosts[0].on
    for point, source in (("/", "/dev/mapper/vg0-root"), ("/local", "/dev/mapper/vg0-local")):
        assert machine.succeed(f"findmnt -no SOURCE {point}").strip() == source
    machine.succeed("vgck vg0 && echo mine > /local/mine && echo '# mine' > /etc/cron.d/mine")
    key = machine.read_file("/etc/ssh/ssh_host_ed25519_key.pub")
    run.order()
    run.follow()
    machine.wait_for_login(fleet.LOGIN_S)
    assert machine.read_file("/etc/ssh/ssh_host_ed25519_key.pub") == key
    assert machine.read_file("/local/mine") == b"mine\n"
    assert machine.succeed("findmnt -no SOURCE /").strip() == "/dev/mapper/vg0-root"
    assert b"vg0-root" in machine.read_file("/proc/cmdline")
    machine.succeed("vgck vg0")


def _installed(run: Demo, story: demo.Story) -> None:
    assert story.after["alpha"].answers["system"] == NEW
    assert story.after["alpha"].answers["host name"] == "alpha"
    run.hosts[0].on.succeed("test -s /etc/ssh/ssh_host_ed25519_key && mountpoint /local")


def test_power_cuts_in_every_phase_lose_nothing(begin: Begin, tell: Tell) -> None:
    """Fault 1: kill -9 of QEMU as each phase begins, and amid the longest ones; the machine comes back by itself."""
    run = begin(Wish())
    before = run.boot_fleet()
    run.order()
    machine, outcomes = run.hosts[0].on, []
    for cut in ("preserve: begins", "wipe: begins", "restore: begins", r"restore: .* of ", r"verify: .* of ",
                "putback: begins", "bootloader: begins", "finish: begins"):
        machine.wait_for_console(cut, 240)
        machine.power_cut()
        machine.start()
        came = machine.wait_for_console(r"reroot \[ *[\d.]+\] init|login:", 120).group(0)
        outcomes.append((cut, "recovery goes on" if "init" in came else "a system starts"))
        if "login" in came and cut != "finish: begins":
            assert cut in BEFORE_WIPE, "after the wipe nothing but recovery may start"
            machine.wait_for_login(fleet.LOGIN_S)
            assert machine.succeed(". /etc/os-release; echo $PRETTY_NAME").strip() == OLD
    story = run.compare(dict(before), run.follow())
    tell("\n".join(f"power cut at {cut:<22} {outcome}" for cut, outcome in outcomes))
    check_kept(story, tell)


def test_a_host_that_cannot_go_on_mails_and_heals_when_the_server_is_back(begin: Begin, tell: Tell) -> None:
    """The new root rots and the server dies while it is verified: last gasp, rescue menu, and the same order again."""
    run = begin(Wish(attempts=1))
    before = run.boot_fleet()
    run.order()
    machine = run.hosts[0].on
    machine.wait_for_console(r"verify: begins", 240)
    machine.qmp.execute("stop")
    damage_root(run)
    run.control.kill()
    machine.qmp.execute("cont")
    mail = run.mailbox.wait_for_mail(400)[0]
    text = mail.get_content()
    assert mail["Subject"] and "alpha" in str(mail["Subject"])
    for word in ("alpha", "verify", "corrupt", "order"):
        assert word in text, text
    machine.wait_for_console("a shell on this console", 60)
    run.control.start()
    machine.send_console("2\n")
    check_kept(run.compare(dict(before), run.follow(forgive=True)), tell)


def damage_root(run: Demo) -> None:
    """Write noise amid the largest files of the new root on the host's disk image, as a dying disk would."""
    built = run.hosts[0].built
    assert built is not None
    root = built.plan.partition("root")
    files = [path for path in roots.root_tree(fleet.RELEASE_ROOT).rglob("*")
             if path.is_file() and not path.is_symlink()]
    wanted = set()
    for path in sorted(files, key=lambda path: path.stat().st_size)[-40:]:
        with path.open("rb") as content:
            content.seek(path.stat().st_size // 2 // BLOCK * BLOCK)
            wanted.add(content.read(BLOCK))
    hit = 0
    with built.image.open("r+b", buffering=0) as disk:
        for place in range(root.offset, root.offset + root.size, BLOCK):
            if os.pread(disk.fileno(), BLOCK, place) in wanted:
                os.pwrite(disk.fileno(), os.urandom(BLOCK), place)
                hit += 1
    assert hit > 20, "the new root was not found on the disk"


def test_another_disk_leaves_the_host_as_it_was(begin: Begin) -> None:
    """Fault 6: the disk that the order names is not there; the old system starts again, untouched, and it is told."""
    run = begin(Wish(attempts=1))
    before = run.boot_fleet()
    run.order()
    machine = run.hosts[0].on
    machine.wait_for_console(r"reboot: (Restarting system|machine restart)", 240)
    machine.power_cut()
    machine.disks = (Disk(machine.disks[0].path, "another-disk"),)
    machine.start()
    machine.wait_for_console(r"disks: FAILED .*another-disk", 120)
    machine.wait_for_login(fleet.LOGIN_S)
    assert fleet.Facts.read(machine, run.hosts[0].spec).answers == before["alpha"].answers
    assert run.control.order_of("alpha")["state"] == "failed"
    assert "alpha-disk0" in str(run.control.order_of("alpha")["message"])
    assert '"wipe"' not in machine.read_file("/local/recover/journal").decode()


def test_a_nearly_full_local_leaves_the_host_as_it_was(begin: Begin, tell: Tell) -> None:
    """Fault 4: there is room for the stage, and none for what is precious; the old system starts again, untouched."""
    film, left = 200 << 20, 260 << 20

    def dress(root: Path) -> None:
        (root / "srv/film").write_bytes(os.urandom(film))

    run = begin(Wish(attempts=1, dress=dress))
    before = run.boot_fleet()
    machine = run.hosts[0].on
    machine.succeed(f"fallocate -l $(($(df --output=avail --block-size=1 /local | tail -1) - {left})) /local/somebodys")
    digest = machine.succeed("sha256sum /srv/film")
    run.order()
    failed = machine.wait_for_console(r"preserve: FAILED .*MiB free and keeping the precious files takes .*", 1200)
    machine.wait_for_login(fleet.LOGIN_S)
    assert fleet.Facts.read(machine, run.hosts[0].spec).answers == before["alpha"].answers
    assert machine.succeed("sha256sum /srv/film") == digest
    order = run.control.order_of("alpha")
    assert order["state"] == "failed"
    assert '"wipe"' not in machine.read_file("/local/recover/journal").decode()
    tell(f"{failed.group(0)}\nthe old system runs: {before['alpha'].answers['system']}; order: {order['message']}")
