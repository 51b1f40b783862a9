"""Who may connect: a server's connections counted by the network they come from; I/O: reads and raises a limit.

Every connection costs a file descriptor, and a process without one left can do nothing at all. So there are fewer
places than descriptors, one network gets a quarter of them at most, and only a few for connections that asked for
nothing yet, of which the oldest makes room for the newest: whoever wants to shut the others out needs many addresses,
and cannot shut out his neighbours. Hosts that wait for an order, signed, are not counted among those, so a fleet behind
one address gets in.
"""

from __future__ import annotations

import ipaddress
import logging
import resource
from collections import defaultdict
from typing import Protocol

from control.log import Seldom

log = logging.getLogger("reroot.door")

KEPT_BACK = 2048
"""Descriptors that are not for connections: the database, TFTP's transfers, and those that asyncio accepts in one go,
up to the listening socket's backlog, before the door sees the first of them."""
PER_CONNECTION = 2
"""Descriptors of one connection: its socket and the file it is sent."""
MOST_IDLE = 64
"""Connections of one network, at most, that have not asked for anything yet."""
SHARE = 4
"""One network has at most this part of all places: a quarter."""


class Guest(Protocol):
    """A connection, as the door sees it."""

    @property
    def idle(self) -> bool:
        """Whether it has yet to ask for something that is worth its place."""

    def go(self) -> None:
        """Close it at once."""


class Door:
    """The connections of one server."""

    def __init__(self, most_idle: int = MOST_IDLE) -> None:
        self._most_idle = most_idle
        self._guests: defaultdict[str, dict[Guest, None]] = defaultdict(dict)  # by network, oldest first
        self._count = 0
        self._seldom = Seldom()

    def enter(self, guest: Guest, address: str) -> None:
        """Take a new connection in, and have it or an older one go when there are too many."""
        network = network_of(address)
        ours, room = self._guests[network], places()
        idle = [one for one in ours if one.idle]
        ours[guest] = None
        self._count += 1
        full = self._count > room or len(ours) > max(1, room // SHARE)
        if not full and len(idle) < self._most_idle:
            return
        if self._seldom():
            log.warning("connections are closed: %s has %d, of which %d ask for nothing, and there are %d in all "
                        "for %d places", network, len(ours), len(idle), self._count, room)
        leaving = idle[0] if idle else guest
        self.leave(leaving, address)
        leaving.go()

    def leave(self, guest: Guest, address: str) -> None:
        """Forget a connection that is gone."""
        network = network_of(address)
        if guest in self._guests[network]:
            del self._guests[network][guest]
            self._count -= 1
        if not self._guests[network]:
            del self._guests[network]


def network_of(address: str) -> str:
    """Return what counts as one neighbour: an IPv4 address, or the 64-bit prefix of an IPv6 one. Pure."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def places() -> int:
    """Return how many connections this process can bear by the limit it has now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft // 8, (soft - KEPT_BACK) // PER_CONNECTION)


def widen() -> None:
    """Raise this process's limit of open files as far as it may: the usual 1024 are for programs with select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
