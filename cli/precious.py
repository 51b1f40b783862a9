"""`reroot precious …`: what survives on a site's hosts, and by which rule. I/O: site files, a tree, HTTP, stdout."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from cli import loss
from cli.admin import SITE, Admin, ControlOption, SiteOption

if TYPE_CHECKING:
    from precious.policy import Policy
    from precious.rules import Rule

app = typer.Typer(no_args_is_help=True, help="What survives an upgrade.")

app.command()(loss.report)
app.command()(loss.accept)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def show(
    host: Annotated[str, typer.Argument(help="The host's name in hosts.toml.")], site: SiteOption = SITE,
    control: ControlOption = "", as_json: JsonOption = False,
) -> None:
    """Print the rules of the host's next order, each with its file and line; the last that matches wins."""
    from precious.policy import Policy

    answer = Admin(site, control).get(f"/hosts/{quote(host, safe='')}/precious")
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    found = answer.get("policy")
    policy = Policy.from_json(found if isinstance(found, dict) else {})
    for rule in policy.rules:
        print(f"{rule.where}: {rule_line(rule)}")
    origin = answer.get("unlisted_origin")
    print(f"{origin}: {_unlisted_line(policy)}" if origin else _unlisted_line(policy))
    origin = answer.get("second_copy_origin")
    print(f"{origin}: {policy.second_copy.told()}" if origin else policy.second_copy.told())
    print(_loss_line(policy))


@app.command()
def check(
    site: SiteOption = SITE, as_json: JsonOption = False,
    root: Annotated[Path | None, typer.Option(help="A tree: name the patterns that match nothing in it.")] = None,
) -> None:
    """Print every rule a host has at least and where it comes from, and check the files of all classes and hosts."""
    from control import policies
    from control.site import Site
    from fleet import health, hosts

    opened = Site.open(site)
    policies.check(opened.precious)
    system = {} if root is None else health.os_release(root / "etc/os-release")
    found = policies.site_policy(opened.precious, system)
    strays = policies.strays(opened.precious, hosts.load(opened.hosts))
    idle = [] if root is None else [(rule.where, glob) for rule, glob in _idle(
        policies.every_rule(opened.precious, system), root)]
    if as_json:
        more = {"strays": strays} | ({} if root is None else {"idle": [list(row) for row in idle]})
        print(json.dumps({**found.to_json(), **more}, indent=1))
        return
    for origin, rules in groupby(found.rules, lambda rule: rule.origin):
        print(f"{origin}:")
        for number, rule in enumerate(rules, 1):
            print(f"  rule {number} {rule_line(rule)}")
    print(_unlisted_line(found))
    print(found.second_copy.told())
    print(_loss_line(found))
    for sentence in strays:
        print(sentence)
    for where, glob in idle:
        print(f"{where}: {glob} matches nothing in {root}")


def rule_line(rule: Rule) -> str:
    """Return a rule as one line: its verdict and merger, what it keeps and not, and its conditions."""
    asked = "".join(f"  {name} = {json.dumps(value)}" for name, value in rule.conditions.to_json().items())
    verdict = rule.when.value + (f" {rule.merge}" if rule.merge else "")
    return f"({verdict}): {'  '.join(rule.keep)}" + "".join(f"  not {glob}" for glob in rule.exclude) + asked


def _loss_line(policy: Policy) -> str:
    return f"losses: {policy.loss.rule.value}; nobody would miss {'  '.join(policy.loss.ignore) or 'nothing'}"


def _unlisted_line(policy: Policy) -> str:
    unlisted = policy.unlisted
    return (f"files that no rule names: up to {unlisted.max_bytes} bytes of {'  '.join(unlisted.look) or 'nothing'}"
            + "".join(f"  not {glob}" for glob in unlisted.skip))


def _idle(policy: Policy, root: Path) -> list[tuple[Rule, str]]:
    from imaging.scan import scan

    return list(policy.idle(entry.path for entry in scan(root, one_file_system=True, note=lambda _: None,
                                                         descend=policy.may_hold)))
