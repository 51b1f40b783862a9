"""`reroot rollout …`: start, see and steer rollouts through the control server. I/O: HTTP, the terminal."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli import console
from cli.admin import SITE, Admin, ControlOption, SiteOption
from plumbing.errors import NetworkError, NotFoundError, RefusedError, UsageError
from rollout import duration
from rollout.executor import Phase

app = typer.Typer(no_args_is_help=True, help="Rollouts: many hosts, one after another, stopping by themselves.")

View = dict[str, object]
IdArgument = Annotated[str, typer.Argument(help="The rollout (default: the latest).", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OVER = {Phase.DONE, Phase.ABORTED, Phase.HALTED}
LOOK_S = 1.0
"""How long `watch` waits between looks, in seconds."""
NAMED = 10
"""How many hosts a sentence names."""


@app.command()
def start(
    release: Annotated[str, typer.Argument(help="NAME/VERSION/ARCH of a release in the catalogue.")],
    hosts: Annotated[list[str] | None, typer.Argument(help="Hosts by name.", show_default=False)] = None,
    host_class: Annotated[str, typer.Option("--class", help="A class of hosts instead of names.")] = "",
    update_time: Annotated[str, typer.Option(help="One host's whole update, such as 30m.")] = "",
    download_time: Annotated[str, typer.Option(help="The part of it that downloads.")] = "",
    servers: Annotated[int | None, typer.Option(help="How many servers hosts download from.")] = None,
    per_server: Annotated[int | None, typer.Option(help="How many hosts one server bears at once.")] = None,
    interval: Annotated[str, typer.Option(help="Tighten to this, instead of the calculated interval.")] = "",
    start_interval: Annotated[
        str, typer.Option(help="Begin with this interval (default: four times the other).")] = "",
    deadline: Annotated[str, typer.Option(help="Refuse when the servers cannot do it in this time.")] = "",
    blast_budget: Annotated[int | None, typer.Option(help="Most hosts triggered and not healthy.")] = None,
    failure_budget: Annotated[int | None, typer.Option(help="Failures that halt the rollout.")] = None,
    minimum: Annotated[
        list[str] | None, typer.Option(help="SERVICE=N providers stay up (default: half); may be given again.")] = None,
    recovery: Annotated[str, typer.Option(help="Another recovery image than the release's.")] = "",
    level: Annotated[str, typer.Option(help="The level hosts report when they are done.")] = "",
    site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False,
) -> None:
    """Start a rollout and print its id; what is not given has the server's default."""
    if bool(hosts) == bool(host_class):
        raise UsageError("name the hosts, or give a class with --class, and not both")
    wanted: dict[str, object] = {
        "release": release, "hosts": hosts or None, "class": host_class or None, "servers": servers,
        "per_server": per_server, "blast_budget": blast_budget, "failure_budget": failure_budget,
        "minimum": dict(map(_service_count, minimum)) if minimum else None, "recovery": recovery or None,
        "level": level or None,
        **{f"{name}_s": duration.parse(text) for name, text in (
            ("update_time", update_time), ("download_time", download_time), ("interval", interval),
            ("start_interval", start_interval), ("deadline", deadline)) if text},
    }
    view = Admin(site, control).post("/rollouts", {key: value for key, value in wanted.items() if value is not None})
    print(json.dumps(view, indent=1) if as_json else view.get("id"))


def _service_count(text: str) -> tuple[str, int]:
    service, _, count = text.rpartition("=")
    if not service or not (count.isascii() and count.isdigit()):
        raise UsageError(f"{text!r} is not SERVICE=N, such as patches=2")
    return service, int(count)


@app.command(name="list")
def listing(site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False) -> None:
    """List the rollouts, newest first."""
    views = _rows(Admin(site, control).get("/rollouts"), "rollouts")
    if as_json:
        print(json.dumps(views, indent=1))
        return
    if not views:
        print("no rollouts yet; `reroot rollout start` starts one")
        return
    keys = ("id", "created", "release", "phase", "hosts", "healthy")
    console.columns([("ROLLOUT", "STARTED", "RELEASE", "PHASE", "HOSTS", "HEALTHY", "FAILED")] + [
        (*(str(_plain(view.get(key, "-"))) for key in keys), str(len(_rows(view, "failed")))) for view in views])


@app.command()
def status(
    rollout: IdArgument = "", site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False,
) -> None:
    """Show a rollout once."""
    view = _view(Admin(site, control), rollout)
    if as_json:
        print(json.dumps(view, indent=1))
    else:
        Console().print(table(view))


@app.command()
def watch(rollout: IdArgument = "", site: SiteOption = SITE, control: ControlOption = "") -> None:
    """Watch a rollout until it is over; exit code 6 when it halted, was aborted, or hosts failed."""
    admin = Admin(site, control)
    view = _view(admin, rollout)
    answered = True
    with Live(table(view), refresh_per_second=2) as live:
        while view.get("phase") not in OVER:
            time.sleep(LOOK_S)
            try:
                view = _view(admin, str(view.get("id")))
            except NetworkError as error:  # a restart of the server is no reason to leave a rollout unwatched
                if answered:
                    print(f"reroot: {error.sentence}; watching on until it answers again", file=sys.stderr)
                answered = False
                continue
            answered = True
            live.update(table(view))
    if not live.console.is_terminal:
        live.console.line()
    if view.get("phase") != Phase.DONE:
        raise RefusedError(f"rollout {view.get('id')} is {view.get('phase')}: {view.get('reason')}")
    failed = [str(_plain(one.get("host"))) for one in _rows(view, "failed") if not one.get("accepted")]
    if failed:
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise RefusedError(f"rollout {view.get('id')} is done, and {len(failed)} of {view.get('hosts')} hosts failed: "
                           f"{', '.join(failed[:NAMED])}{more}; `reroot rollout status` says why")


def _command(word: str, told: str) -> None:
    def tell(rollout: IdArgument = "", site: SiteOption = SITE, control: ControlOption = "") -> None:
        admin = Admin(site, control)
        name = rollout or _latest(admin)
        admin.post(f"/rollouts/{quote(name, safe='')}/{word}", {})
        print(f"rollout {name}: {told}")

    tell.__doc__ = f"{word.capitalize()} a rollout: {told}."
    app.command(name=word)(tell)


_command("pause", "no host is triggered until it is resumed")
_command("resume", "it goes on; failures before a halt count no more")
_command("abort", "no host is triggered any more; those in flight finish")


@app.command()
def knob(
    interval: Annotated[str, typer.Argument(help="Seconds between hosts, such as 20s; `auto` gives the pace back.")],
    rollout: IdArgument = "", site: SiteOption = SITE, control: ControlOption = "",
) -> None:
    """Turn the knob: how far apart hosts are triggered, from now on."""
    admin = Admin(site, control)
    name = rollout or _latest(admin)
    interval_s = None if interval == "auto" else duration.parse(interval)
    admin.put(f"/rollouts/{quote(name, safe='')}/knob", {"interval_s": interval_s})
    print(f"rollout {name}: " + ("its own pace" if interval_s is None else f"a host every {duration.show(interval_s)}"))


def _view(admin: Admin, rollout: str) -> View:
    return admin.get(f"/rollouts/{quote(rollout or _latest(admin), safe='')}")


def _latest(admin: Admin) -> str:
    match admin.get("/rollouts"):
        case {"rollouts": [{"id": str(name)}, *_]}:
            return name
    raise NotFoundError("there is no rollout yet; `reroot rollout start RELEASE HOST…` starts one")


def table(view: View) -> Group:
    """Draw a view (docs/protocols/rollout.md)."""
    seconds = view.get("interval_s")
    pace = duration.show(seconds) if isinstance(seconds, int | float) else "?"
    head = Table.grid(padding=(0, 2))
    head.add_row(_plain(view.get("release", "")), _plain(view.get("phase"), "bold"), _plain(view.get("reason", "")))
    head.add_row(f"wave {view.get('wave')} of {view.get('waves')}",
                 f"a host every {pace}" + (" (knob)" if view.get("knob_s") is not None else ""),
                 f"{view.get('healthy')} of {view.get('hosts')} healthy, {view.get('pending')} pending")
    rows = Table("host", "state", "for", "why")
    for one in _rows(view, "in_flight"):
        rows.add_row(_plain(one.get("host")), "in flight", duration.show(float(str(one.get("since_s", 0)))), "")
    for one in _rows(view, "held"):
        rows.add_row(_plain(one.get("host")), Text("waits", "yellow"), "", _plain(one.get("reason", "")))
    for one in _rows(view, "failed"):
        state = Text("accepted") if one.get("accepted") else Text("failed", "red")
        rows.add_row(_plain(one.get("host")), state, "", _plain(one.get("reason", "")))
    return Group(head, rows)


def _rows(view: View, key: str) -> list[View]:
    found = view.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _plain(value: object, style: str = "") -> Text:
    # Reasons are words of hosts: no markup and no control character of theirs may reach the terminal.
    return Text("".join(c if c.isprintable() else "\ufffd" for c in str(value)), style)
