"""A host's side of tickets: get, keep alive, give back. I/O: HTTP, one thread; standard library only.

docs/protocols/tickets.md says what a client must do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import quote

from plumbing import clock
from plumbing.conversation import Conversation
from plumbing.errors import BusyError, CorruptError, NetworkError, RefusedError, RerootError, UsageError
from plumbing.http import Client, Response

OnWait = Callable[[float, str], None]
"""(seconds until the next try, the server's sentence)."""

MIN_RETRY_S = 0.05
DEADLINE_S = 90.0
"""How long any answer may take as a whole, in seconds; the client's own limit is for each wait in it."""
SESSION_PAYS_S = 300.0
"""Renewals that follow one another sooner than this, in seconds, are in a session, which lives for an hour. Opening one
costs what two signed requests cost, so who renews less often signs."""
_LOST = frozenset({403, 404, 409})


@dataclass
class _Life:
    """When the lease ends, on this machine's monotonic clock; the keeper's thread moves it."""

    ends_s: float


@dataclass(frozen=True)
class Ticket:
    """A lease on one slot of `provider`; `fence` grows with every ticket, `url` is empty when no host is behind it."""

    ticket: str
    provider: str
    fence: int
    lifetime_s: float
    url: str
    _life: _Life = field(repr=False, compare=False)

    def left_s(self) -> float:
        """Seconds until the lease has ended, unless it is renewed; not above 0 when it was lost."""
        return self._life.ends_s - clock.monotonic()

    def headers(self) -> dict[str, str]:
        """Return what shows this ticket to a content server, which refuses it when it is live no more."""
        return {"Reroot-Ticket": self.ticket}

    def check(self) -> None:
        """Raise RefusedError when the ticket was lost: the slot may be another's by now."""
        if self.left_s() <= 0:
            raise RefusedError(f"ticket {self.ticket} was lost (taken back, or not renewed in {self.lifetime_s:.0f} s)"
                               f"; stop using {self.provider} and get a new one")


@contextmanager
def ticket(client: Client, service: str, *, wait_s: float, on_wait: OnWait | None = None) -> Iterator[Ticket]:
    """Hold a ticket for `service` while the block runs, renewed by a thread; give it back however the block ends.

    Waits up to `wait_s` seconds for a free slot, then raises BusyError. Raises NetworkError when the ticket server
    does not answer, NotFoundError when it has no such service.
    """
    held = acquire(client, service, wait_s=wait_s, on_wait=on_wait)
    try:
        with kept(client, held):
            yield held
    finally:
        with suppress(RerootError):  # the lease ends by itself in time
            give_back(client, held.ticket)


@contextmanager
def kept(client: Client, held: Ticket) -> Iterator[None]:
    """Renew `held` by a thread while the block runs; `held` knows when that fails."""
    stop = threading.Event()
    threading.Thread(target=_keep, args=(_keeper(client, held), held, stop), name=held.ticket, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def acquire(client: Client, service: str, *, wait_s: float, on_wait: OnWait | None = None) -> Ticket:
    """Get a ticket, waiting up to `wait_s` seconds; raises as `ticket` does."""
    deadline_s = clock.monotonic() + wait_s
    while True:
        sent_s = clock.monotonic()
        try:
            answer = client.post_json("/api/v1/tickets", {"service": service}, deadline_s=DEADLINE_S)
        except NetworkError as error:
            raise NetworkError(f"no ticket for {service}: {error.sentence}") from error
        try:
            return _read(answer, sent_s)
        except BusyError as error:
            retry_s, left_s = _retry_after(answer), deadline_s - clock.monotonic()
            if left_s <= 0:
                raise BusyError(f"{error.sentence} (waited {wait_s:.0f} s)", retry_after_s=retry_s) from error
            pause_s = min(left_s, retry_s * (1 + os.urandom(1)[0] / 510))
            if on_wait is not None:
                on_wait(pause_s, error.sentence)
        threading.Event().wait(pause_s)


def renew(client: Client, ticket: str) -> Ticket:
    """Begin the lifetime anew; raises RefusedError when the ticket is not held any more."""
    sent_s = clock.monotonic()
    answer = client.post_json(f"{_path(ticket)}/renew", {}, deadline_s=DEADLINE_S)
    if answer.status in _LOST:
        raise RefusedError(f"ticket {ticket} is not held any more; stop using its provider and get a new one")
    return _read(answer, sent_s)


def give_back(client: Client, ticket: str) -> None:
    """End the ticket; giving back one that has ended is fine."""
    client.request("DELETE", _path(ticket), deadline_s=DEADLINE_S).accepted()


def _keeper(client: Client, held: Ticket) -> Client:
    """Return who renews: in a session when there will be many renewals in one."""
    if client.signer is None or held.lifetime_s / 3 > SESSION_PAYS_S:
        return client.twin()
    return Conversation(client.base_url, client.signer, timeout_s=client.timeout_s)


def _keep(client: Client, held: Ticket, stop: threading.Event) -> None:
    pause_s = held.lifetime_s / 3
    while not stop.wait(pause_s) and clock.monotonic() < held._life.ends_s:
        try:
            held._life.ends_s = renew(client, held.ticket)._life.ends_s
            pause_s = held.lifetime_s / 3
        except RefusedError:
            held._life.ends_s = clock.monotonic()
        except RerootError:  # the server may come back before the lease ends
            pause_s = held.lifetime_s / 12
    client.close()


def _path(ticket: str) -> str:
    provider, _, number = ticket.rpartition("_")
    if not provider or not (number.isascii() and number.isdigit()):
        raise UsageError(f"{ticket!r} is not a ticket; a ticket looks like milton_080")
    return f"/api/v1/tickets/{quote(ticket, safe='')}"


def _retry_after(answer: Response) -> float:
    said = answer.headers.get("retry-after", "")
    return max(MIN_RETRY_S, float(said)) if said.isascii() and said.isdigit() else 1.0


def _read(answer: Response, sent_s: float) -> Ticket:
    match answer.accepted():
        case {"ticket": str(name), "provider": str(provider), "fence": int(fence), "url": str() | None as url,
              "lifetime_s": int() | float() as life_s} if life_s > 0:
            return Ticket(name, provider, fence, float(life_s), url or "", _Life(sent_s + life_s))
        case _:
            raise CorruptError("the ticket server's answer is not a ticket; is it a reroot server of this version?")
