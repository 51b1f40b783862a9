"""The machine object proves itself on real Debian 12 hosts: BIOS and UEFI, power cuts, two subnets."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from lab.host import BuiltHost, HostSpec
from lab.qemu import Boot, Firmware, MachineSpec
from lab.session import Lab
from lab.ssh import HostKeyChanged
from plumbing.errors import CommandError

pytestmark = pytest.mark.root
OpenLab = Callable[..., Lab]
BuildHost = Callable[[HostSpec], BuiltHost]


def test_bios_host_survives_a_power_cut(open_lab: OpenLab, build_host: BuildHost) -> None:
    spec = HostSpec("alpha")
    built = build_host(spec)
    lab = open_lab()
    alpha = lab.machine("alpha", disks=[built.disk])
    alpha.start()
    alpha.wait_for_unit("multi-user.target")
    assert 'VERSION_ID="12"' in alpha.succeed("cat /etc/os-release")
    assert alpha.succeed("hostname").strip() == "alpha"
    assert alpha.read_file("/etc/machine-id").decode().strip() == built.machine_id
    assert alpha.read_file("/etc/ssh/ssh_host_ed25519_key.pub").decode().startswith(
        built.host_keys["ssh_host_ed25519_key.pub"])
    assert built.host_keys["ssh_host_ed25519_key.pub"] in alpha.ssh().host_keys()
    assert alpha.succeed("cat /sys/block/vda/serial") == "alpha-disk0"
    assert alpha.succeed("findmnt -no PARTUUID /").strip() == built.plan.partition("root").partuuid
    assert alpha.succeed("findmnt -no PARTUUID /local").strip() == built.plan.partition("local").partuuid
    assert alpha.read_file("/local/" + spec.local_file[0]) == spec.local_file[1]
    assert alpha.read_file("/" + spec.unlisted_file[0]) == spec.unlisted_file[1]
    assert alpha.succeed("crontab -l -u carol") == spec.crontab
    assert alpha.succeed("id -un", user="carol").strip() == "carol"
    assert "No such file" in alpha.fail("ls /sys/firmware/efi")
    assert alpha.screenshot().read_bytes().startswith(b"\x89PNG")

    with pytest.raises(CommandError, match=r"failed on alpha with status 3: gone") as told:
        alpha.succeed("echo gone >&2; exit 3")
    assert "its console" in told.value.sentence

    alpha.write_file("/root/kept", b"on disk")
    alpha.succeed("sync /root/kept; (while :; do date >> /root/growing; done) >/dev/null 2>&1 &")
    alpha.power_cut()
    assert not alpha.running
    alpha.start()
    alpha.wait_for_login()
    assert alpha.read_file("/root/kept") == b"on disk"

    alpha.wait_for_console("alpha login: ")
    alpha.send_console(f"{spec.user}\n")
    alpha.wait_for_console("Password: ", 60)
    alpha.send_console(f"{spec.password}\n")
    alpha.wait_for_console(r"carol@alpha:~\$ ", 60)
    status, words = alpha.console_command("cat /etc/hostname; false")
    assert (status, words) == (1, "alpha\n")

    alpha.succeed("rm /etc/ssh/ssh_host_ed25519_key* && ssh-keygen -A && systemctl restart ssh")
    alpha.ssh().close()
    with pytest.raises(HostKeyChanged, match="another ssh host key"):
        alpha.wait_for_login()
    alpha.ssh().forget_host_keys()
    alpha.wait_for_login()
    alpha.shutdown()
    assert not alpha.running


def test_uefi_and_bios_hosts_on_two_subnets(open_lab: OpenLab, build_host: BuildHost) -> None:
    lab = open_lab(subnets=(1, 2))
    alpha = lab.machine("alpha", disks=[build_host(HostSpec("alpha")).disk])
    bravo = lab.machine("bravo", subnet=2, spec=MachineSpec(firmware=Firmware.UEFI),
                        disks=[build_host(HostSpec("bravo", subnet=2, firmware=Firmware.UEFI)).disk])
    assert (alpha.address, bravo.address) == ("10.77.1.10", "10.77.2.10")
    alpha.start()
    bravo.start()
    for machine in (alpha, bravo):
        machine.wait_for_unit("ssh.service")
    for machine, other in ((alpha, bravo), (bravo, alpha)):
        # bash's own TCP client: these hosts have neither ping nor nc
        machine.succeed(f"exec 3<>/dev/tcp/{other.address}/22 && head -c 4 <&3 | grep SSH-")
    lab.program(["python3", "-m", "http.server", "--bind", lab.control_address, "8000"], name="http", cwd=lab.scratch)
    for machine in (alpha, bravo):
        machine.wait_until_succeeds(f"exec 3<>/dev/tcp/{lab.control_address}/8000 && "
                                    "printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep '200 OK'", 30)
    bravo.succeed("test -d /sys/firmware/efi/efivars && findmnt -no FSTYPE /boot/efi | grep vfat")
    alpha.unplug_network()
    bravo.fail(f"timeout 5 bash -c 'exec 3<>/dev/tcp/{alpha.address}/22'")
    alpha.plug_network()
    bravo.power_cut()
    bravo.start()
    bravo.wait_for_login()
    bravo.shutdown()
    alpha.shutdown()


def test_a_machine_that_says_nothing_fails_clearly(open_lab: OpenLab) -> None:
    lab = open_lab()
    empty = lab.machine("empty")
    with pytest.raises(CommandError, match="empty is off; start it first"):
        empty.reset()
    empty.start()
    with pytest.raises(CommandError, match="empty is on already"):
        empty.start()
    assert empty.qmp.status() == "running"
    with pytest.raises(CommandError, match=r"'login:' did not appear within 0 s on empty's console"):
        empty.wait_for_console("login:", 0)
    with pytest.raises(CommandError, match="nobody could log in to empty"):
        empty.wait_for_login(0)
    empty.qmp.quit()
    empty.wait_for_power_off(30)
    with pytest.raises(CommandError, match="it is off"):
        empty.wait_for_console("login:", 0)
    with pytest.raises(CommandError, match=r"can't be switched on: .*unable to find CPU model"):
        empty.start(MachineSpec(cpu="no-such-processor"))


@pytest.mark.parametrize(("firmware", "architecture"), [(Firmware.BIOS, 0), (Firmware.UEFI, 7)])
def test_network_boot_asks_for_an_address(open_lab: OpenLab, firmware: Firmware, architecture: int) -> None:
    lab = open_lab()
    with lab.network.inside():
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind(("", 67))
    listener.settimeout(60)
    bare = lab.machine("bare", host=200, spec=MachineSpec(firmware=firmware, boot=Boot.NET, memory_mib=512))
    bare.start()
    with listener:
        asked = listener.recv(4096)
    assert asked[28:34].hex(":") == bare.mac
    assert bytes([93, 2, 0, architecture]) in asked[240:], "DHCP option 93 names the firmware"
