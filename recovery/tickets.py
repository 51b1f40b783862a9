"""Tickets held while frames are fetched (I/O): by recovery and, for the stage, by the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from plumbing.errors import BusyError, RefusedError
from recovery.identity import Identity
from throttle import client as throttle
from throttle.client import Ticket

TICKET_WAIT_S = 4 * 3600.0
"""How long to wait for a free ticket before the attempt counts as failed, in seconds."""


ANSWER_WAIT_S = 60.0
"""How long the ticket server may take for an answer, in seconds: a fleet asks all at once, and it counts to disk."""


@contextmanager
def held(identity: Identity, services: Sequence[str], say: Callable[[str], None], wait_s: float = TICKET_WAIT_S,
         ) -> Iterator[tuple[Ticket, ...]]:
    """Hold a ticket of every service while the block runs; waits up to `wait_s` seconds for free ones and says so.

    Raises BusyError after that, NetworkError when the ticket server does not answer.
    """
    def told(seconds: float, sentence: str) -> None:
        say(f"waiting {seconds:.0f} s for a ticket: {sentence}")

    with ExitStack() as stack:
        found = []
        for service in services:
            http = identity.client(timeout_s=ANSWER_WAIT_S)
            stack.callback(http.close)
            ticket = stack.enter_context(throttle.ticket(http, service, wait_s=wait_s, on_wait=told))
            say(f"ticket {ticket.ticket} from {ticket.provider}")
            found.append(ticket)
        yield tuple(found)


def still_held(tickets: Sequence[Ticket]) -> None:
    """Raise BusyError when one of `tickets` was lost: what it allowed must stop, and may begin again with a new one."""
    for ticket in tickets:
        try:
            ticket.check()
        except RefusedError as error:
            raise BusyError(error.sentence) from error
