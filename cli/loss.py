"""`reroot precious report`, `accept`: what an upgrade would lose, and who answered for it. I/O: HTTP, the terminal."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Callable, Collection
from typing import Annotated
from urllib.parse import quote

import typer

from cli import console
from cli.admin import SITE, Admin, ControlOption, SiteOption
from plumbing import clock
from plumbing.errors import BusyError, CorruptError, RefusedError, UsageError
from rollout import duration

View = dict[str, object]
HostArgument = Annotated[str, typer.Argument(help="The host's name in hosts.toml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WaitOption = Annotated[str, typer.Option("--wait", help="How long to wait for the host, such as 10m.")]
LOOK_S = 0.5
"""How long a wait pauses between looks, in seconds."""
_WORDS = {"added": "new", "changed": "changed", "installed": "package, not in the release",
          "updated": "package, updated", "more": "everything else"}


def report(
    host: HostArgument, site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Have the host look again in any case.")] = False,
    wait: WaitOption = "30m",
) -> None:
    """Print what an upgrade of the host would lose: what was added or changed there and no rule keeps.

    Exit code 6 while that keeps it from being upgraded.
    """
    admin = Admin(site, control)
    view = current(admin, host, fresh=fresh, wait_s=duration.parse(wait))
    if as_json:
        print(json.dumps(view, indent=1))
    else:
        print("\n".join(_lines(view)))
    if view.get("gate") != "clear":
        raise RefusedError(_text(view.get("why")))


def accept(
    host: HostArgument,
    findings: Annotated[
        list[str] | None, typer.Argument(help="Findings of its loss report.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All findings of its newest report.")] = False,
    by: Annotated[str, typer.Option("--by", help="Who says so (default: the user who runs this).")] = "",
    site: SiteOption = SITE, control: ControlOption = "", as_json: JsonOption = False,
) -> None:
    """Write down that findings of the host's loss report may be lost; who said so and when stands in its events."""
    if bool(findings) == everything:
        raise UsageError("name the findings that `reroot precious report` prints, or give --all, and not both")
    view = Admin(site, control).post(f"{_path(host)}/accept", {"findings": findings or None, "who": by or _user()})
    if as_json:
        print(json.dumps(view, indent=1))
        return
    left = _list(view.get("open"))
    print(f"{host}: nothing is left to answer" if view.get("gate") == "clear" else
          f"{host}: {len(left)} findings are left to answer" if left else f"{host}: {_text(view.get('why'))}")


def current(admin: Admin, host: str, *, fresh: bool, wait_s: float) -> View:
    """Return the host's report and what follows from it; a new one when `fresh` or when there is none that counts.

    Raises BusyError when none came in `wait_s` seconds, RefusedError when the host could make none.
    """
    view = admin.get(_path(host))
    if not (fresh or view.get("stale")):
        if view.get("gate") == "no_report":
            raise RefusedError(_text(view.get("why")))
        return view
    events = f"/hosts/{quote(host, safe='')}/events"
    last = 0
    while older := _rows(admin.get(f"{events}?after={last}&limit=5000"), "events"):
        last = int(str(older[-1].get("id")))
    view = admin.post(_path(host), {})
    deadline = clock.monotonic() + wait_s
    with _Line() as line:
        line.say(f"{host} was asked")
        while view.get("asked"):
            if clock.monotonic() > deadline:
                raise BusyError(f"{host} has sent no loss report in {duration.show(wait_s)}; is its agent running, "
                                "and of this version? It was asked; run this again later")
            time.sleep(LOOK_S)
            for event in _rows(admin.get(f"{events}?after={last}"), "events"):
                last = int(str(event.get("id")))
                data = event.get("data")
                if event.get("phase") == "loss" and event.get("event") == "progress" and isinstance(data, dict):
                    of = f" of {data['total']}" if data.get("total") else ""
                    line.say(f"{host}: {data.get('done')} entries{of}")
            view = admin.get(_path(host))
    if view.get("failed"):
        raise RefusedError(_text(view.get("why")))
    return view


def settle(admin: Admin, host: str, wait: str) -> None:
    """Let an order go on when nothing of the host would be lost unanswered; else print what, and raise RefusedError."""
    view = admin.get(_path(host))
    if view.get("rule") == "warn":
        return
    view = current(admin, host, fresh=False, wait_s=duration.parse(wait))
    if view.get("gate") != "clear":
        print("\n".join(_lines(view)))
        raise RefusedError(_text(view.get("why")) + ("; answer with `reroot precious accept`, then order again"
                                                    if view.get("gate") == "asks" else ""))


def _lines(view: View) -> list[str]:
    made = view.get("report")
    if not isinstance(made, dict):
        return [f"{_text(view.get('host'))} has made no loss report yet"]
    waiting = {str(one) for one in _list(view.get("open"))}
    answers = {str(one.get("finding")): one for one in _rows(view, "accepted")}
    baseline = str(made.get("baseline"))
    what = "the package database" if baseline == "packages" else baseline.split(" ", maxsplit=1)[0]
    found = _rows(made, "findings")
    lines = [f"{_text(view.get('host'))}, {view.get('received')}: {made.get('entries')} entries compared with "
             f"{_text(what)} in {made.get('seconds')} s; {len(found)} findings, {len(waiting)} to answer "
             f"([loss] rule = \"{_text(view.get('rule'))}\")"]
    for one in found:
        lines += _finding(str(view.get("host")), one, waiting, answers)
    return lines + [f"note: {_text(note)}" for note in _list(made.get("notes"))]


def _finding(host: str, one: View, waiting: Collection[str], answers: dict[str, View]) -> list[str]:
    name, files = _text(one.get("id")), int(str(one.get("files")))
    place = _text(one.get("where")) + ("/**" if one.get("whole") and one.get("kind") == "added" else "")
    head = (f"{name}  {_WORDS.get(str(one.get('kind')), '?')}: {place}  {files} file{'s' if files != 1 else ''}, "
            f"{console.size(int(str(one.get('bytes'))))}, newest {clock.iso(float(str(one.get('newest_s'))))[:10]}"
            + (f", {one.get('archived')} kept in the archive only" if one.get("archived") else ""))
    lines = ["", head]
    names = _list(one.get("names"))
    lines += [f"    {_text(path)}" for path in names[:5]] + (["    …"] if files > len(names[:5]) else [])
    if toml := rule_text(one):
        lines.append(f"  keep: {toml}")
    if one.get("kind") == "installed":
        lines.append("  keep: put the package into the image")
    if name in answers:
        lines.append(f"  accepted by {_text(answers[name].get('who'))}, {_text(answers[name].get('at'))}")
    elif name in waiting:
        lines.append(f"  lose: reroot precious accept {host} {name}")
    return lines


def rule_text(finding: View) -> str:
    """Return the rule that would keep a finding, as it goes into precious.toml; empty when no rule can."""
    globs = [str(glob) for glob in _list(finding.get("keep"))]
    if not globs:
        return ""
    text = ", ".join(json.dumps(glob, ensure_ascii=not glob.isprintable()) for glob in globs)
    return f"[[rule]] keep = [{text}]".replace("[[rule]] ", "[[rule]]\n        ") + (
        "\n        modified = true" if finding.get("modified") else "")


class _Line:
    """One line on a terminal that is written over; nothing elsewhere."""

    def __init__(self) -> None:
        self._on: Callable[[str], object] | None = sys.stderr.write if sys.stderr.isatty() else None

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.say("")

    def say(self, text: str) -> None:
        if self._on is not None:
            self._on(f"\r\033[K{_text(text)}")
            sys.stderr.flush()


def _path(host: str) -> str:
    return f"/hosts/{quote(host, safe='')}/loss"


def _user() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return f"uid {os.getuid()}"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _rows(view: View, key: str) -> list[View]:
    found = view.get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise CorruptError("the control server's answer is not what it should be; are both of the same version?")
    return found


def _text(value: object) -> str:
    """Write what came from a host: nothing of it may steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))
