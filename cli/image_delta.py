"""`reroot image delta|apply-delta`, and what `list`, `show`, `verify` say of deltas. I/O: site, stdout, stderr."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.admin import SITE, KeysOption, SiteOption, catalogue_of, store_of
from cli.console import size
from cli.progress import Report, telling
from plumbing import clock
from plumbing.errors import NotFoundError, RefusedError, UsageError

if TYPE_CHECKING:
    from imaging.delta import Delta
    from imaging.delta_manifest import DeltaManifest
    from imaging.release import Release
    from imaging.sources import FileSource
    from imaging.store import Store

app = typer.Typer()

OldArgument = Annotated[str, typer.Argument(metavar="OLD", help="The release hosts have: NAME/VERSION/ARCH.")]
NewArgument = Annotated[str, typer.Argument(metavar="NEW", help="The release they are to get.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")]


@app.command(name="delta")
def make(
    old: OldArgument, new: NewArgument, site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Make what turns one release into another: into the store, and signed into the catalogue."""
    from imaging.audit import stored
    from imaging.delta_build import build
    from imaging.delta_manifest import DeltaManifest

    catalogue, store = catalogue_of(site, keys), store_of(site)
    before, after = stored(store, old), stored(store, new)
    started = clock.monotonic()
    with telling("delta", as_json=as_json) as tell:
        manifest = build(store, before, after, progress=tell)
    found = DeltaManifest.parse(manifest)
    catalogue.publish(found.target, manifest)
    seconds = clock.monotonic() - started
    if as_json:
        head, source = _head(store, found, before, after)
        source.close()
        print(json.dumps({
            "ref": found.ref, "target": found.target, "old": before.ref, "new": after.ref, "bytes": found.blob_size,
            "digest": found.blob_digest, **_head_facts(head),
            "layer_bytes": after.layer_size, "seconds": round(seconds, 3)}, indent=1))
        return
    print(f"{before.ref} to {after.ref}: {size(found.blob_size)} instead of {size(after.layer_size)}, "
          f"in {seconds:.1f} s")
    print(f"published as {found.target}")


@app.command(name="apply-delta")
def apply(
    old: OldArgument, new: NewArgument,
    target: Annotated[Path, typer.Argument(help="An empty directory, or one that is not there yet.")],
    tree: Annotated[Path | None, typer.Option(
        help="Take old files from this tree, a living root say (default: from OLD's layer in the store).")] = None,
    site: SiteOption = SITE, as_json: JsonOption = False,
) -> None:
    """Make NEW's tree in a directory out of OLD and the delta, and compare every file of it; needs root."""
    from imaging import delta_apply
    from imaging.audit import load_index, stored
    from imaging.delta_manifest import DeltaManifest, delta_ref
    from imaging.fetch import FrameFetcher
    from imaging.file_contents import LayerContents, TreeContents
    from imaging.sources import FileSource
    from imaging.verify import verify
    from plumbing.durable import told

    catalogue, store = catalogue_of(site), store_of(site)
    before, after = stored(store, old), stored(store, new)
    target_path = f"{delta_ref(before.ref, after.ref)}.json"
    if target_path not in catalogue.listed():
        raise NotFoundError(f"there is no delta from {before.ref} to {after.ref}; `reroot image delta` makes it")
    if tree is not None and not tree.is_dir():
        raise UsageError(f"{tree} is not a directory; name the root of a tree that was made from {before.ref}")
    with told(f"the target {target}", "nothing was made"):
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise RefusedError(f"{target} is not empty; name another directory")
    started = clock.monotonic()
    head, blob = _head(store, DeltaManifest.parse(catalogue.read(target_path)), before, after)
    layers = [FileSource(store.blob_path(release.layer_digest)) for release in (before, after)]
    fetchers = [FrameFetcher([source]) for source in (blob, *layers)]
    before_index = load_index(store, before)
    index = delta_apply.new_index(head, before_index, fetchers[0])
    contents = LayerContents(before_index, fetchers[1]) if tree is None else TreeContents(tree, before_index)
    with telling("apply", as_json=as_json) as tell:
        report, taken = delta_apply.apply(head, before_index, index, target, contents=contents, frames=fetchers[0],
                                          full=fetchers[2], progress=tell)
    seconds = clock.monotonic() - started
    for source in (blob, *layers):
        source.close()
    wrong = verify(index, target)
    if as_json:
        print(json.dumps({"entries": report.entries, "copied_bytes": taken.copied, "made_bytes": taken.made,
                          "fetched_bytes": taken.fetched, "missed": list(taken.missed), "mismatches": len(wrong),
                          "seconds": round(seconds, 3)}, indent=1))
    else:
        print(f"{report.entries} entries: {size(taken.copied)} copied, {size(taken.made)} made from the "
              f"delta, {size(taken.fetched)} of {len(taken.missed)} files from the full release, "
              f"in {seconds:.1f} s")
    if wrong:
        raise RefusedError(f"{target} is not {after.ref}: {len(wrong)} differences, first {wrong[0]}")


def facts(store: Store, listed: Mapping[str, str]) -> list[dict[str, object]]:
    """Return what `list` and `show` tell of every delta in the store; `listed` is the catalogue's digests by path."""
    from imaging.delta_audit import deltas

    return [_facts(found, digest, listed) for digest, found in deltas(store).items()]


def row(one: Mapping[str, object]) -> tuple[str, str, str]:
    """Return the columns of `list` for one of `facts`."""
    return f"{one['old']} → {one['new']}", size(int(str(one["bytes"]))), "yes" if one["published"] else "no"


def described(store: Store, ref: str, listed: Mapping[str, str]) -> dict[str, object]:
    """Return all that is told of the delta called `ref`; raises NotFoundError."""
    from imaging.delta_audit import deltas
    from imaging.sources import FileSource

    for digest, found in deltas(store).items():
        if found.ref == ref:
            with closing(FileSource(store.blob_path(found.blob_digest))) as source:
                head = found.decode_head(source.read(found.head_offset, found.head_length))
            return {**_facts(found, digest, listed), **_head_facts(head)}
    raise NotFoundError(f"{ref!r} is no delta in the store {store.path}; `reroot image list` shows what is")


def verified(store: Store, listed: Mapping[str, str], of: str, *, skip: Collection[str], deep: bool, quiet: bool,
             ) -> list[dict[str, object]]:
    """Read back the delta called `of`, or those to the release of that name, or all; tell it unless `quiet`."""
    from imaging.delta_audit import audit_delta, deltas

    done, there = list[dict[str, object]](), deltas(store)
    if of.startswith("deltas/") and of not in [found.ref for found in there.values()]:
        raise NotFoundError(f"{of!r} is no delta in the store {store.path}; `reroot image list` shows what is")
    for digest, found in there.items():
        if found.target in skip or of not in {"", found.ref, found.new}:
            continue
        with Report() as report:
            report.begin("verify")
            result = audit_delta(store, found, deep=deep, progress=None if quiet else report.advance)
        one = _facts(found, digest, listed)
        done.append({**one, "frames": result.frames, "contents": result.contents, "lacks": result.lacks,
                     "applied": deep and result.lacks is None, "repacked_otherwise": list(result.elsewhere)})
        if quiet:
            continue
        words = [f"{found.old} → {found.new}: {result.frames} frames, {result.contents} files, "
                 f"{size(found.blob_size)}: sound"]
        words += [f"the store has no {result.lacks} to compare it with"] if result.lacks is not None else []
        words += [f"{len(result.elsewhere)} files are packed otherwise here, and fetched by hosts like this one"] \
            if result.elsewhere else []
        words += [] if one["published"] else ["NOT in the catalogue, no host will take it"]
        print("; ".join(words))
    return done


def lost(store: Store, listed: Mapping[str, str]) -> list[str]:
    """Return the catalogue paths of the deltas that the store lacks, as manifests or as blobs."""
    from imaging.delta_audit import deltas
    from imaging.delta_manifest import joined

    there = {(found.target, digest) for digest, found in deltas(store).items() if store.has(found.blob_digest)}
    return sorted(path for path, digest in listed.items() if joined(path) and (path, digest) not in there)


def _facts(found: DeltaManifest, digest: str, listed: Mapping[str, str]) -> dict[str, object]:
    return {"ref": found.ref, "old": found.old, "new": found.new, "bytes": found.blob_size,
            "digest": found.blob_digest, "manifest": digest, "published": listed.get(found.target) == digest}


def _head_facts(head: Delta) -> dict[str, object]:
    return {"index_bytes": head.index.frame.length, "frames": len(head.frames), "contents": len(head.contents),
            "repacked": sum(bool(content.recipe) for content in head.contents)}


def _head(store: Store, found: DeltaManifest, before: Release, after: Release) -> tuple[Delta, FileSource]:
    from imaging.sources import FileSource

    source = FileSource(store.blob_path(found.blob_digest))
    return found.read_head(source.read(found.head_offset, found.head_length), before, after), source
