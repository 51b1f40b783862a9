"""What tickets are made of: leases, offers, measured slots, and the changes between them. Pure values.

A change holds what was and what is instead, so that it can be applied to a view, undone, and written down alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LeaseKey = int
NamedKey = tuple[str, str, str]
Key = LeaseKey | NamedKey
"""A lease is known by its fence; what belongs to a provider by its kind, service and provider."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One slot of `provider`, held by `holder` until `expires_s` on this machine's monotonic clock.

    A quarantined lease has no slot any more: its holder fell silent, and nobody takes its number for good. `since_s`
    is wall seconds, for people; `address` is where the holder asked from; `bandwidth` is bytes per second, 0 for any.
    """

    service: str
    provider: str
    fence: int
    holder: str
    lifetime_s: int
    expires_s: float
    since_s: float | None = None
    address: str = ""
    bandwidth: int = 0
    quarantined: bool = False

    @property
    def ticket(self) -> str:
        """The ticket's name: `${ticket%_*}` is the provider."""
        return f"{self.provider}_{self.fence:03d}"

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.fence


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider that registered at run time: `slots` at `url`, until `expires_s` on the monotonic clock."""

    service: str
    provider: str
    slots: int
    url: str
    lifetime_s: int
    expires_s: float

    @property
    def key(self) -> Key:
        """What it is known by."""
        return ("offer", self.service, self.provider)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The slots that measurement gave a provider instead of the tickettab's, and the sentence that says why."""

    service: str
    provider: str
    slots: int
    why: str
    changed_s: float

    @property
    def key(self) -> Key:
        """What it is known by."""
        return ("tuned", self.service, self.provider)


Record = Lease | Offer | Tuned


@dataclass(frozen=True, slots=True)
class Change:
    """`before` became `after`; None is nothing. Both have the same key."""

    before: Record | None
    after: Record | None

    @property
    def key(self) -> Key:
        """What the changed record is known by."""
        record = self.after if self.after is not None else self.before
        assert record is not None
        return record.key

    def undone(self) -> Change:
        """Return the change back."""
        return Change(self.after, self.before)


def net(changes: Iterable[Change]) -> list[Change]:
    """Return what a sequence of changes comes to, one for each record that is not as it was."""
    found: dict[Key, Change] = {}
    for change in changes:
        first = found.get(change.key)
        found[change.key] = change if first is None else Change(first.before, change.after)
    return [change for change in found.values() if change.before != change.after]


def fence_of(ticket: str) -> int | None:
    """Return the number in a ticket's name, None when that is no ticket's name."""
    provider, _, number = ticket.rpartition("_")
    return int(number) if provider and number.isascii() and number.isdigit() and len(number) < 19 else None
