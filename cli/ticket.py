"""`reroot ticket …` on a host, and the script `getticket` as in the paper. I/O: the host's identity, HTTP, stdout.

    ticket=$(getticket hpux_patches) && { update -s "${ticket%_*}"; getticket -r "$ticket"; }
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.admin import SITE, Admin, ControlOption, SiteOption
from plumbing.errors import ConfigError, UsageError
from plumbing.http import Client
from recovery import identity
from rollout import duration
from throttle import client as tickets

app = typer.Typer(no_args_is_help=True, help="Tickets: so many hosts at a service, and no more.")

LocalOption = Annotated[Path, typer.Option("--local", help="Where this host's /local is mounted.")]
ServiceArgument = Annotated[str, typer.Argument(help="A service of the server's tickettab.")]
TicketArgument = Annotated[str, typer.Argument(help="A ticket, such as milton_080.")]
WaitOption = Annotated[str, typer.Option("--wait", "-w", help="How long to wait for a free ticket, such as 90s or 1h.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LOCAL = Path("/local")


@app.command()
def get(
    service: ServiceArgument, wait: WaitOption = "1h", local: LocalOption = LOCAL, as_json: JsonOption = False,
) -> None:
    """Get a ticket and print it; its provider is ${ticket%_*}. Renew it or give it back before its lifetime ends."""
    held = tickets.acquire(_client(local), service, wait_s=duration.parse(wait),
                           on_wait=lambda pause_s, why: print(f"{why} (next try in {pause_s:.0f} s)", file=sys.stderr))
    print(json.dumps(_shown(held)) if as_json else held.ticket)


@app.command(name="return")
def give_back(ticket: TicketArgument, local: LocalOption = LOCAL) -> None:
    """Give a ticket back; one that has ended already is fine."""
    tickets.give_back(_client(local), ticket)


@app.command()
def renew(ticket: TicketArgument, local: LocalOption = LOCAL, as_json: JsonOption = False) -> None:
    """Begin a ticket's lifetime anew; exit code 6 when it is not held any more."""
    held = tickets.renew(_client(local), ticket)
    print(json.dumps(_shown(held)) if as_json else f"{held.ticket} for another {duration.show(held.lifetime_s)}")


@app.command()
def status(site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False) -> None:
    """Show every service, its providers and who holds tickets (on the server, with the site's admin token)."""
    services = Admin(site, control).get("/status").get("tickets")
    if as_json:
        print(json.dumps(services, indent=1))
        return
    for line in lines(services):
        print(line)


def lines(services: object) -> list[str]:
    """Write the "tickets" of docs/protocols/tickets.md for a person."""
    found: list[str] = []
    for service in services if isinstance(services, list) else []:
        match service:
            case {"service": name, "lifetime_s": life_s, "providers": list(providers), "leases": list(leases)}:
                live, slots = (sum(int(p.get(key, 0)) for p in providers) for key in ("live", "slots"))
                found.append(f"{name}: {live} of {slots} tickets taken, lifetime {duration.show(float(life_s))}")
                found += [f"  {p.get('name')}: {p.get('live')} of {p.get('slots')}" for p in providers]
                found += [f"    {lease.get('ticket')} held by {lease.get('holder')}, "
                          f"{duration.show(float(lease.get('expires_in_s', 0)))} left" for lease in leases]
    return found or ["no services; write some into the site's tickettab"]


def _client(local: Path) -> Client:
    who = identity.load(local)
    if who is None:
        raise ConfigError(f"{local / identity.AGENT} holds no identity; enrol this host first, see `reroot host add`")
    return who.client()


def _shown(held: tickets.Ticket) -> dict[str, object]:
    return {"ticket": held.ticket, "provider": held.provider, "fence": held.fence, "lifetime_s": held.lifetime_s,
            "url": held.url}


def _getticket(
    service: Annotated[str, typer.Argument(help="The service to get a ticket for.")] = "",
    give_back_ticket: Annotated[str, typer.Option("--return", "-r", metavar="TICKET", help="Give TICKET back.")] = "",
    wait: WaitOption = "1h", local: LocalOption = LOCAL,
) -> None:
    """Print a ticket for SERVICE, or give one back; the provider is ${ticket%_*}."""
    if bool(service) == bool(give_back_ticket):
        raise UsageError("say either `getticket SERVICE` or `getticket -r TICKET`")
    if service:
        get(service, wait, local)
    else:
        give_back(give_back_ticket, local)


def getticket() -> None:
    """Run the script `getticket`."""
    script = typer.Typer(add_completion=False)
    script.command(name="getticket")(_getticket)
    console.finish(script)
