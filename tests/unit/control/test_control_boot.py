"""The boot services as the server runs them: TFTP on loopback, DHCP's settings from the site's files."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from servers import free_port, make_site, serving

from control import config as configuration
from control.boot_services import FreshResponder, settings
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
