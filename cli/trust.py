"""`reroot trust …`: whose signatures the site's hosts believe, and for how long. I/O: the site, keys, stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import console
from cli.admin import SITE, KeysOption, SiteOption, catalogue_of
from plumbing import clock

if TYPE_CHECKING:
    from imaging.ceremony import Standing

app = typer.Typer(no_args_is_help=True, help="Keys and signatures: show, rotate, add, remove, threshold, refresh. "
                  "docs/trust.md explains them.")

RoleArgument = Annotated[str, typer.Argument(metavar="ROLE", help="root, targets, snapshot or timestamp.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; times in seconds.")]
SOON_S = 14 * 86_400
"""`show` warns when a signature that nobody renews by itself holds no longer than this, in seconds."""


@app.command()
def show(site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """Show every role: its keys and where they are, how many must sign, and how long its signature holds."""
    from imaging.ceremony import standings
    from imaging.keyring import SHOWN

    found, now = standings(catalogue_of(site, keys)), clock.wall()
    if as_json:
        print(json.dumps([{
            "role": one.role, "version": one.version, "threshold": one.threshold, "expires": clock.iso(one.expires_s),
            "seconds_left": round(one.expires_s - now), "can_sign": one.can_sign(),
            "keys": [{"id": keyid, "file": None if path is None else str(path)} for keyid, path in one.keys.items()],
        } for one in found], indent=1))
        return
    rows = [["ROLE", "VERSION", "MUST SIGN", "EXPIRES", "LEFT", "KEY", "FILE"]]
    for one in found:
        left = one.expires_s - now
        head = [one.role, str(one.version), f"{one.threshold} of {len(one.keys)}", clock.iso(one.expires_s)[:10],
                f"{left / 86_400:.0f} days" if left > 0 else "EXPIRED"]
        for keyid, path in one.keys.items():
            rows.append([*head, keyid[:SHOWN], "not here" if path is None else str(path)])
            head = [""] * 5
    console.columns(rows)
    for one in found:
        if hint := _hint(one, one.expires_s - now, found):
            print(hint)


def _hint(one: Standing, left_s: float, found: list[Standing]) -> str:
    """Return what to do about a role, empty when nothing."""
    if left_s <= 0:
        return f"{one.role} has expired and hosts refuse the catalogue: run `reroot trust refresh {one.role}`"
    if one.role in {"root", "targets"} and left_s < SOON_S:
        return f"{one.role} expires in {left_s / 86_400:.0f} days: run `reroot trust refresh {one.role}`"
    if not one.can_sign() and one.role in {"snapshot", "timestamp"}:
        return (f"{one.role} cannot be signed here, so the catalogue expires: bring its key back, or run `reroot trust "
                f"rotate {one.role}`")
    if one.role == "root" and len(one.keys) == 1:
        return ("root has one key, and nobody can replace it when it is lost: `reroot trust add-key root NAME` adds "
                "another")
    return ""


@app.command()
def refresh(
    roles: Annotated[list[str] | None, typer.Argument(
        metavar="[ROLE]...", help="Sign these whether they are due or not (default: what is due).")] = None,
    days: Annotated[int, typer.Option(min=0, max=3650, help="How long the signatures hold (default: the role's time)."
                                      )] = 0,
    site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Sign anew what is about to expire, or the roles that are named; `reroot serve` does the former by itself."""
    from imaging.catalogue import LIFETIME_S

    lifetimes = dict.fromkeys(roles or LIFETIME_S, days * 86_400) if days else {}
    catalogue = catalogue_of(site, keys, lifetimes_s={**LIFETIME_S, **lifetimes})
    signed = list(roles or catalogue.refresh())
    for role in roles or ():
        catalogue.renew(role)
    if as_json:
        print(json.dumps({"signed": signed}))
    else:
        print(f"signed anew: {', '.join(signed)}" if signed else "nothing is due; name a role to sign it all the same")


@app.command()
def rotate(role: RoleArgument, site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """Replace the only key of a role by a new one; the old key's file is destroyed. Needs the root key."""
    from imaging import ceremony

    path = ceremony.rotate(catalogue_of(site, keys), role)
    if as_json:
        print(json.dumps({"role": role, "file": str(path)}))
        return
    print(f"{role} has a new key: {path}; hosts follow at their next look")
    print("destroy every copy of the old one")


@app.command()
def add_key(
    role: RoleArgument,
    name: Annotated[str, typer.Argument(help="Whose key it is, such as alice; the file is ROLE.NAME.pem.")],
    into: Annotated[Path | None, typer.Option(help="The folder for it, such as a stick (default: the site's keys).")]
    = None,
    site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Make another key that may sign for a role. Needs the root key, and enough keys of the role."""
    from imaging import ceremony

    folders = [*(keys or ()), *([into] if into else ())]
    catalogue = catalogue_of(site, folders)
    path = ceremony.add_key(catalogue, role, name, into or catalogue.keys)
    print(json.dumps({"role": role, "file": str(path)}) if as_json else
          f"{path} may sign for {role} now; `reroot trust threshold {role} 2` would require two signatures")


@app.command()
def remove_key(
    role: RoleArgument, keyid: Annotated[str, typer.Argument(metavar="KEY", help="Its id's beginning, as in `show`.")],
    site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Believe a key of a role no more, such as one that was lost. Needs the root key, and enough others of the role."""
    from imaging import ceremony

    gone = ceremony.remove_key(catalogue_of(site, keys), role, keyid)
    print(json.dumps({"role": role, "removed": gone}) if as_json else
          f"{gone} signs for {role} no more; hosts follow at their next look; destroy its file")


@app.command()
def recovery_key(
    given: Annotated[Path | None, typer.Option(
        "--recovery-key", help="The file of an X25519 key, its public half suffices (default: make one).",
        show_default=False)] = None,
    into: Annotated[Path | None, typer.Option(help="The folder for the new private half, such as a stick (default: the "
                                              "site's keys).", show_default=False)] = None,
    replace: Annotated[bool, typer.Option(help="Copies to come are not for the key there is now.")] = False,
    also: Annotated[bool, typer.Option(help="Copies to come are for both keys.")] = False,
    site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Say for whose key hosts encrypt second copies of precious files. Needs the targets key."""
    from control import recovery_key as placing
    from control.site import Site

    done = placing.place(Site.open(site), catalogue_of(site, keys), given, into, replace=replace, also=also)
    if as_json:
        print(json.dumps({"keys": list(done.ids), "file": None if done.file is None else str(done.file)}))
        return
    print(f"second copies are for {', '.join(one[:16] for one in done.ids)} from now on")
    if done.file is not None:
        print(f"{done.file} opens them, and nothing here needs it: take it offline now, and keep it")


@app.command()
def threshold(
    role: RoleArgument, signatures: Annotated[int, typer.Argument(min=1, help="How many different keys must sign.")],
    site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Require so many signatures for a role. Needs the root key, and as many keys of the role."""
    from imaging import ceremony

    ceremony.set_threshold(catalogue_of(site, keys), role, signatures)
    print(json.dumps({"role": role, "threshold": signatures}) if as_json else
          f"{role} needs {signatures} signature(s) from now on; hosts follow at their next look")
