"""`reroot plan` and the script `sortaddrs`. I/O: arguments, stdin, the resolver, stdout."""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from typing import Annotated

import typer

from cli import console
from plumbing.errors import NotFoundError, RefusedError
from rollout import duration
from rollout import plan as planning
from rollout import sortaddrs as sorting
from rollout.capacity import Load


def plan(
    hosts: Annotated[int, typer.Option(help="How many hosts are to be updated.")],
    update_time: Annotated[str, typer.Option(help="One host's whole update, such as 30m or 1h30m.")],
    servers: Annotated[int, typer.Option(help="How many servers hosts download from.")] = 1,
    per_server: Annotated[int, typer.Option(help="How many hosts one server bears at once.")] = 5,
    download_time: Annotated[str, typer.Option(help="The part of it that downloads (default: all of it).")] = "",
    deadline: Annotated[str, typer.Option(help="When all must be done; tells the servers needed.")] = "",
    blast_budget: Annotated[
        int | None, typer.Option(help="Refuse when more hosts are in flight before the first result.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; times in seconds.")] = False,
) -> None:
    """How far apart to trigger hosts, how long it takes, how many a mistake would hit."""
    update_s = duration.parse(update_time)
    load = Load(hosts, update_s, duration.parse(download_time) if download_time else update_s, servers, per_server)
    answer = planning.plan(load, deadline_s=duration.parse(deadline) if deadline else None, blast_budget=blast_budget)
    print(json.dumps(answer.to_json(), indent=1) if as_json else answer.text())
    if answer.refused:
        raise RefusedError(answer.refused)


def _sortaddrs(
    prefix4: Annotated[int, typer.Option(help="Bits of an IPv4 subnet.")] = 24,
    prefix6: Annotated[int, typer.Option(help="Bits of an IPv6 subnet.")] = 64,
) -> None:
    """Read names or addresses, one per line; print them so that neighbours are of different subnets."""
    lines = [line.split("#", 1)[0].strip() for line in sys.stdin.buffer.read().decode("utf-8", "replace").splitlines()]
    hosts: list[tuple[str, str]] = []
    unknown: list[str] = []
    for name in filter(None, lines):
        try:
            hosts.append((name, sorting.subnet(_address(name), prefix4=prefix4, prefix6=prefix6)))
        except (OSError, UnicodeError):
            unknown.append(name)
    if unknown:
        raise NotFoundError(f"no address is known for {', '.join(unknown[:5])}"
                            + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
                            + "; mend the names or leave them out")
    sys.stdout.writelines(f"{name}\n" for name in sorting.interleave(hosts))


def _address(name: str) -> sorting.Address:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return ipaddress.ip_address(found[0][4][0])


def sortaddrs() -> None:
    """Run the script `sortaddrs`."""
    app = typer.Typer(add_completion=False)
    app.command(name="sortaddrs")(_sortaddrs)
    console.finish(app)
