"""DHCP's sockets (I/O): one per interface and port, bound to the interface, feeding the pure Responder."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from ipaddress import IPv4Address
from typing import cast

from control.dhcp import Responder
from control.dhcp_packet import ANY, Packet, encode, parse
from plumbing import clock
from plumbing.errors import CorruptError, NetworkError

log = logging.getLogger(__name__)

SERVER_PORT, CLIENT_PORT, PXE_PORT = 67, 68, 4011


class DhcpEndpoint(asyncio.DatagramProtocol):
    """One interface: parse, ask the responder, send the answer where RFC 2131 §4.1 wants it."""

    def __init__(self, responder: Responder, address: IPv4Address, interface: str, port: int) -> None:
        self._responder, self._address, self._interface, self._port = responder, address, interface, port
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket that asyncio made."""
        # asyncio's own datagram transport is no DatagramTransport by class before Python 3.12
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one datagram, or drop it."""
        try:
            packet = parse(data)
            answer = self._responder.reply(packet, self._address, clock.monotonic(), port=self._port)
        except CorruptError as error:
            log.debug("dhcp: %s on %s: %s", addr[0], self._interface, error)
            return
        if answer is not None:
            self._send(packet, answer, addr)

    def _send(self, packet: Packet, answer: Packet, asker: tuple[str, int]) -> None:
        assert self._transport is not None
        if self._port == PXE_PORT:
            target = asker
        elif packet.giaddr != ANY:
            target = (str(packet.giaddr), SERVER_PORT)
        elif packet.ciaddr != ANY:
            target = (str(packet.ciaddr), CLIENT_PORT)
        else:
            target = ("255.255.255.255", CLIENT_PORT)
        self._transport.sendto(encode(answer), target)
        assert answer.message is not None
        log.info("dhcp: %s %s on %s: %s %s", answer.message.name.lower(), packet.mac.hex(":"), self._interface,
                 answer.yiaddr, answer.boot_file.decode("ascii", "replace"))

    def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()


def _socket(interface: str, port: int) -> socket.socket:
    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        channel.bind(("0.0.0.0", port))
    except OSError as error:
        channel.close()
        raise NetworkError(f"DHCP cannot listen on {interface} port {port} ({error.strerror}); run as root, name an "
                           "interface that exists in [[dhcp.subnet]], and stop any other DHCP server") from error
    channel.setblocking(False)
    return channel


async def serve(responder: Responder, interfaces: dict[str, IPv4Address]) -> list[DhcpEndpoint]:
    """Listen on each interface (name -> our address there); raises NetworkError when one cannot be bound."""
    loop = asyncio.get_running_loop()
    endpoints: list[DhcpEndpoint] = []
    for interface, address in interfaces.items():
        for port in (SERVER_PORT, PXE_PORT):
            channel = _socket(interface, port)
            _, endpoint = await loop.create_datagram_endpoint(
                partial(DhcpEndpoint, responder, address, interface, port), sock=channel)
            endpoints.append(endpoint)
    return endpoints
