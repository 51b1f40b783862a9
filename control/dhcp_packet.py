"""DHCP packets (pure): bytes to values and back, RFC 2131; hostile input raises CorruptError.

Options that occur more than once are concatenated (RFC 3396). Option overload (52) is honoured when reading.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address

from plumbing.errors import CorruptError

COOKIE = b"\x63\x82\x53\x63"
_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
REQUEST, REPLY = 1, 2
ANY = IPv4Address(0)


class Message(IntEnum):
    """Option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """The option codes we read or write."""

    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    DOMAIN = 15
    REQUESTED_ADDRESS = 50
    LEASE_S = 51
    OVERLOAD = 52
    MESSAGE = 53
    SERVER_ID = 54
    VENDOR_CLASS = 60
    TFTP_SERVER = 66
    BOOT_FILE = 67
    USER_CLASS = 77
    CLIENT_ARCH = 93
    CLIENT_UUID = 97
    IPXE = 175


@dataclass(frozen=True)
class Packet:
    """One BOOTP packet; addresses as values, `mac` the first hlen bytes of chaddr, options by code."""

    op: int
    xid: int
    mac: bytes
    flags: int = 0
    ciaddr: IPv4Address = ANY
    yiaddr: IPv4Address = ANY
    siaddr: IPv4Address = ANY
    giaddr: IPv4Address = ANY
    boot_file: bytes = b""
    options: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def message(self) -> Message | None:
        """The DHCP message type; None for BOOTP or an unknown type."""
        raw = self.options.get(Option.MESSAGE, b"")
        return Message(raw[0]) if len(raw) == 1 and raw[0] in list(Message) else None

    def address(self, code: Option) -> IPv4Address | None:
        """Return a 4-byte option as an address; None when absent or of another length."""
        raw = self.options.get(code, b"")
        return IPv4Address(raw) if len(raw) == 4 else None


def _options(data: bytes, into: dict[int, bytes]) -> None:
    position = 0
    while position < len(data):
        code = data[position]
        if code == 255:
            return
        position += 1
        if code == 0:
            continue
        if position >= len(data):
            raise CorruptError("a DHCP option has no length")
        length = data[position]
        position += 1
        if position + length > len(data):
            raise CorruptError("a DHCP option runs past the packet")
        into[code] = into.get(code, b"") + data[position:position + length]
        position += length


def parse(data: bytes) -> Packet:
    """Read one datagram; raises CorruptError when it is not DHCP over Ethernet."""
    if len(data) < _FIXED.size:
        raise CorruptError("shorter than a DHCP packet")
    (op, htype, hlen, _hops, xid, _secs, flags, ciaddr, yiaddr, siaddr, giaddr,
     chaddr, sname, file, cookie) = _FIXED.unpack_from(data)
    if cookie != COOKIE or htype != 1 or hlen != 6 or op not in {REQUEST, REPLY}:
        raise CorruptError("not a DHCP packet of an Ethernet host")
    options: dict[int, bytes] = {}
    _options(data[_FIXED.size:], options)
    overload = options.get(Option.OVERLOAD, b"\0")[:1]
    if overload in {b"\x01", b"\x03"}:
        _options(file, options)
    if overload in {b"\x02", b"\x03"}:
        _options(sname, options)
    return Packet(op, xid, chaddr[:6], flags, IPv4Address(ciaddr), IPv4Address(yiaddr), IPv4Address(siaddr),
                  IPv4Address(giaddr), b"" if overload in {b"\x01", b"\x03"} else file.split(b"\0")[0], options)


def encode(packet: Packet) -> bytes:
    """Return the datagram; options longer than 255 bytes are split, the whole is at least 300 bytes long."""
    tail = bytearray()
    for code, value in packet.options.items():
        for start in range(0, len(value), 255) if value else (0,):
            piece = value[start:start + 255]
            tail += bytes([code, len(piece)]) + piece
    tail.append(255)
    if len(packet.boot_file) > 127:
        raise CorruptError("the boot file's name is longer than 127 bytes")
    head = _FIXED.pack(packet.op, 1, 6, 0, packet.xid, 0, packet.flags, packet.ciaddr.packed, packet.yiaddr.packed,
                       packet.siaddr.packed, packet.giaddr.packed, packet.mac, b"", packet.boot_file, COOKIE)
    return (head + bytes(tail)).ljust(300, b"\0")
