"""`reroot precious …`: what survives on a site's hosts, and by which rule. I/O: the site's policy file, stdout."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Annotated

import typer

from cli.admin import SITE, SiteOption

app = typer.Typer(no_args_is_help=True, help="What survives an upgrade.")


@app.callback()
def _group() -> None:
    """Keep this a group while it has one command."""


@app.command()
def check(
    site: SiteOption = SITE, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every rule in force, as an order would carry it, and where it comes from; the last that matches wins."""
    from control.orders import site_policy
    from control.site import Site

    found = site_policy(Site.open(site).precious)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    for origin, rules in groupby(found.rules, lambda rule: rule.origin):
        print(f"{origin}:")
        for number, rule in enumerate(rules, 1):
            print(f"  rule {number} ({rule.when.value}): {'  '.join(rule.keep)}"
                  + "".join(f"  not {glob}" for glob in rule.exclude))
    unlisted = found.unlisted
    print(f"files that no rule names: up to {unlisted.max_bytes} bytes of {'  '.join(unlisted.look) or 'nothing'}"
          + "".join(f"  not {glob}" for glob in unlisted.skip))
