"""How a service stands, as people and scripts see it. Pure; docs/protocols/tickets.md describes the JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from plumbing import clock
from throttle.line import Place
from throttle.records import Lease, Offer, Tuned
from throttle.tickettab import Service

SHOWN = 1000
"""Waiting hosts that are named; the others are counted."""


@dataclass(frozen=True)
class Status:
    """A service as it stands at `now_s`, on the clock its leases are on."""

    service: Service
    leases: tuple[Lease, ...]
    now_s: float
    slots: Mapping[str, int] = field(default_factory=dict)
    quarantined: tuple[Lease, ...] = ()
    offers: Mapping[str, Offer] = field(default_factory=dict)
    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    down: Mapping[str, str] = field(default_factory=dict)
    waiting: Sequence[Place] = ()
    defined: bool = True

    def to_json(self) -> dict[str, object]:
        """Return what docs/protocols/tickets.md calls an element of "tickets"."""
        live = Counter(lease.provider for lease in self.leases)
        names = dict.fromkeys([*self.slots, *live])
        return {
            "service": self.service.name, "lifetime_s": self.service.lifetime_s, "defined": self.defined,
            "providers": [self._provider(name, live[name], self.down) for name in names],
            "leases": [self._lease(lease) for lease in self.leases],
            "quarantined": [self._lease(lease) for lease in self.quarantined],
            "waiting": len(self.waiting),
            "line": [{"host": place.host, "waits_s": round(self.now_s - place.since_s, 1)}
                     for place in self.waiting[:SHOWN]],
        }

    def nothing_free(self) -> str:
        """Say why nothing is granted now; empty when something is."""
        live = Counter(lease.provider for lease in self.leases)
        left = {name: slots - live[name] for name, slots in self.slots.items() if slots > live[name]}
        if not self.defined:
            return "tickettab does not define the service any more"
        if set(left) - set(self.down):
            return ""
        if left:
            return f"all slots are taken but those of {', '.join(left)}, left out: {self.down[next(iter(left))]}"
        total = sum(self.slots.values())
        return f"all {total} slots are taken" if total else "the service has no slots"

    def _provider(self, name: str, live: int, down: Mapping[str, str]) -> dict[str, object]:
        slots = self.slots.get(name, 0)
        found: dict[str, object] = {"name": name, "slots": slots, "live": live}
        if live > slots:
            found["over"] = live - slots
        if name in down:
            found["down"] = down[name]
        if name in self.offers and all(name != one.name for one in self.service.providers):
            found["offered_for_s"] = round(self.offers[name].expires_s - self.now_s, 1)
        if name in self.tuned and self.service.adaptive is not None:
            found["why"] = self.tuned[name].why
        return found

    def _lease(self, lease: Lease) -> dict[str, object]:
        return {"ticket": lease.ticket, "holder": lease.holder, "fence": lease.fence,
                "since": None if lease.since_s is None else clock.iso(lease.since_s), "address": lease.address,
                "expires_in_s": round(lease.expires_s - self.now_s, 1)}


def problems(statuses: Collection[Status]) -> list[str]:
    """Return what an administrator should know, as sentences: more held than there are slots, providers down."""
    found = []
    for status in statuses:
        live = Counter(lease.provider for lease in status.leases)
        for name, count in live.items():
            slots = status.slots.get(name, 0)
            if count > slots:
                found.append(f"{status.service.name}: {count} tickets of {name} are held and it has {slots} slots now; "
                             "no more are granted until enough came back")
        found += [f"{status.service.name}: {name} is left out: {why}" for name, why in status.down.items()]
    return found
