"""The script `getticket`, as in the paper, and the wrapper it was used for. I/O: a process, stdout, HTTP.

    ticket=$(getticket hpux_patches) && { update -s "${ticket%_*}"; getticket -r "$ticket"; }
    getticket xv_licence -- xv picture.gif

The wrapper takes a ticket, runs the command, renews while it runs and gives back when it ends, however it ends. A
command whose ticket is lost is stopped, before another host may have the slot when that can be foreseen. Killed by
SIGKILL itself it can give nothing back: the kernel sends the command SIGTERM then, and the lease ends by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from cli import console, ticket
from plumbing import foreground
from plumbing.errors import RefusedError, RerootError, UsageError
from plumbing.foreground import Foreground, StoppedError
from recovery.log import plain
from throttle import client as tickets

LOOK_S = 0.5
"""How often the wrapper looks whether its ticket is lost, in seconds."""


def wrap(local: Path, service: str, wait: str, command: Sequence[str]) -> int:
    """Run `command` under a ticket of `service`; returns its exit status, 128 + n when signal n ended it.

    Raises RefusedError when the ticket was lost and the command stopped for it, CommandError when it will not start.
    """
    if (why := foreground.unstartable(command[0], os.environ.get("PATH", os.defpath))) is not None:
        print(plain(f"{Path(sys.argv[0]).name}: {why[1]}"), file=sys.stderr)
        return why[0]
    client = ticket.client_of(local)
    with Foreground() as place:
        held = ticket.acquire(client, service, wait)
        try:
            place.start(command, {**os.environ, "REROOT_TICKET": held.ticket, "REROOT_PROVIDER": held.provider,
                                  "REROOT_FENCE": str(held.fence), "REROOT_URL": held.url})
            with tickets.kept(client, held):
                return place.wait(lambda: lost(held), LOOK_S)
        except StoppedError as error:
            raise RefusedError(f"{error}; {command[0]} was stopped") from error
        finally:
            with suppress(RerootError):  # the lease ends by itself in time
                tickets.give_back(client, held.ticket)


def lost(held: tickets.Ticket) -> str | None:
    """Say why what runs under `held` must not go on, else None.

    A command takes time to stop, so it is told before the lease ends when nobody answers renewals.
    """
    left_s = held.left_s()
    if left_s <= 0:
        return f"ticket {held.ticket} was lost: the server took it back, or it was not renewed in time"
    if left_s <= min(foreground.STOP_S, held.lifetime_s / 4):
        return f"ticket {held.ticket} is about to end, for the ticket server has not answered for too long"
    return None


def _getticket(
    service: Annotated[str, typer.Argument(help="The service to get a ticket for.")] = "",
    command: Annotated[list[str] | None, typer.Argument(
        help="After `--`: a command to run under the ticket.", show_default=False)] = None,
    give_back_ticket: Annotated[str, typer.Option("--return", "-r", metavar="TICKET", help="Give TICKET back.")] = "",
    wait: ticket.WaitOption = "1h", local: ticket.LocalOption = ticket.LOCAL,
) -> None:
    """Print a ticket for SERVICE, give one back, or run a command under one; the provider is ${ticket%_*}."""
    if bool(service) == bool(give_back_ticket):
        raise UsageError("say either `getticket SERVICE` or `getticket -r TICKET`")
    if give_back_ticket:
        ticket.give_back(give_back_ticket, local)
    elif command:
        raise typer.Exit(wrap(local, service, wait, command))
    else:
        ticket.get(service, wait, local)


def getticket() -> None:
    """Run the script `getticket`."""
    script = typer.Typer(add_completion=False)
    script.command(name="getticket")(_getticket)
    console.finish(script)
