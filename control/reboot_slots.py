"""FleetLock's rules over tickets: windows in which a group may reboot, and slots held until a host is well. I/O.

A group is a service of tickettab, a slot is a ticket of it. All that is remembered here is since when a host that
wants to give its slot back was found unwell; a restart of the server forgets that and begins to count anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from control.config import FleetlockGroup
from fleet.hosts import Host, HostsFile
from plumbing import clock
from plumbing.errors import BusyError
from throttle.health import Finding
from throttle.records import Lease
from throttle.service import TicketService
from throttle.status import Status
from throttle.upkeep import ask

AGAIN_S = 30.0
"""When a host that is not well yet is to ask again, in seconds."""
LONGEST_S = 3600.0
"""When a host before a closed window is to ask again at the latest, in seconds."""
PROBES = 8
"""Hosts that are looked at at once."""


@dataclass(frozen=True)
class Unwell:
    """A host that holds `ticket` and was found unwell: since when (monotonic seconds), and why it was the last time."""

    ticket: str
    since_s: float
    why: str


class RebootSlots:
    """The groups of [fleetlock] at one server."""

    def __init__(
        self, groups: Mapping[str, FleetlockGroup], tickets: TicketService, hosts: HostsFile,
        probe: Callable[[str], Finding] = ask,
    ) -> None:
        """Serve `groups`; `probe` asks one URL and blocks meanwhile."""
        self._groups, self._tickets, self._hosts, self._probe = groups, tickets, hosts, probe
        self._unwell: dict[tuple[str, str], Unwell] = {}
        self._few = asyncio.Semaphore(PROBES)

    async def lock(self, group: str, host: str, address: str) -> Lease:
        """Give `host` a slot, or begin the lifetime of the one it has anew; raises BusyError."""
        now, one = clock.wall(), self._groups[group]
        if not one.when.open(now):
            opens = one.when.change(now)
            raise BusyError(f"group {group} may not reboot now: {_window(one, now)}",
                            retry_after_s=LONGEST_S if opens is None else min(LONGEST_S, opens - now))
        return await self._tickets.get(one.service, host, address=address)

    async def unlock(self, group: str, host: str) -> None:
        """Take `host`'s slot back, if it has one; raises BusyError when it is to be well first and is not."""
        one = self._groups[group]
        lease = await self._tickets.held(one.service, host)
        if lease is None:
            self._unwell.pop((one.service, host), None)
            return
        if one.healthy and (why := await self._ails(one, host)):
            await self._keep(one, lease, why)
            raise BusyError(f"{host} is not well yet, so it keeps its slot of {one.service}: {why}",
                            retry_after_s=AGAIN_S)
        self._unwell.pop((one.service, host), None)
        await self._tickets.give_back(lease.ticket, host)

    def standing(self, status: Status) -> list[dict[str, object]]:
        """Return the groups of a service as docs/protocols/tickets.md describes them."""
        now, tick = clock.wall(), clock.monotonic()
        held = {lease.holder: lease.ticket for lease in status.leases}
        unwell = [{"host": host, "ticket": one.ticket, "for_s": round(tick - one.since_s, 1), "why": one.why}
                  for (service, host), one in self._unwell.items()
                  if service == status.service.name and held.get(host) == one.ticket]
        return [{"group": name, "open": one.when.open(now), "window": _window(one, now), "unwell": unwell,
                 "grants_nothing": _window(one, now) if not one.when.open(now) else status.nothing_free()}
                for name, one in self._groups.items() if one.service == status.service.name]

    async def _ails(self, one: FleetlockGroup, host: str) -> str:
        """Ask whether `host` is well; returns what is wrong."""
        known = self._hosts.current().by_name.get(host)
        async with self._few:
            return "" if known is None else (await asyncio.to_thread(self._probe, _url(one, known))).failed

    async def _keep(self, one: FleetlockGroup, lease: Lease, why: str) -> None:
        """Begin the lifetime of an unwell host's slot anew, unless that went on for long enough."""
        now, key = clock.monotonic(), (one.service, lease.holder)
        before = self._unwell.get(key)
        since_s = before.since_s if before is not None and before.ticket == lease.ticket else now
        self._unwell[key] = Unwell(lease.ticket, since_s, why)
        if now - since_s < one.healthy_within_s:
            await self._tickets.renew(lease.ticket, lease.holder)


def _window(one: FleetlockGroup, now: float) -> str:
    change = one.when.change(now)
    if not one.windows or change is None:
        return "open at any time" if one.when.open(now) else "no window opens in the next two weeks"
    return f"{'open' if one.when.open(now) else 'closed'} until {_told(one, change)}"


def _url(one: FleetlockGroup, host: Host) -> str:
    address = host.address.partition("/")[0] if host.address else host.name
    return one.healthy.replace("{host}", f"[{address}]" if ":" in address else address)


def _told(one: FleetlockGroup, at: float) -> str:
    return datetime.fromtimestamp(at, one.when.zone).strftime("%a %Y-%m-%d %H:%M %Z")
