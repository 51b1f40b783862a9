"""DHCP and TFTP of a running server: their settings from reroot.toml and hosts.toml, their sockets' lifetime; I/O.

What they answer is control.dhcp's and control.tftp's; docs/protocols/boot.md.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, ip_interface

from control import dhcp, dhcp_server, tftp
from control.config import Config, split_listen
from control.dhcp_packet import Packet
from control.parts import Parts
from fleet.hosts import Hosts, HostsFile
from plumbing.errors import ConfigError, NetworkError

log = logging.getLogger("reroot.boot")


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[None]:
    """Run the services that the configuration enables inside the block; raises NetworkError, ConfigError."""
    async with AsyncExitStack() as stack:
        if parts.config.dhcp.enabled:
            await stack.enter_async_context(_dhcp(parts))
        if parts.config.tftp.enabled:
            await stack.enter_async_context(_tftp(parts))
        yield


@asynccontextmanager
async def _dhcp(parts: Parts) -> AsyncIterator[None]:
    interfaces = {subnet.interface: IPv4Address(subnet.server) for subnet in parts.config.dhcp.subnet}
    if not interfaces:
        raise ConfigError(f"{parts.site.config}: [dhcp] is enabled and there is no [[dhcp.subnet]]; add one for each "
                          "network, with interface, network and server")
    endpoints = await dhcp_server.serve(FreshResponder(parts.config, parts.hosts_file), interfaces)
    try:
        yield
    finally:
        for endpoint in endpoints:
            endpoint.close()


@asynccontextmanager
async def _tftp(parts: Parts) -> AsyncIterator[None]:
    section = parts.config.tftp
    if not any((parts.site.boot / name).exists() for name in dhcp.BOOT_FILES.values()):
        log.warning("%s has none of %s; copy them from iPXE, or firmware that boots by TFTP finds nothing",
                    parts.site.boot, ", ".join(sorted(set(dhcp.BOOT_FILES.values()))))
    host, port = split_listen(section.listen)
    try:
        server = await tftp.serve(parts.site.boot, host, port, max_transfers=section.max_transfers)
    except OSError as error:
        raise NetworkError(f"[tftp] listen = {section.listen!r} cannot be listened on ({error.strerror}); run as root, "
                           "and stop any other TFTP server") from error
    try:
        yield
    finally:
        await server.close()


class FreshResponder(dhcp.Responder):
    """A responder whose reservations follow hosts.toml."""

    def __init__(self, config: Config, hosts_file: HostsFile) -> None:
        self._config, self._hosts_file = config, hosts_file
        self._known = hosts_file.current()
        super().__init__(settings(config, self._known))

    def reply(self, packet: Packet, arrived_on: IPv4Address, now: float, *, port: int = 67) -> Packet | None:
        """Answer as Responder does, by the hosts as they are now."""
        known = self._hosts_file.current()
        if known is not self._known:
            self._known, self.settings = known, settings(self._config, known)
        return super().reply(packet, arrived_on, now, port=port)


def settings(config: Config, hosts: Hosts) -> dhcp.Settings:
    """Return what the responder needs; pure."""
    section, url = config.dhcp, config.server.public_url
    reservations = {}
    for mac, host in hosts.by_mac.items():
        address = ip_interface(host.address).ip if host.address else None
        if isinstance(address, IPv4Address):
            reservations[bytes.fromhex(mac.replace(":", ""))] = dhcp.Reservation(host.name, address)
    return dhcp.Settings(
        subnets=tuple(dhcp.Subnet(
            network=IPv4Network(subnet.network), server=IPv4Address(subnet.server), domain=subnet.domain,
            router=_address(subnet.router), first=_address(subnet.first), last=_address(subnet.last),
            dns=tuple(IPv4Address(one) for one in subnet.dns)) for subnet in section.subnet),
        reservations=reservations, script_url=f"{url}/boot/ipxe?mac=",
        http_boot_url=f"{url}/boot/http/{{mac}}/recovery.efi",
        lease_s=section.lease_s, proxy=section.mode == "proxy", known_only=section.known_only)


def _address(text: str | None) -> IPv4Address | None:
    return IPv4Address(text) if text else None
