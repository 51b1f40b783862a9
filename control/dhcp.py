"""DHCP and proxyDHCP: the rules (pure) of who gets which address and which boot file.

Packets come from `dhcp_packet`, sockets are in `dhcp_server`. Protocol: docs/protocols/boot.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from control.dhcp_packet import ANY, REPLY, REQUEST, Message, Option, Packet

ARCH_BIOS, ARCH_EFI_HTTP_X64 = 0, 16
BOOT_FILES: Mapping[int, str] = {ARCH_BIOS: "undionly.kpxe", 7: "ipxe.efi", 9: "ipxe.efi", 11: "ipxe-arm64.efi"}
"""Client architecture (option 93) -> file in the boot folder."""
OFFER_S = 60.0
"""How long an offered address is held for a client that has not asked for it yet, in seconds."""


@dataclass(frozen=True)
class Subnet:
    """A network we answer on; `first` to `last` is the range for hosts without a reservation, if any."""

    network: IPv4Network
    server: IPv4Address
    router: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    domain: str = ""
    first: IPv4Address | None = None
    last: IPv4Address | None = None


@dataclass(frozen=True)
class Reservation:
    """A known host: its name and the address that is its own."""

    name: str
    address: IPv4Address


@dataclass(frozen=True)
class Settings:
    """What the site wants; `script_url` is the iPXE script's URL up to the MAC address.

    `http_boot_url` is where firmware with HTTP boot finds its program, `{mac}` in it being the machine's.
    """

    subnets: tuple[Subnet, ...]
    reservations: Mapping[bytes, Reservation]
    script_url: str
    http_boot_url: str
    lease_s: int = 3600
    proxy: bool = False
    known_only: bool = True


@dataclass
class Leases:
    """Addresses given from ranges: MAC -> (address, end). Reservations are never in here.

    `full` remembers of a range without a free address when the first lease there ends, so that a flood of made-up MAC
    addresses does not have the server look through it each time.
    """

    held: dict[bytes, tuple[IPv4Address, float]] = field(default_factory=dict)
    full: dict[Subnet, float] = field(default_factory=dict)

    def address_for(self, mac: bytes, subnet: Subnet, reserved: Iterable[IPv4Address], now: float,
                    lifetime_s: float) -> IPv4Address | None:
        """Return this client's address of the subnet's range, old or newly held; None when all are taken."""
        mine = self.held.get(mac)
        if mine is not None and mine[0] in subnet.network:
            self.held[mac] = (mine[0], max(mine[1], now + lifetime_s))
            return mine[0]
        if subnet.first is None or subnet.last is None or now < self.full.get(subnet, now):
            return None
        taken = {address for address, end in self.held.values() if end > now} | set(reserved)
        for number in range(int(subnet.first), int(subnet.last) + 1):
            address = IPv4Address(number)
            if address not in taken:
                self.held = {other: lease for other, lease in self.held.items() if lease[0] != address}
                self.held[mac] = (address, now + lifetime_s)
                return address
        self.full[subnet] = min((end for address, end in self.held.values() if end > now and address in subnet.network),
                                default=now + OFFER_S)
        return None

    def give_back(self, mac: bytes) -> None:
        """End the lease of a client that has no use for it."""
        if self.held.pop(mac, None) is not None:
            self.full.clear()


def _architecture(packet: Packet) -> int | None:
    raw = packet.options.get(Option.CLIENT_ARCH, b"")
    return int.from_bytes(raw[:2], "big") if len(raw) >= 2 else None


def is_ipxe(packet: Packet) -> bool:
    """Tell iPXE from other firmware: user class `iPXE` (with or without RFC 3004 lengths) or option 175."""
    return b"iPXE" in packet.options.get(Option.USER_CLASS, b"") or Option.IPXE in packet.options


def boot_options(packet: Packet, settings: Settings, server: IPv4Address) -> tuple[bytes, dict[int, bytes]]:
    """Return the boot file field and the options that tell this client what to load; empty for no network boot."""
    vendor = packet.options.get(Option.VENDOR_CLASS, b"")
    if is_ipxe(packet):
        url = f"{settings.script_url}{packet.mac.hex(':')}".encode()
        return url, {Option.BOOT_FILE: url}
    arch = _architecture(packet)
    if vendor.startswith(b"HTTPClient") and arch == ARCH_EFI_HTTP_X64:
        url = settings.http_boot_url.replace("{mac}", packet.mac.hex("-")).encode()
        return url, {Option.VENDOR_CLASS: b"HTTPClient", Option.BOOT_FILE: url}
    if vendor.startswith(b"PXEClient") and arch is not None and arch in BOOT_FILES:
        name = BOOT_FILES[arch].encode()
        # Option 43 with discovery control 8: take the boot file from this packet, ask no boot server.
        return name, {Option.VENDOR_CLASS: b"PXEClient", Option.TFTP_SERVER: str(server).encode(),
                      Option.BOOT_FILE: name, 43: bytes([6, 1, 8, 255])}
    return b"", {}


class Responder:
    """Packets and `now` in, replies out; keeps the leases of the ranges."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.leases = Leases()

    def reply(self, packet: Packet, arrived_on: IPv4Address, now: float, *, port: int = 67) -> Packet | None:
        """Return the answer to a packet that came in on our address `arrived_on`, or None for silence.

        `port` is where it came in: 4011 is the PXE boot server port, which gives boot files only.
        """
        if packet.op != REQUEST or packet.message is None:
            return None
        if self.settings.proxy or port == 4011:
            return self._proxy(packet, arrived_on)
        subnet = self._subnet(packet.giaddr if packet.giaddr != ANY else arrived_on)
        if subnet is None:
            return None
        if packet.message is Message.RELEASE:
            self.leases.give_back(packet.mac)
        if packet.message not in {Message.DISCOVER, Message.REQUEST, Message.INFORM}:
            return None
        return self._address(packet, subnet, now)

    def _subnet(self, place: IPv4Address) -> Subnet | None:
        return next((subnet for subnet in self.settings.subnets if place in subnet.network), None)

    def _proxy(self, packet: Packet, server: IPv4Address) -> Packet | None:
        file, options = boot_options(packet, self.settings, server)
        if not file or packet.message not in {Message.DISCOVER, Message.REQUEST, Message.INFORM}:
            return None
        kind = Message.OFFER if packet.message is Message.DISCOVER else Message.ACK
        return self._answer(packet, kind, server, ANY, file, options)

    def _address(self, packet: Packet, subnet: Subnet, now: float) -> Packet | None:
        chosen = packet.address(Option.SERVER_ID)
        if packet.message is Message.REQUEST and chosen is not None and chosen != subnet.server:
            self.leases.give_back(packet.mac)
            return None  # the client took another server's offer
        settings = self.settings
        known = settings.reservations.get(packet.mac)
        if known is not None and known.address in subnet.network:
            address: IPv4Address | None = known.address
        elif settings.known_only and known is None:
            return None
        else:
            taken = [host.address for host in settings.reservations.values()] + [subnet.server]
            held_s = OFFER_S if packet.message is Message.DISCOVER else float(settings.lease_s)
            address = self.leases.address_for(packet.mac, subnet, taken, now, held_s)
        if address is None:
            return None
        file, options = boot_options(packet, settings, subnet.server)
        options |= self._network(subnet, settings.lease_s)
        if known is not None:
            options[Option.HOSTNAME] = known.name.encode()
        if packet.message is Message.DISCOVER:
            return self._answer(packet, Message.OFFER, subnet.server, address, file, options)
        if packet.message is Message.INFORM:
            options.pop(Option.LEASE_S)
            return self._answer(packet, Message.ACK, subnet.server, ANY, file, options)
        wanted = packet.address(Option.REQUESTED_ADDRESS) or packet.ciaddr
        if wanted not in {ANY, address}:
            return self._answer(packet, Message.NAK, subnet.server, ANY, b"", {})
        return self._answer(packet, Message.ACK, subnet.server, address, file, options)

    @staticmethod
    def _network(subnet: Subnet, lease_s: int) -> dict[int, bytes]:
        options: dict[int, bytes] = {
            Option.SUBNET_MASK: subnet.network.netmask.packed, Option.LEASE_S: lease_s.to_bytes(4, "big")}
        if subnet.router is not None:
            options[Option.ROUTER] = subnet.router.packed
        if subnet.dns:
            options[Option.DNS] = b"".join(address.packed for address in subnet.dns)
        if subnet.domain:
            options[Option.DOMAIN] = subnet.domain.encode("idna")
        return options

    @staticmethod
    def _answer(packet: Packet, kind: Message, server: IPv4Address, address: IPv4Address, file: bytes,
                options: Mapping[int, bytes]) -> Packet:
        ours: dict[int, bytes] = {Option.MESSAGE: bytes([kind]), Option.SERVER_ID: server.packed}
        if Option.CLIENT_UUID in packet.options:
            ours[Option.CLIENT_UUID] = packet.options[Option.CLIENT_UUID]
        # A URL longer than the field is in option 67 alone.
        return Packet(REPLY, packet.xid, packet.mac, packet.flags, packet.ciaddr if kind is Message.ACK else ANY,
                      address, server if file else ANY, packet.giaddr, file if len(file) <= 127 else b"",
                      {**ours, **options})
