"""DHCP against a real client (busybox udhcpc) and hostile packets, in network namespaces."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from conftest import Wire

from control import dhcp_server
from control.dhcp import Reservation, Responder, Settings, Subnet
from control.dhcp_packet import REPLY, REQUEST, Message, Option, Packet, encode, parse
from lab.network import Network
from plumbing.run import Completed

pytestmark = pytest.mark.root

SERVER = IPv4Address("10.77.1.1")
KNOWN = IPv4Address("10.77.1.11")
SCRIPT = "http://10.77.1.1:8080/boot/ipxe?mac="


def settings(mac: str, *, known_only: bool = True, proxy: bool = False) -> Settings:
    subnet = Subnet(IPv4Network("10.77.1.0/24"), SERVER, SERVER, (SERVER,), "lab.example",
                    IPv4Address("10.77.1.100"), IPv4Address("10.77.1.103"))
    return Settings((subnet,), {bytes.fromhex(mac.replace(":", "")): Reservation("alpha", KNOWN)}, SCRIPT,
                    "http://10.77.1.1:8080/boot/http/{mac}/recovery.efi", known_only=known_only, proxy=proxy)


def start(wire: Wire, wanted: Settings) -> Responder:
    responder = Responder(wanted)
    endpoints = wire.serve(dhcp_server.serve(responder, {"lan1": SERVER}))
    wire.closers.extend(endpoint.close for endpoint in endpoints)
    return responder


def udhcpc(wire: Wire, tmp_path: Path, *options: str) -> Completed:
    script = tmp_path / "told"
    script.write_text("#!/bin/sh\n[ \"$1\" = deconfig ] || env\n")
    script.chmod(0o755)
    return wire.ask("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-s", script,
                    "-O", "hostname", "-O", "bootfile", *options, check=False)


def test_a_known_host_gets_its_own_address_and_name(wire: Wire, tmp_path: Path) -> None:
    start(wire, settings(wire.mac))
    told = udhcpc(wire, tmp_path).text
    assert f"ip={KNOWN}" in told
    assert "hostname=alpha" in told
    assert "router=10.77.1.1" in told
    assert "boot_file" not in told


@pytest.mark.parametrize(("arch", "file"), [("0000", "undionly.kpxe"), ("0007", "ipxe.efi"), ("0009", "ipxe.efi")])
def test_firmware_is_sent_to_ipxe_by_tftp(wire: Wire, tmp_path: Path, arch: str, file: str) -> None:
    start(wire, settings(wire.mac))
    told = udhcpc(wire, tmp_path, "-V", f"PXEClient:Arch:000{arch[-2:]}", "-x", f"0x5d:{arch}").text
    assert f"boot_file={file}" in told
    assert "siaddr=10.77.1.1" in told


def test_ipxe_is_sent_to_its_script(wire: Wire, tmp_path: Path) -> None:
    start(wire, settings(wire.mac))
    told = udhcpc(wire, tmp_path, "-V", "PXEClient", "-x", "0x4d:" + b"iPXE".hex()).text
    assert f"boot_file={SCRIPT}{wire.mac}" in told


def test_an_unknown_host_gets_nothing_unless_the_site_wants_it(wire: Wire, tmp_path: Path) -> None:
    responder = start(wire, settings("02:00:00:00:00:01"))
    assert udhcpc(wire, tmp_path).status != 0
    responder.settings = settings("02:00:00:00:00:01", known_only=False)
    assert "ip=10.77.1.100" in udhcpc(wire, tmp_path).text


@pytest.fixture
def client_socket(wire: Wire) -> Iterator[socket.socket]:
    """A socket on port 68 of the client's interface; made in a thread that enters the client's namespace."""
    made: list[socket.socket] = []

    def make() -> None:
        with Network(wire.client.removeprefix("reroot-")).inside():
            channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            channel.bind(("0.0.0.0", 68))
            channel.settimeout(3)
            made.append(channel)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    yield made[0]
    made[0].close()


def discover(mac: bytes, xid: int = 1) -> bytes:
    return encode(Packet(REQUEST, xid, mac, 0x8000, options={Option.MESSAGE: bytes([Message.DISCOVER])}))


def asked(client: socket.socket, packet: bytes, port: int = 67) -> Packet:
    """Send and repeat, as clients do when a datagram drowns in a flood, until our own answer comes."""
    wanted = parse(packet).xid
    for _ in range(5):
        client.sendto(packet, ("10.77.1.1", port))
        with suppress(TimeoutError):
            while (answer := parse(client.recv(2048))).xid != wanted:
                assert answer.op == REPLY
            return answer
    raise AssertionError("the known host was never answered")


def test_a_flood_of_invented_hosts_leaves_known_hosts_served(wire: Wire, client_socket: socket.socket) -> None:
    """Fault 19: the range runs dry, the reservation does not."""
    wire.ask("ip", "addr", "add", "10.77.1.200/24", "dev", "eth0")
    responder = start(wire, settings(wire.mac, known_only=False))
    for number in range(300):
        client_socket.sendto(discover(b"\x02\xff" + number.to_bytes(4, "big"), number), ("10.77.1.1", 67))
    mine = discover(bytes.fromhex(wire.mac.replace(":", "")), 0xABCD)
    answer = asked(client_socket, mine)
    assert answer.yiaddr == KNOWN
    assert len(responder.leases.held) == 4


def test_malformed_packets_are_dropped_and_the_server_lives(wire: Wire, client_socket: socket.socket) -> None:
    """Fault 19: truncated, overrunning and wrong packets."""
    wire.ask("ip", "addr", "add", "10.77.1.200/24", "dev", "eth0")
    start(wire, settings(wire.mac))
    good = discover(bytes.fromhex(wire.mac.replace(":", "")), 7)
    bad = [b"", b"\0", good[:200], good[:236] + b"\0\0\0\0" + good[240:], good[:241] + b"\xff" * 10, os.urandom(400),
           good[:240] + bytes([53, 200, 1]), b"\x02" + good[1:], good[:2] + b"\x10" + good[3:]]
    for data in bad:
        client_socket.sendto(data, ("10.77.1.1", 67))
    assert asked(client_socket, good).yiaddr == KNOWN


def test_proxy_answers_pxe_clients_only(wire: Wire, client_socket: socket.socket) -> None:
    wire.ask("ip", "addr", "add", "10.77.1.200/24", "dev", "eth0")
    start(wire, settings(wire.mac, proxy=True))
    mac = bytes.fromhex(wire.mac.replace(":", ""))
    client_socket.sendto(discover(mac, 1), ("10.77.1.1", 67))
    pxe = Packet(REQUEST, 2, mac, 0x8000, options={
        Option.MESSAGE: bytes([Message.DISCOVER]), Option.VENDOR_CLASS: b"PXEClient", Option.CLIENT_ARCH: b"\0\0"})
    answer = asked(client_socket, encode(pxe))
    assert (str(answer.yiaddr), answer.boot_file) == ("0.0.0.0", b"undionly.kpxe")
    request = Packet(REQUEST, 3, mac, options={**pxe.options, Option.MESSAGE: bytes([Message.REQUEST])})
    assert asked(client_socket, encode(request), 4011).message is Message.ACK
