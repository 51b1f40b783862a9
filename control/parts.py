"""What the request handlers and the loops of one server process share; made once by control.serve."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from control.bell import Bell
from control.config import Config
from control.database import Database
from control.files import Library
from control.orders import Issuer, target_path
from control.rollouts import Rollouts
from control.site import Site
from fleet.hosts import Hosts, HostsFile
from plumbing.errors import RerootError
from throttle.service import TicketService


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
    library: Library
    bell: Bell

    @property
    def hosts(self) -> Hosts:
        """The machines of hosts.toml as it stands now."""
        return self.hosts_file.current()


    def problems(self) -> list[str]:
        """Return what is wrong and does not keep the server from serving, as sentences; reads the catalogue."""
        found = [self.hosts_file.problem] if self.hosts_file.problem else []
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

    def near(self, host: str, providers: frozenset[str]) -> frozenset[str]:
        """Return those of `providers` that share a subnet with `host`."""
        hosts = self._hosts_file.current().by_name
        subnet = hosts[host].subnet if host in hosts else None
        if subnet is None:
            return frozenset()
        network = ipaddress.ip_network(subnet)
        return frozenset(
            name for name in providers
            if name in hosts and (address := hosts[name].address) and ipaddress.ip_interface(address).ip in network)

    def url(self, provider: str) -> str:
        """Return the provider's content URL from [providers], empty when it is a pool or a stranger."""
        return self._urls.get(provider, "")
