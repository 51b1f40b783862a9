"""`reroot host …`: the machines, through the server's admin API. I/O: HTTP, stdout."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote

import typer

from cli import console, loss
from cli.admin import SITE, Admin, ControlOption, SiteOption
from plumbing.digest import sha256
from plumbing.errors import CorruptError, NotFoundError, UsageError
from rollout import duration

app = typer.Typer(no_args_is_help=True, help="The machines: add, enrol, list, show, order, rescue.")

AGENT = ("/usr/lib/reroot/bin/reroot-python", "-m", "fleet.agent")
"""The agent, as it is started by hand on a host."""


def _host_name(name: str) -> str:
    if not name or not name.isprintable() or "/" in name:
        raise UsageError(f"{name!r} is no host name; `reroot host list` shows what there is")
    return name


NameArgument = Annotated[str, typer.Argument(help="The host's name in hosts.toml.", callback=_host_name)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ReleaseOption = Annotated[str, typer.Option("--release", help="NAME/VERSION or NAME/VERSION/ARCH.")]
ReplaceOption = Annotated[bool, typer.Option("--replace", help="Take the place of an open order.")]


@app.command()
def add(
    name: NameArgument, site: SiteOption = SITE, control: ControlOption = "",
    mac: Annotated[list[str] | None, typer.Option(help="A MAC address; may be given again.")] = None,
    address: Annotated[str, typer.Option(help="IP address with prefix length, such as 10.1.0.11/24.")] = "",
    subnet: Annotated[str, typer.Option(help="Its subnet, when the address is not fixed.")] = "",
    serial: Annotated[str, typer.Option(help="The machine's serial number.")] = "",
    firmware: Annotated[str, typer.Option(help="bios or uefi (default: bios).")] = "",
    host_class: Annotated[list[str] | None, typer.Option("--class", help="A host class; may be given again.")] = None,
    disk: Annotated[str, typer.Option(help="Serial of the disk that an install may wipe.")] = "",
    lifetime: Annotated[str, typer.Option(help="How long the token can be used.")] = "24h",
    as_json: JsonOption = False,
) -> None:
    """Write a new host into hosts.toml (or take the one that is there) and print its one-time enrolment token."""
    table: dict[str, object] = {"name": name}
    given = {"macs": mac, "address": address, "subnet": subnet, "serial": serial, "firmware": firmware,
             "class": host_class, "layout": {"disk": disk} if disk else None}
    table |= {key: value for key, value in given.items() if value}
    answer = Admin(site, control).post("/hosts", {"host": table, "token_lifetime_s": duration.parse(lifetime)})
    if as_json:
        print(json.dumps(answer))
        return
    print(answer.get("token"))


@app.command(name="list")
def listing(site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False) -> None:
    """List the hosts with their release and order."""
    hosts = _tables(Admin(site, control).get("/hosts").get("hosts"))
    if as_json:
        print(json.dumps(hosts, indent=1))
        return
    rows = [("HOST", "ADDRESS", "ENROLLED", "RELEASE", "ORDER", "PHASE")]
    for host in hosts:
        order = host.get("order") or {}
        assert isinstance(order, Mapping)
        rows.append((_word(host.get("name")), _word(host.get("address") or host.get("subnet")),
                     "yes" if host.get("enrolled") else "no", _word(host.get("release")),
                     _word(order.get("state")), _word(order.get("phase"))))
    console.columns(rows)


@app.command()
def show(name: NameArgument, site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False,
         events: Annotated[bool, typer.Option("--events", help="Also print what it reported.")] = False) -> None:
    """Show one host: facts, orders, and with --events what it reported."""
    admin = Admin(site, control)
    host = admin.get(f"/hosts/{quote(name, safe='')}")
    if events:
        host["events"] = _tables(admin.get(f"/hosts/{quote(name, safe='')}/events").get("events"))
    if as_json:
        print(json.dumps(host, indent=1))
        return
    for key in ("name", "address", "subnet", "macs", "serial", "class", "firmware", "enrolled", "seen", "healthy",
                "release", "level"):
        print(f"{key + ':':<10} {_word(host.get(key))}")
    for order in _tables(host.get("orders")):
        print(f"order:     {order.get('id')} {order.get('mode')} {_word(order.get('release'))} {order.get('state')} "
              f"{_word(order.get('phase'))} {_word(order.get('message'))}")
    for event in _tables(host.get("events", [])):
        print(f"{event.get('received')} {event.get('phase')} {event.get('event')} {_word(event.get('message'))}")


@app.command()
def order(
    name: NameArgument, release: ReleaseOption = "", site: SiteOption = SITE, control: ControlOption = "",
    install: Annotated[
        bool, typer.Option("--install", help="Wipe the disk that the host's layout names, keep nothing.")] = False,
    recovery: Annotated[str, typer.Option(help="Another recovery image than the release's.")] = "",
    level: Annotated[str, typer.Option(help="The level the host has afterwards.")] = "",
    deadline: Annotated[str, typer.Option(help="When it counts as failed, such as 2h.")] = "",
    replace: ReplaceOption = False,
    wait: Annotated[str, typer.Option("--wait", help="How long its loss report may take.")] = "30m",
    cancel: Annotated[bool, typer.Option("--cancel", help="Withdraw its newest order instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Order one host to take a release: keeping what is precious, or with --install from nothing."""
    if bool(release) == cancel:
        raise UsageError("say which release with --release NAME/VERSION, or --cancel to withdraw the order; not both")
    admin = Admin(site, control)
    if cancel:
        _cancel(admin, name, as_json=as_json)
        return
    wish: dict[str, object] = {"host": name, "mode": "install" if install else "upgrade", "release": release,
                               "replace": replace}
    wish |= {key: value for key, value in (("recovery", recovery), ("level", level)) if value}
    if deadline:
        wish["deadline_s"] = duration.parse(deadline)
    if not install:
        loss.settle(admin, name, wait)
    _print_order(admin.post("/orders", wish), as_json=as_json)


def _cancel(admin: Admin, name: str, *, as_json: bool) -> None:
    order = admin.get(f"/hosts/{quote(name, safe='')}").get("order")
    if not isinstance(order, dict):
        raise NotFoundError(f"{name} has no order; there is nothing to withdraw")
    answer = admin.post(f"/orders/{order.get('id')}/cancel", {})
    print(json.dumps(answer, indent=1) if as_json else f"the order {order.get('id')} of {name} is withdrawn")


@app.command()
def enrol(
    name: NameArgument, site: SiteOption = SITE, control: ControlOption = "",
    lifetime: Annotated[str, typer.Option(help="How long the token can be used.")] = "24h", as_json: JsonOption = False,
) -> None:
    """Print the command that enrols the host, to be run there as root; its token works once (docs/enrol.md)."""
    from control import config
    from control.site import Site
    from imaging.catalogue import Catalogue

    opened = Site.open(site)
    url = config.load(opened.config).server.public_url
    root = sha256(Catalogue(opened.catalogue, opened.keys).root_json())
    made = Admin(site, control).post("/hosts", {"host": {"name": name}, "token_lifetime_s": duration.parse(lifetime)})
    # printf is the shell's own: the token stands in no process's arguments.
    words = [*AGENT, "enrol", "--host", name, "--control", url, "--root-digest", root, "--token-file", "-"]
    command = f"printf %s {shlex.quote(str(made.get('token')))} | {shlex.join(words)}"
    if as_json:
        print(json.dumps({**made, "control": url, "root_digest": root, "command": command}, indent=1))
        return
    print(command)


@app.command()
def rescue(name: NameArgument, site: SiteOption = SITE, control: ControlOption = "", replace: ReplaceOption = False,
           as_json: JsonOption = False) -> None:
    """Have the host's next network boot end in the rescue menu."""
    answer = Admin(site, control).post("/orders", {"host": name, "mode": "rescue", "replace": replace})
    _print_order(answer, as_json=as_json)


def _print_order(answer: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    order = answer.get("order")
    assert isinstance(order, Mapping)
    print(f"{order['host']} has the order {order['id']} ({order['mode']}), valid until {order['expires']}")


def _tables(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise CorruptError("the control server's answer is not the list it should be; are both of the same version?")
    return value


def _word(value: object) -> str:
    """Write a value in a column; control characters from a host's report must not reach a terminal."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else "-" if value in (None, "") else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "-"
