"""`reroot ticket …`: a host's tickets and offers on that host, status on the server. I/O: identity, HTTP, stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from cli.admin import SITE, Admin, ControlOption, SiteOption
from plumbing.errors import ConfigError, UsageError
from plumbing.http import Client
from recovery import identity
from rollout import duration
from throttle import client as tickets
from throttle.tickettab import MAX_LIFETIME_S, MAX_OFFER

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
    held = acquire(client_of(local), service, wait)
    print(json.dumps(_shown(held)) if as_json else held.ticket)


@app.command(name="return")
def give_back(ticket: TicketArgument, local: LocalOption = LOCAL, as_json: JsonOption = False) -> None:
    """Give a ticket back; one that has ended already is fine. Exit code 6 when another host holds it."""
    tickets.give_back(client_of(local), ticket)
    if as_json:
        print(json.dumps({"ticket": ticket, "returned": True}))


@app.command()
def renew(ticket: TicketArgument, local: LocalOption = LOCAL, as_json: JsonOption = False) -> None:
    """Begin a ticket's lifetime anew; exit code 6 when it is not held any more."""
    held = tickets.renew(client_of(local), ticket)
    print(json.dumps(_shown(held)) if as_json else f"{held.ticket} for another {duration.show(held.lifetime_s)}")


@app.command()
def offer(
    service: ServiceArgument,
    slots: Annotated[int, typer.Option("--slots", help="Hosts that this one bears at once, as a provider.")],
    url: Annotated[str, typer.Option("--url", help="Where it serves, such as http://alpha:8081.")],
    lifetime: Annotated[str, typer.Option("--lifetime", help="How long, such as 90m; offer again to go on.")] = "1h",
    local: LocalOption = LOCAL, as_json: JsonOption = False,
) -> None:
    """Register this host as a provider of SERVICE for a while; tickettab.toml says how many slots it may have."""
    life_s = int(duration.parse(lifetime))
    if not 1 <= life_s <= MAX_LIFETIME_S:
        raise UsageError(f"--lifetime {lifetime} must be 1s to {duration.show(MAX_LIFETIME_S)}")
    if not 1 <= slots <= MAX_OFFER:
        raise UsageError(f"--slots {slots} must be 1 to {MAX_OFFER}; the service's offer_slots may be fewer")
    if not url.startswith("http://"):
        raise UsageError(f"--url {url!r} must be http://NAME:PORT, where this host serves")
    body = json.dumps({"slots": slots, "url": url, "lifetime_s": life_s}).encode()
    client_of(local).request("PUT", _offers(service), body=body).accepted()
    print(json.dumps({"service": service, "slots": slots, "url": url, "lifetime_s": life_s}) if as_json else
          f"{slots} slots of {service} for {duration.show(life_s)}")


@app.command()
def withdraw(service: ServiceArgument, local: LocalOption = LOCAL, as_json: JsonOption = False) -> None:
    """End what this host offers to SERVICE; tickets that name it go on until they end."""
    client_of(local).request("DELETE", _offers(service)).accepted()
    if as_json:
        print(json.dumps({"service": service, "withdrawn": True}))


@app.command()
def status(site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False) -> None:
    """Show every service, its providers and who holds tickets (on the server, with the site's admin token)."""
    services = Admin(site, control).get("/status").get("tickets")
    if as_json:
        print(json.dumps(services, indent=1))
        return
    for line in lines(services):
        print(line)


@app.command()
def fleetlock(
    host: Annotated[str, typer.Argument(help="A host of hosts.toml.")], site: SiteOption = SITE,
    as_json: JsonOption = False,
) -> None:
    """Print the base URL for HOST's FleetLock client (Zincati: updates.fleet_lock.base_url). It is a secret."""
    from control import auth, config
    from control.site import Site
    from fleet.hosts import HostsFile

    opened = Site.open(site)
    named = HostsFile(opened.hosts).current().get(host).name
    base = config.load(opened.config).server.public_url
    url = f"{base}/fleetlock/{named}/{auth.fleetlock_token(opened.admin_token(), named)}/"
    print(json.dumps({"host": named, "base_url": url}) if as_json else url)


def lines(services: object) -> list[str]:
    """Write the "tickets" of docs/protocols/tickets.md for a person."""
    found: list[str] = []
    for service in services if isinstance(services, list) else []:
        match service:
            case {"service": name, "lifetime_s": life_s, "providers": list(providers), "leases": list(leases)}:
                live, slots = (sum(int(p.get(key, 0)) for p in providers) for key in ("live", "slots"))
                waiting = int(service.get("waiting") or 0)
                found.append(f"{name}: {live} of {slots} tickets taken, lifetime {duration.show(float(life_s))}"
                             + (f", {waiting} waiting" if waiting else ""))
                found += [_provider(one) for one in providers]
                found += [f"    {lease.get('ticket')} held by {lease.get('holder')}{_whence(lease)}, "
                          f"{duration.show(float(lease.get('expires_in_s', 0)))} left" for lease in leases]
                found += [f"    {lease.get('ticket')} quarantined: {lease.get('holder')}{_whence(lease)} fell silent"
                          for lease in service.get("quarantined") or ()]
                for group in service.get("groups") or ():
                    found += _group(group)
                line = service.get("line") or ()
                found += [f"    {place}. {one.get('host')} waits for {duration.show(float(one.get('waits_s', 0)))}"
                          for place, one in enumerate(line, 1)]
                found += [f"    … and {waiting - len(line)} more"] * (waiting > len(line) > 0)
    return found or ["no services; write some into the site's tickettab"]


def _provider(one: Mapping[str, object]) -> str:
    """Say how many of a provider's slots are taken, and what is special about it."""
    told = f"  {one.get('name')}: {one.get('live')} of {one.get('slots')}"
    if "offered_for_s" in one:
        told += f", offered for another {duration.show(float(str(one['offered_for_s'])))}"
    for key, words in (("over", "more than its slots by {}"), ("down", "left out: {}"), ("why", "slots by load: {}")):
        if key in one:
            told += f", {words.format(one[key])}"
    return told


def _group(group: Mapping[str, object]) -> list[str]:
    """Say how a FleetLock group stands, and who of it is to be well before its slot is free."""
    why = group.get("grants_nothing")
    unwell = group.get("unwell")
    window = f"  group {group.get('group')}: {group.get('window')}"
    if why:
        window += "; nothing is granted" + ("" if why == group.get("window") else f": {why}")
    return [window, *(f"    {one.get('ticket')} is kept: {one.get('host')} is unwell for "
                      f"{duration.show(float(one.get('for_s', 0)))} ({one.get('why')})"
                      for one in (unwell if isinstance(unwell, list) else ()))]


def _whence(entry: Mapping[str, object]) -> str:
    """Say from where and since when, as far as the server tells."""
    address, since = entry.get("address"), entry.get("since")
    return (f" ({address})" if address else "") + (f" since {since}" if since else "")


def acquire(client: Client, service: str, wait: str) -> tickets.Ticket:
    """Get a ticket, saying on standard error what it waits for; `wait` is as people write a length of time."""
    def told(pause_s: float, why: str) -> None:
        print(f"{why} (next try in {pause_s:.0f} s)", file=sys.stderr)

    return tickets.acquire(client, service, wait_s=duration.parse(wait), on_wait=told)


def client_of(local: Path) -> Client:
    """Return a client that signs as this host; raises ConfigError when it never enrolled."""
    who = identity.load(local)
    if who is None:
        raise ConfigError(f"{local / identity.AGENT} holds no identity; enrol this host first, see `reroot host add`")
    return who.client()


def _offers(service: str) -> str:
    return f"/api/v1/tickets/offers/{quote(service, safe='')}"


def _shown(held: tickets.Ticket) -> dict[str, object]:
    return {"ticket": held.ticket, "provider": held.provider, "fence": held.fence, "lifetime_s": held.lifetime_s,
            "url": held.url}
