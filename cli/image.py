"""`reroot image …`: releases in a site's store and catalogue. I/O: the site, stdout; progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import console, image_delta, image_gc, image_restore, image_transfer
from cli.admin import SITE, KeysOption, SiteOption, catalogue_of, store_of
from cli.image_transfer import AuthfileOption, PlainOption, registry_place
from cli.progress import Report
from plumbing import clock
from plumbing.errors import CorruptError, NotFoundError, UsageError

if TYPE_CHECKING:
    from imaging.catalogue import Catalogue
    from imaging.excludes import Exclude
    from imaging.release import Release
    from imaging.store import Store

app = typer.Typer(
    no_args_is_help=True,
    help="Releases: build, list, show, verify, restore, push, pull, export, import, gc; deltas between them.")
app.add_typer(image_delta.app)
app.add_typer(image_gc.app)
app.add_typer(image_restore.app)
app.add_typer(image_transfer.app)

RefArgument = Annotated[str, typer.Argument(metavar="NAME/VERSION/ARCH", help="The release; /ARCH may be left out.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")]
ExcludeOption = Annotated[list[str] | None, typer.Option(
    help="Leave out as well: /path/*, a name, files:/folder or content:/file; may be given again.")]
ExcludeFromOption = Annotated[list[Path] | None, typer.Option(
    help="Leave out as well what this file lists, one a line, # for comments; may be given again.")]
KeepOption = Annotated[list[str] | None, typer.Option(
    metavar="PATTERN", help="Do not leave out this one of the defaults; may be given again.")]
DefaultsOption = Annotated[bool, typer.Option(help="Leave out what belongs to one host or to a running system.")]

@app.command()
def build(
    source: Annotated[str, typer.Argument(
        help="A root tree; or, as root, a tar of one, a raw or qcow2 disk image, oci:LAYOUT[:TAG], or "
             "docker://REGISTRY/REPOSITORY:TAG.")],
    name: Annotated[str, typer.Option(help="The release's name, such as debian.")],
    version: Annotated[str, typer.Option(help="Its version; a version is built once and never changes.")],
    arch: Annotated[str, typer.Option(help="Its architecture, as Debian writes it (default: the tree's).")] = "",
    partition: Annotated[int | None, typer.Option(
        min=1, help="The disk image's partition (default: its only root, or only Linux filesystem).")] = None,
    one_file_system: Annotated[bool, typer.Option(
        "--one-file-system/--all-file-systems", help="Leave out what is mounted in the tree, or take it.")] = True,
    scratch: Annotated[Path | None, typer.Option(
        help="Where a tar or an image is unpacked (default: $TMPDIR or /tmp); gone afterwards.")] = None,
    exclude: ExcludeOption = None, exclude_from: ExcludeFromOption = None, keep_default: KeepOption = None,
    default_excludes: DefaultsOption = True,
    authfile: AuthfileOption = None, plain_http: PlainOption = False,
    recovery: Annotated[str, typer.Option(help="The recovery image that restores it: NAME/VERSION/ARCH.")] = "",
    base: Annotated[str, typer.Option(
        help="Take frames from this release (default: the newest of the same name, arch and compression).")] = "",
    no_base: Annotated[bool, typer.Option("--no-base", help="Compress everything anew.")] = False,
    workers: Annotated[int | None, typer.Option(
        min=1, max=256, help="Compressing threads (default: a core each, as far as 160 MiB go).")] = None,
    level: Annotated[int, typer.Option(min=1, max=19, help="zstd level: 3 as fast as reading, 19 smallest.")] = 3,
    site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Make a release of a root tree: into the store, and signed into the catalogue."""
    from imaging.audit import stored
    from imaging.capture import capture
    from imaging.frames import compression
    from imaging.release import Release, check_word
    from imaging.reuse import newest_base, opened_base
    from imaging.root_sources.choose import choose

    if base and no_base:
        raise UsageError("--base and --no-base contradict each other; give one of them")
    store, catalogue = _open(site, keys)
    excludes = _excludes(exclude, exclude_from, keep_default, default_excludes)
    target = _recovery_target(catalogue, recovery) if recovery else None
    for word, what in ((name, "name"), (version, "version"), (arch or "any", "architecture")):
        check_word(word, what)  # before anything is unpacked
    started, notes, reused = clock.monotonic(), list[str](), [0, 0]
    with ExitStack() as stack:
        report = stack.enter_context(Report(as_json=as_json))

        def note(sentence: str) -> None:
            notes.append(sentence)
            report.note(sentence)

        report.begin("open", source=source)
        found = choose(source, arch=arch or None, partition=partition, scratch=scratch, note=note,
                       login=lambda text: registry_place(text, authfile, plain_http))
        root = stack.enter_context(found.opened())
        known = stored(store, base) if base else None if no_base else newest_base(
            store, name, root.arch, compression(level))
        frames = stack.enter_context(opened_base(store, known)) if known else None
        report.done("open", arch=root.arch, base=known.ref if known else None)
        report.begin("capture", ref=f"{name}/{version}/{root.arch}")
        manifest = capture(root.path, store, name=name, version=version, arch=root.arch, excludes=excludes, level=level,
                           recovery=target, progress=report.advance if report.heard else None, note=note,
                           workers=workers, one_file_system=one_file_system, base=frames,
                           on_reuse=lambda count, length: reused.__setitem__(slice(2), [count, length]))
        release = Release.parse(manifest)
        report.done("capture", done_bytes=release.raw_bytes, total_bytes=release.raw_bytes)
    catalogue.publish(release.target, manifest)
    if as_json:
        _print_json({**_facts(release), "published": True, "notes": notes, "base": known.ref if known else None,
                     "reused_frames": reused[0], "reused_bytes": reused[1],
                     "seconds": round(clock.monotonic() - started, 3)})
        return
    for sentence in notes:
        print(f"note: {sentence}")
    print(f"{release.ref}: {release.entries} entries, {console.size(release.raw_bytes)} as "
          f"{console.size(release.layer_size)}, "
          f"in {clock.monotonic() - started:.1f} s")
    if known is not None and reused[0]:
        print(f"{console.size(reused[1])} in {reused[0]} frame{'s' if reused[0] > 1 else ''} taken from {known.ref}")
    print(f"manifest {release.digest}")
    print(f"published as {release.target}")


@app.command(name="excludes")
def list_excludes(
    exclude: ExcludeOption = None, exclude_from: ExcludeFromOption = None, keep_default: KeepOption = None,
    default_excludes: DefaultsOption = True, as_json: JsonOption = False,
) -> None:
    """List what `image build` with the same options leaves out, and why."""
    found = _excludes(exclude, exclude_from, keep_default, default_excludes)
    if as_json:
        _print_json([{"pattern": one.pattern, "what": one.what.value, "reason": one.reason} for one in found])
    elif found:
        console.columns([("PATTERN", "WHAT", "WHY"), *((one.pattern, one.what.value, one.reason) for one in found)])
    else:
        print("nothing is left out")


@app.command(name="list")
def listing(site: SiteOption = SITE, as_json: JsonOption = False) -> None:
    """List the releases in the store, the deltas between them, and whether the catalogue vouches for them."""
    store, catalogue = _open(site)
    published = {path: listed.digest for path, listed in catalogue.listed().items()}
    releases, deltas = _releases(store), image_delta.facts(store, published)
    if as_json:
        _print_json([{**_facts(release), "published": published.get(release.target) == release.digest,
                      "deltas": [one for one in deltas if one["new"] == release.ref]} for release in releases])
        return
    if not releases:
        print("no releases yet; `reroot image build` makes one")
        return
    rows = [("RELEASE", "SIZE", "UNPACKED", "ENTRIES", "PUBLISHED", "RECOVERY")]
    rows += [(release.ref, console.size(release.layer_size), console.size(release.raw_bytes), str(release.entries),
              "yes" if published.get(release.target) == release.digest else "no", release.recovery or "-")
             for release in releases]
    console.columns(rows)
    if deltas:
        print()
        console.columns([("DELTA", "SIZE", "PUBLISHED"), *map(image_delta.row, deltas)])


@app.command()
def show(ref: RefArgument, site: SiteOption = SITE, as_json: JsonOption = False) -> None:
    """Show one release, or one delta by its name (deltas/…): digests, sizes, what it holds."""
    from imaging.audit import load_index, stored

    store, catalogue = _open(site)
    published = {path: listed.digest for path, listed in catalogue.listed().items()}
    if ref.startswith("deltas/"):
        one = image_delta.described(store, ref, published)
        if as_json:
            _print_json(one)
        else:
            console.columns([(f"{key.replace('_', ' ')}:", str(value)) for key, value in one.items()])
        return
    release = stored(store, ref)
    deltas = [one for one in image_delta.facts(store, published) if release.ref in (one["old"], one["new"])]
    index = load_index(store, release)
    counts: dict[str, int] = {}
    for entry in index.entries:
        counts[entry.type.name.lower()] = counts.get(entry.type.name.lower(), 0) + 1
    facts = {**_facts(release), "published": published.get(release.target) == release.digest,
             "frames": len(index.frames), "content_bytes": index.content_bytes, "types": counts}
    if as_json:
        _print_json({**facts, "deltas": deltas})
        return
    facts.update({f"delta from {one['old']}" if one["new"] == release.ref else f"delta to {one['new']}":
                  f"{one['bytes']}{'' if one['published'] else ', not published'}" for one in deltas})
    console.columns([(f"{key.replace('_', ' ')}:", ", ".join(f"{count} {kind}" for kind, count in counts.items())
                     if key == "types" else "-" if value is None else str(value)) for key, value in facts.items()])


@app.command()
def verify(
    ref: Annotated[str, typer.Argument(
        metavar="[NAME/VERSION/ARCH]", help="One release and the deltas to it, or one delta (default: all).")] = "",
    deep: Annotated[bool, typer.Option(
        "--deep", help="Make every file of every delta out of the old release, as a host would.")] = False,
    site: SiteOption = SITE, as_json: JsonOption = False,
) -> None:
    """Read releases and deltas back: tar, index, frames, digests, and that store and catalogue name the same."""
    from imaging.audit import audit, stored

    store, catalogue = _open(site)
    listed = {path: found.digest for path, found in catalogue.listed().items()}
    published = {path: digest for path, digest in listed.items() if path.startswith("releases/")}
    releases = _releases(store)
    done: list[dict[str, object]] = []
    asked = [] if ref.startswith("deltas/") else [stored(store, ref)] if ref else releases
    for release in asked:
        with Report() as report:
            report.begin("verify")
            found = audit(store, release.ref, None if as_json else report.advance)
        named = (published.get(release.target) == release.digest
                 and catalogue.read(release.target) == store.manifest(release.ref))
        done.append({"ref": release.ref, "published": named, "frames": found.frames, "files": found.files,
                     "content_bytes": found.content_bytes})
        if not as_json:
            print(f"{release.ref}: {found.frames} frames, {found.files} files, "
                  f"{console.size(found.content_bytes)}: sound"
                  f"{'' if named else '; NOT in the catalogue, no host will take it'}")
    lost = image_delta.lost(store, listed)
    done += image_delta.verified(store, listed, asked[0].ref if ref and asked else ref, skip=lost, deep=deep,
                                 quiet=as_json)
    if as_json:
        _print_json(done)
    elif not done and not published:
        print("nothing to verify: neither store nor catalogue has a release; `reroot image build` makes one")
    missing = sorted(path for path, _ in published.items() - {(release.target, release.digest) for release in releases})
    if missing and not ref:
        raise CorruptError(f"the catalogue names {len(missing)} releases that the store does not have "
                           f"({', '.join(missing[:5])}), and hosts would ask for them in vain; restore the store from "
                           "a backup or a mirror, or build them again")
    if lost and (not ref or ref in {path.removesuffix(".json") for path in lost}):
        raise CorruptError(f"the catalogue names {len(lost)} deltas that the store does not have "
                           f"({', '.join(lost[:5])}), and hosts would ask for them in vain, and fetch frames then; "
                           "make them again with `reroot image delta`, or restore the store from a backup or a mirror")


def _excludes(
    exclude: list[str] | None, files: list[Path] | None, keep: list[str] | None, defaults: bool,
) -> tuple[Exclude, ...]:
    from imaging.excludes import Exclude, effective, matcher, parse_file

    more = list[Exclude]()
    for path in files or ():
        try:
            more += parse_file(path.read_text("utf-8", "surrogateescape"), str(path))
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}); name a file of excludes") from error
    found = effective((*more, *(replace(Exclude.parse(text), reason="--exclude") for text in exclude or ())),
                      keep or (), defaults=defaults)
    matcher(found)  # a pattern that cannot be understood is said before anything is unpacked
    return found


def _open(path: Path, keys: Sequence[Path] | None = None) -> tuple[Store, Catalogue]:
    return store_of(path), catalogue_of(path, keys)


def _releases(store: Store) -> list[Release]:
    """Return the store's releases; it also holds recovery images, whose refs begin otherwise."""
    from imaging.release import Release, is_release

    manifests = map(store.manifest, store.refs())
    return [Release.parse(manifest) for manifest in manifests if is_release(manifest)]


def _recovery_target(catalogue: Catalogue, text: str) -> str:
    """Return the catalogue path of a recovery image named as NAME/VERSION/ARCH or by that path."""
    target = text if text.startswith("recovery/") else f"recovery/{text}.json"
    there = [path for path in catalogue.listed() if path.startswith("recovery/")]
    if target not in there:
        raise NotFoundError(f"{target} is not in the catalogue; there is {', '.join(there) or 'no recovery image'}; "
                            "`reroot recovery build` makes one")
    return target


def _facts(release: Release) -> dict[str, object]:
    return {
        "ref": release.ref, "name": release.name, "version": release.version, "arch": release.arch,
        "digest": release.digest, "target": release.target, "layer_digest": release.layer_digest,
        "layer_bytes": release.layer_size, "raw_bytes": release.raw_bytes, "entries": release.entries,
        "index_bytes": release.index_length, "recovery": release.recovery,
    }


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))
