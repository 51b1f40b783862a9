"""The boot services as the server runs them: TFTP on loopback, DHCP's settings from the site's files."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from servers import free_port, make_site, serving

from control import config as configuration
from control import tftp
from control.boot_services import FreshResponder, settings
from control.dhcp import Leases, Responder, Subnet
from control.dhcp_packet import REQUEST, Message, Option, Packet
from fleet.hosts import Host, HostsFile, parse

DHCP = """
[[dhcp.subnet]]
interface = "lo"
network = "10.1.0.0/24"
server = "10.1.0.1"
router = "10.1.0.1"
dns = ["10.1.0.1"]
"""


@pytest.fixture
def config(tmp_path: Path) -> configuration.Config:
    return configuration.parse(f'[server]\npublic_url = "http://10.1.0.1:8080"\n{DHCP}', tmp_path / "reroot.toml")


def test_settings(config: configuration.Config) -> None:
    hosts = parse('[[host]]\nname = "alpha"\nmacs = ["52:54:00:00:00:01"]\naddress = "10.1.0.11/24"\n'
                  '[[host]]\nname = "beta"\nmacs = ["52:54:00:00:00:02"]\n')
    made = settings(config, hosts)
    assert made.script_url == "http://10.1.0.1:8080/boot/ipxe?mac="
    assert made.http_boot_url == "http://10.1.0.1:8080/boot/http/{mac}/recovery.efi"
    assert {host.name: str(host.address) for host in made.reservations.values()} == {"alpha": "10.1.0.11"}


def test_new_host_is_answered_at_once(config: configuration.Config, tmp_path: Path) -> None:
    (tmp_path / "hosts.toml").write_text("")
    file = HostsFile(tmp_path / "hosts.toml")
    responder = FreshResponder(config, file)
    packet = Packet(REQUEST, 1, bytes.fromhex("525400000001"), options={Option.MESSAGE: bytes([Message.DISCOVER])})
    assert responder.reply(packet, IPv4Address("10.1.0.1"), 0.0) is None
    file.add(Host(name="alpha", macs=("52:54:00:00:00:01",), address="10.1.0.11/24"))
    offer = responder.reply(packet, IPv4Address("10.1.0.1"), 0.0)
    assert offer is not None
    assert str(offer.yiaddr) == "10.1.0.11"


def test_firmware_that_boots_by_http_gets_a_url_of_its_own(config: configuration.Config) -> None:
    responder = Responder(settings(config, parse(
        '[[host]]\nname = "alpha"\nmacs = ["52:54:00:00:00:01"]\naddress = "10.1.0.11/24"\n')))
    asked: dict[int, bytes] = {Option.MESSAGE: bytes([Message.DISCOVER]),
                               Option.VENDOR_CLASS: b"HTTPClient:Arch:00016:UNDI:003001"}

    def offered(arch: int) -> Packet:
        packet = Packet(REQUEST, 1, bytes.fromhex("525400000001"),
                        options={**asked, Option.CLIENT_ARCH: arch.to_bytes(2, "big")})
        answer = responder.reply(packet, IPv4Address("10.1.0.1"), 0.0)
        assert answer is not None
        return answer

    answer = offered(16)
    assert answer.options[Option.VENDOR_CLASS] == b"HTTPClient"
    assert answer.options[Option.BOOT_FILE] == b"http://10.1.0.1:8080/boot/http/52-54-00-00-00-01/recovery.efi"
    assert Option.BOOT_FILE not in offered(19).options, "no program for a 64-bit ARM"


async def test_who_never_acknowledged_holds_no_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a few made-up addresses asked for long time-outs and held every transfer for a minute."""
    monkeypatch.setattr(tftp, "FIRST_TIMEOUT_S", 0.02)
    (tmp_path / "file").write_bytes(b"x" * 30_000)
    server = await tftp.serve(tmp_path, "127.0.0.1", port := free_port())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.setblocking(False)
        silent.sendto(struct.pack("!H", 1) + b"file\0octet\0timeout\0008\0", ("127.0.0.1", port))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):  # one time-out of those that were asked for takes longer
            said = [await loop.sock_recv(silent, 600) for _ in range(1 + tftp.FIRST_REPEATS)]
            while server._running:
                await asyncio.gather(*(task for _, task in server._running.values()), return_exceptions=True)
        assert len(set(said)) == 1
        with pytest.raises(BlockingIOError):
            silent.recv(600)
    await server.close()


def test_a_full_range_is_looked_through_when_a_lease_ends_and_not_before() -> None:
    subnet = Subnet(IPv4Network("10.0.0.0/24"), IPv4Address("10.0.0.1"), first=IPv4Address("10.0.0.2"),
                    last=IPv4Address("10.0.0.5"))
    leases, looked = Leases(), 0

    def reserved() -> Iterator[IPv4Address]:
        nonlocal looked
        looked += 1
        yield IPv4Address("10.0.0.5")

    def ask(mac: bytes, now: float) -> str:
        return str(leases.address_for(mac, subnet, reserved(), now, 60.0))

    assert [ask(bytes([n]), float(n)) for n in range(3)] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    assert [ask(bytes([9, n]), 10.0) for n in range(100)] == ["None"] * 100
    assert looked == 4
    assert ask(b"\1", 11.0) == "10.0.0.3"  # who has an address keeps it
    assert [ask(b"\7", 59.9), ask(b"\7", 60.0)] == ["None", "10.0.0.2"]
    assert ask(b"\x08", 61.0) == "None"
    leases.give_back(b"\7")
    assert ask(b"\x08", 61.0) == "10.0.0.2"


def test_tftp_runs_with_the_server(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    port = free_port()
    site.config.write_text(site.config.read_text().replace(
        "[tftp]\nenabled = false", f'[tftp]\nenabled = true\nlisten = "127.0.0.1:{port}"'))
    (site.boot / "undionly.kpxe").write_bytes(b"ipxe")
    with serving(site), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(struct.pack("!H", 1) + b"undionly.kpxe\0octet\0", ("127.0.0.1", port))
        data, _ = client.recvfrom(600)
    assert data == struct.pack("!HH", 3, 1) + b"ipxe"
