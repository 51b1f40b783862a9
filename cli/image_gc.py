"""`reroot image gc`: take out of the store what nothing needs. I/O: the site, stdout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from cli import console
from cli.admin import SITE, KeysOption, SiteOption, catalogue_of
from plumbing import clock
from plumbing.errors import RefusedError

if TYPE_CHECKING:
    from imaging.needed import Fate, Plan

app = typer.Typer()


@app.command()
def gc(
    remove: Annotated[bool, typer.Option("--remove/--dry-run", help="Do it, or (the default) only say what goes.")]
    = False,
    grace_hours: Annotated[float, typer.Option(
        min=0, help="What was stored later than this many hours ago stays: something may be about to name it.")] = 24.0,
    unpublished: Annotated[bool, typer.Option(
        "--unpublished", help="Releases and deltas that are not in the catalogue, and nothing needs, go too.")] = False,
    site: SiteOption = SITE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")] = False,
) -> None:
    """Say what of the store nothing needs and why the rest stays; with --remove, take it out."""
    from control.keeping import needs
    from control.site import Site
    from imaging.garbage import collect
    from imaging.store import Store

    opened, now = Site.open(site), clock.wall()
    plan = collect(Store(opened.store), lambda: needs(opened, now), remove=remove, grace_s=grace_hours * 3600,
                   unpublished=unpublished, now=now)
    if as_json:
        print(json.dumps(_facts(plan, remove), indent=1))
        return
    _table(plan)
    going = sum(one.goes for one in plan.blobs)
    done = "removed" if remove else "would go"
    print(f"{done}: {console.size(plan.bytes(going=True))} in blobs, {going} of {len(plan.blobs)}; what stays has "
          f"{console.size(plan.bytes(going=False))}")
    if going and not remove:
        print("nothing was removed; the same command with --remove does it")


@app.command()
def withdraw(
    ref: Annotated[str, typer.Argument(metavar="NAME/VERSION/ARCH", help="The release; /ARCH may be left out.")],
    site: SiteOption = SITE, keys: KeysOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Take a release, and the deltas that join it to others, out of the catalogue. `gc` removes its bytes later."""
    from control.keeping import CATALOGUE, needs
    from control.site import Site
    from imaging.audit import stored
    from imaging.delta_manifest import joined
    from imaging.needed import resolve
    from imaging.store import Store

    opened = Site.open(site)
    store, catalogue = Store(opened.store), catalogue_of(site, keys)
    release = stored(store, ref)
    refs = {name: found.digest for name, found in store.refs().items()}
    for need in needs(opened, clock.wall()):
        if release.digest in resolve(need.what, refs) and not need.why.startswith(CATALOGUE):
            raise RefusedError(f"{release.ref} is needed: {need.why}; withdraw it when that is over")
    listed = catalogue.listed()
    deltas = [path for path in listed if release.ref in (joined(path) or ())]  # useless without both their ends
    catalogue.withdraw(release.target, *deltas)
    for digest in (release.digest, *(listed[path].digest for path in deltas)):
        store.claim(digest)  # its grace time begins now
    if as_json:
        print(json.dumps({"ref": release.ref, "target": release.target, "deltas": deltas}))
        return
    print(f"{release.ref} is not in the catalogue any more; `reroot image gc --remove --unpublished` frees its room")
    for path in deltas:
        print(f"withdrawn with it: {path.removesuffix('.json')}")


def _table(plan: Plan) -> None:
    """Print a line for every ref and every blob that goes; the blobs that stay by their reasons."""
    rows = [("", "WHAT", "SIZE", "WHY")]
    rows += [_row(one, one.name) for one in plan.refs]
    rows += [_row(one, f"{one.name[:19]}…") for one in plan.blobs if one.goes]
    kept: dict[str, list[Fate]] = {}
    for one in plan.blobs:
        if not one.goes:
            kept.setdefault(one.why, []).append(one)
    rows += [("stays", f"{len(ones)} blobs", console.size(sum(one.size for one in ones)), why)
             for why, ones in sorted(kept.items())]
    if len(rows) > 1:
        console.columns(rows)


def _row(one: Fate, name: str) -> tuple[str, str, str, str]:
    return "goes" if one.goes else "stays", name, console.size(one.size) if one.size else "", one.why


def _facts(plan: Plan, removed: bool) -> dict[str, object]:
    def listed(fates: tuple[Fate, ...], *, goes: bool) -> list[dict[str, object]]:
        return [{"name": one.name, "bytes": one.size, "why": one.why} for one in fates if one.goes == goes]

    fates = (*plan.refs, *plan.blobs)
    return {"removed": removed, "bytes_going": plan.bytes(going=True), "bytes_staying": plan.bytes(going=False),
            "goes": listed(fates, goes=True), "stays": listed(fates, goes=False)}
