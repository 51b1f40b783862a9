"""`reroot image push|pull|export|import`: releases between stores. I/O: site, network, stdout; progress on stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.admin import SITE, KeysOption, SiteOption, catalogue_of, store_of
from cli.console import size
from cli.progress import telling
from plumbing.errors import CorruptError

if TYPE_CHECKING:
    from imaging.bundle import Piece
    from imaging.catalogue import Catalogue
    from imaging.registry import Place, Registry
    from imaging.registry_auth import Credentials
    from imaging.store import Store
    from imaging.transfer import Moved

app = typer.Typer()

PlaceArgument = Annotated[str, typer.Argument(
    metavar="REGISTRY/REPOSITORY[:TAG]", help="Such as registry.example.org/os/debian:13.1-amd64.")]
AuthfileOption = Annotated[Path | None, typer.Option(
    help="Where `skopeo login` or `podman login` put the password (default: where they do, or REROOT_REGISTRY_AUTH="
         "USER:PASSWORD or REROOT_REGISTRY_TOKEN in the environment).", show_default=False)]
PlainOption = Annotated[bool, typer.Option("--plain-http", help="Speak HTTP instead of HTTPS.")]
SignOption = Annotated[bool, typer.Option(
    "--sign", help="Have this site vouch for it: read it back and sign it into the catalogue (needs the targets key).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")]


@app.command()
def push(
    ref: Annotated[str, typer.Argument(metavar="NAME/VERSION/ARCH", help="The release; /ARCH may be left out.")],
    place: PlaceArgument, authfile: AuthfileOption = None, plain_http: PlainOption = False,
    site: SiteOption = SITE, as_json: JsonOption = False,
) -> None:
    """Send a release, its recovery image and its deltas to an OCI registry; what is there is not sent again."""
    from imaging import transfer
    from imaging.audit import stored

    store = store_of(site)
    registry = _registry(place, authfile, plain_http)
    release = stored(store, ref)
    tag = registry.place.reference or transfer.default_tag(release)
    with telling("push", as_json=as_json) as tell:
        moved = transfer.push(store, release.ref, registry, tag, tell)
    where = f"{registry.place.host}/{registry.place.repository}:{tag}"
    if as_json:
        print(json.dumps({**_facts(moved), "place": where}, indent=1))
        return
    _tell(moved, "sent")
    print(f"{moved.release.ref} is {where}\nmanifest {moved.release.digest}")


@app.command()
def pull(
    place: Annotated[str, typer.Argument(
        metavar="REGISTRY/REPOSITORY:TAG", help="Or REPOSITORY@sha256:…, which takes that release and no other.")],
    sign: SignOption = False, authfile: AuthfileOption = None, plain_http: PlainOption = False,
    site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Fetch a release from an OCI registry into the store, every digest checked; hosts take it when it is signed."""
    from imaging import transfer
    from plumbing.errors import UsageError

    catalogue, store = catalogue_of(site, keys), store_of(site)
    registry = _registry(place, authfile, plain_http)
    if not registry.place.reference:
        raise UsageError(f"{registry.place} is a repository; add one of its tags: {', '.join(registry.tags()[-20:])}")
    with telling("pull", as_json=as_json) as tell:
        moved = transfer.receive(store, registry, registry.place.reference, progress=tell)
    facts = _received(catalogue, store, [moved], sign=sign, quiet=as_json)
    if as_json:
        print(json.dumps(facts[0], indent=1))


@app.command()
def export(
    ref: Annotated[str, typer.Argument(metavar="NAME/VERSION/ARCH", help="The release; /ARCH may be left out.")],
    target: Annotated[Path, typer.Argument(metavar="DIR|FILE.tar", help="A folder, or an archive by its name's end.")],
    site: SiteOption = SITE, as_json: JsonOption = False,
) -> None:
    """Copy a release, its recovery image and its deltas to a folder or a tar, to be carried by hand."""
    from imaging import layouts

    store = store_of(site)
    write = layouts.export_archive if target.suffix == ".tar" else layouts.export_folder
    with telling("export", as_json=as_json) as tell:
        moved = write(store, store.complete(ref), target, tell)
    if as_json:
        print(json.dumps({**_facts(moved), "place": str(target)}, indent=1))
        return
    _tell(moved, "written")
    print(f"{moved.release.ref} is in {target}\nmanifest {moved.release.digest}")


@app.command(name="import")
def bring_in(
    source: Annotated[Path, typer.Argument(metavar="DIR|FILE.tar", help="What `export` or skopeo made.")],
    ref: Annotated[str, typer.Argument(metavar="[NAME/VERSION/ARCH]", help="One release of it (default: all).")] = "",
    sign: SignOption = False, site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Take exported releases into the store, every digest checked; hosts take them when they are signed."""
    from imaging import layouts

    catalogue, store = catalogue_of(site, keys), store_of(site)
    with telling("import", as_json=as_json) as tell:
        found = layouts.bring_in(store, source, ref, tell)
    facts = _received(catalogue, store, found, sign=sign, quiet=as_json)
    if as_json:
        print(json.dumps(facts, indent=1))


def _received(
    catalogue: Catalogue, store: Store, found: Sequence[Moved], *, sign: bool, quiet: bool,
) -> list[dict[str, object]]:
    """Sign what came in, when that was asked for, tell it unless `quiet`, and return the facts."""
    from imaging.audit import audit
    from imaging.bundle import targets

    for moved in found if sign else ():
        with telling("check", as_json=quiet) as tell:
            audit(store, moved.release.ref, tell)
        catalogue.publish_all(targets(moved.pieces))
    deltas = [piece for moved in found for piece in moved.pieces if piece.delta is not None]
    unsigned = _sign_deltas(catalogue, store, deltas, quiet=quiet) if sign else {}
    listed, facts = catalogue.listed(), list[dict[str, object]]()
    for moved in found:
        release = moved.release
        published = release.target in listed and listed[release.target].digest == release.digest
        signed = {piece.ref: f"{piece.ref}.json" in listed and listed[f"{piece.ref}.json"].digest == piece.digest
                  for piece in moved.pieces if piece.delta is not None}
        facts.append({**_facts(moved), "published": published, "deltas": [
            {"ref": ref, "published": is_signed, "reason": unsigned.get(ref)} for ref, is_signed in signed.items()]})
        if quiet:
            continue
        _tell(moved, "received")
        print(f"{release.ref} is in the store\nmanifest {release.digest}")
        if sign:
            paths = [*targets(moved.pieces), *(f"{ref}.json" for ref, is_signed in signed.items() if is_signed)]
            print("\n".join(f"published as {path}" for path in paths))
            for ref in signed:
                if ref in unsigned:
                    print(f"not signed is {ref}: {unsigned[ref]}; hosts fetch frames instead")
        elif not published:
            print("not signed, so no host takes it yet; the same command with --sign signs it")
    return facts


def _sign_deltas(catalogue: Catalogue, store: Store, found: Sequence[Piece], *, quiet: bool) -> dict[str, str]:
    """Read back and sign the deltas whose ends are signed; return why the others are not, by their refs."""
    from imaging.bundle import hindrance
    from imaging.delta_audit import audit_delta

    signed = {path: one.digest for path, one in catalogue.listed().items()}
    stored = {ref: one.digest for ref, one in store.refs().items()}
    sound, unsigned = dict[str, bytes](), dict[str, str]()
    for piece in found:
        if (delta := piece.delta) is None:
            continue
        reason = hindrance(delta, stored, signed)
        if reason is None:
            try:
                with telling("check", as_json=quiet) as tell:
                    audit_delta(store, delta, progress=tell)
                sound[delta.target] = piece.manifest
            except CorruptError as error:
                reason = error.sentence
        if reason is not None:
            unsigned[piece.ref] = reason
    if sound:
        catalogue.publish_all(sound)
    return unsigned


def registry_place(text: str, authfile: Path | None, plain: bool) -> tuple[Place, Credentials | None]:
    """Return the place in a registry that `text` names, and who we are there; raises UsageError, ConfigError."""
    from imaging.registry import Place
    from imaging.registry_auth import find

    place = Place.parse(text, plain=plain)
    return place, find(place.host, place.repository, os.environ, authfile)


def _registry(text: str, authfile: Path | None, plain: bool) -> Registry:
    from imaging.registry import Registry

    return Registry(*registry_place(text, authfile, plain))


def _tell(moved: Moved, verb: str) -> None:
    for piece in moved.pieces[:-1]:
        print(f"with {piece.ref}")
    print(f"{size(moved.sent_bytes)} {verb}, {size(moved.there_bytes)} were there")


def _facts(moved: Moved) -> dict[str, object]:
    return {"ref": moved.release.ref, "digest": moved.release.digest, "moved_bytes": moved.sent_bytes,
            "there_bytes": moved.there_bytes, "artefacts": [piece.ref for piece in moved.pieces[:-1]]}
