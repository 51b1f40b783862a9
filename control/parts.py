"""What the request handlers and the loops of one server process share; made once by control.serve."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from control.audit import Audit
from control.bell import Bell
from control.config import Config
from control.database import Database
from control.files import Library
from control.gate import Gate
from control.orders import Issuer, target_path
from control.reboot_slots import RebootSlots
from control.rollouts import Rollouts
from control.second_copies import SecondCopies
from control.sessions import Sessions
from control.signatures import Signatures
from control.site import Site
from fleet.hosts import Host, Hosts, HostsFile
from plumbing.errors import RerootError
from throttle.service import TicketService

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_NEAR = 10_000
"""Answers about who is near whom that are kept; a fleet asks the same again and again."""


@dataclass(frozen=True)
class Parts:
    """Everything behind the API of one site."""

    site: Site
    config: Config
    admin_token: str
    database: Database
    hosts_file: HostsFile
    issuer: Issuer
    tickets: TicketService
    rollouts: Rollouts
    reboot_slots: RebootSlots
    library: Library
    bell: Bell
    signatures: Signatures
    sessions: Sessions
    gate: Gate
    copies: SecondCopies
    audit: Audit

    @property
    def hosts(self) -> Hosts:
        """The machines of hosts.toml as it stands now."""
        return self.hosts_file.current()

    def problems(self) -> list[str]:
        """Return what is wrong and does not keep the server from serving, as sentences; reads the catalogue."""
        found = [problem for problem in (self.hosts_file.problem, self.tickets.problem) if problem]
        if self.config.boot.recovery:
            try:
                self.issuer.targets.read(target_path("recovery", self.config.boot.recovery, None))
            except RerootError as error:
                found.append(f"reroot.toml: [boot] recovery = {self.config.boot.recovery!r}: {error.sentence}; until "
                             "then network boots that need it fail")
        return found


def parts_of(request: Request) -> Parts:
    """Return the parts of the server that answers `request`."""
    found = request.app.state.parts
    assert isinstance(found, Parts)
    return found


class Directory:
    """What tickets need to know of hosts: who is near whom, and where a provider serves content."""

    def __init__(self, hosts_file: HostsFile, urls: Mapping[str, str]) -> None:
        self._hosts_file = hosts_file
        self._urls = urls
        self._seen: Hosts | None = None
        self._networks: list[Network] = []
        self._near: dict[tuple[str, frozenset[str]], Mapping[str, int]] = {}

    def near(self, host: str, providers: frozenset[str]) -> Mapping[str, int]:
        """Return those of `providers` that share a subnet with `host`, with the length of its prefix in bits.

        Subnets may lie in one another: the smallest that holds both counts.
        """
        hosts = self._hosts_file.current()
        if hosts is not self._seen:
            self._seen = hosts
            self._near.clear()
            subnets = {one.subnet for one in hosts.by_name.values() if one.subnet}
            # The smallest first: of those that hold two hosts the first one met counts.
            self._networks = sorted(map(ipaddress.ip_network, subnets), key=lambda one: -one.prefixlen)
        found = self._near.get((host, providers))
        if found is None:
            if len(self._near) >= MAX_NEAR:
                self._near.clear()
            found = self._near[host, providers] = _near(hosts, self._networks, host, providers)
        return found

    def url(self, provider: str) -> str:
        """Return the provider's content URL from [providers], empty when it is a pool or a stranger."""
        return self._urls.get(provider, "")


def _near(hosts: Hosts, networks: Sequence[Network], host: str, providers: frozenset[str]) -> dict[str, int]:
    asker = hosts.by_name.get(host)
    if asker is None or asker.subnet is None:
        return {}
    ours = ipaddress.ip_network(asker.subnet)
    # A host whose address is not known is as good as anywhere in its subnet.
    around = [one for one in networks if _holds(one, _place(asker) or ours)]
    found = {}
    for name in providers:
        provider = hosts.by_name.get(name)
        address = None if provider is None else _place(provider)
        best = next((one.prefixlen for one in around if address is not None and _holds(one, address)), None)
        if best is not None:
            found[name] = best
    return found


def _place(host: Host) -> Network | None:
    return ipaddress.ip_network(host.address.partition("/")[0]) if host.address else None


def _holds(outer: Network, inner: Network) -> bool:
    if isinstance(outer, ipaddress.IPv4Network):
        return isinstance(inner, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, ipaddress.IPv6Network) and inner.subnet_of(outer)
