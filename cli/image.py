"""`reroot image …`: releases in a site's store and catalogue. I/O: the site, stdout; progress on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import console, delta
from cli.admin import SITE, SiteOption
from plumbing import clock
from plumbing.errors import CorruptError, NotFoundError, UsageError

if TYPE_CHECKING:
    from imaging.catalogue import Catalogue
    from imaging.entry import Progress
    from imaging.release import Release
    from imaging.store import Store

app = typer.Typer(no_args_is_help=True, help="Releases: build, list, show, verify; deltas between them.")

RefArgument = Annotated[str, typer.Argument(metavar="NAME/VERSION/ARCH", help="The release; /ARCH may be left out.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")]

app.command(name="delta")(delta.make)
app.command(name="apply-delta")(delta.apply)


@app.command()
def build(
    source: Annotated[Path, typer.Argument(help="A root tree, or a tar of one (compressed or not; needs root).")],
    name: Annotated[str, typer.Option(help="The release's name, such as debian.")],
    version: Annotated[str, typer.Option(help="Its version; a version is built once and never changes.")],
    arch: Annotated[str, typer.Option(help="Its architecture, as Debian writes it (default: the tree's).")] = "",
    exclude: Annotated[list[str] | None, typer.Option(
        help="Leave out as well: /path/*, a name, files:/folder or content:/file; may be given again.")] = None,
    default_excludes: Annotated[bool, typer.Option(
        help="Leave out what belongs to one host or to a running system.")] = True,
    recovery: Annotated[str, typer.Option(help="The recovery image that restores it: NAME/VERSION/ARCH.")] = "",
    level: Annotated[int, typer.Option(min=1, max=19, help="zstd level: 3 as fast as reading, 19 smallest.")] = 3,
    site: SiteOption = SITE, as_json: JsonOption = False,
) -> None:
    """Make a release of a root tree: into the store, and signed into the catalogue."""
    from imaging.capture import architecture, capture, capture_tar
    from imaging.excludes import DEFAULT_EXCLUDES, Exclude
    from imaging.release import Release

    store, catalogue = _open(site)
    excludes = (*(DEFAULT_EXCLUDES if default_excludes else ()), *map(Exclude.parse, exclude or ()))
    target = _recovery_target(catalogue, recovery) if recovery else None
    started, notes = clock.monotonic(), list[str]()
    if source.is_dir():
        manifest = capture(source, store, name=name, version=version, arch=arch or architecture(source),
                           excludes=excludes, level=level, recovery=target, progress=_progress(as_json),
                           note=notes.append)
    else:
        manifest = capture_tar(source, store, name=name, version=version, arch=arch or None, excludes=excludes,
                               level=level, recovery=target, progress=_progress(as_json), note=notes.append)
    release = Release.parse(manifest)
    catalogue.publish(release.target, manifest)
    if as_json:
        _print_json({**_facts(release), "published": True, "notes": notes,
                     "seconds": round(clock.monotonic() - started, 3)})
        return
    _clear_progress()
    for sentence in notes:
        print(f"note: {sentence}")
    print(f"{release.ref}: {release.entries} entries, {_size(release.raw_bytes)} as {_size(release.layer_size)}, "
          f"in {clock.monotonic() - started:.1f} s")
    print(f"manifest {release.digest}")
    print(f"published as {release.target}")


@app.command(name="list")
def listing(site: SiteOption = SITE, as_json: JsonOption = False) -> None:
    """List the releases in the store and whether the catalogue vouches for them."""
    store, catalogue = _open(site)
    published = {path: listed.digest for path, listed in catalogue.listed().items()}
    releases = _releases(store)
    if as_json:
        _print_json([{**_facts(release), "published": published.get(release.target) == release.digest}
                     for release in releases])
        return
    if not releases:
        print("no releases yet; `reroot image build` makes one")
        return
    rows = [("RELEASE", "SIZE", "UNPACKED", "ENTRIES", "PUBLISHED", "RECOVERY")]
    rows += [(release.ref, _size(release.layer_size), _size(release.raw_bytes), str(release.entries),
              "yes" if published.get(release.target) == release.digest else "no", release.recovery or "-")
             for release in releases]
    console.columns(rows)


@app.command()
def show(ref: RefArgument, site: SiteOption = SITE, as_json: JsonOption = False) -> None:
    """Show one release: digests, sizes, what it holds."""
    from imaging.audit import load_index

    store, catalogue = _open(site)
    release = _find(store, ref)
    listed = catalogue.listed().get(release.target)
    index = load_index(store, release)
    counts: dict[str, int] = {}
    for entry in index.entries:
        counts[entry.type.name.lower()] = counts.get(entry.type.name.lower(), 0) + 1
    facts = {**_facts(release), "published": listed is not None and listed.digest == release.digest,
             "frames": len(index.frames), "content_bytes": index.content_bytes, "types": counts}
    if as_json:
        _print_json(facts)
        return
    console.columns([(f"{key.replace('_', ' ')}:", ", ".join(f"{count} {kind}" for kind, count in counts.items())
                     if key == "types" else "-" if value is None else str(value)) for key, value in facts.items()])


@app.command()
def verify(
    ref: Annotated[str, typer.Argument(metavar="[NAME/VERSION/ARCH]", help="One release (default: all).")] = "",
    site: SiteOption = SITE, as_json: JsonOption = False,
) -> None:
    """Read releases back and check every byte: tar, index, digests, and that store and catalogue name the same."""
    from imaging.audit import audit

    store, catalogue = _open(site)
    published = {path: listed.digest for path, listed in catalogue.listed().items() if path.startswith("releases/")}
    releases = _releases(store)
    done: list[dict[str, object]] = []
    for release in [_find(store, ref)] if ref else releases:
        found = audit(store, release.ref, _progress(as_json))
        named = (published.get(release.target) == release.digest
                 and catalogue.read(release.target) == store.manifest(release.ref))
        done.append({"ref": release.ref, "published": named, "frames": found.frames, "files": found.files,
                     "content_bytes": found.content_bytes})
        if not as_json:
            _clear_progress()
            print(f"{release.ref}: {found.frames} frames, {found.files} files, {_size(found.content_bytes)}: sound"
                  f"{'' if named else '; NOT in the catalogue, no host will take it'}")
    if as_json:
        _print_json(done)
    elif not done and not published:
        print("nothing to verify: neither store nor catalogue has a release; `reroot image build` makes one")
    missing = sorted(published.items() - {(release.target, release.digest) for release in releases})
    if missing and not ref:
        raise CorruptError(f"the catalogue names {len(missing)} releases that the store does not have "
                           f"({', '.join(path for path, _ in missing[:5])}), and hosts would ask for them in vain; "
                           "restore the store from a backup or a mirror, or build them again")


def _open(path: Path) -> tuple[Store, Catalogue]:
    from control.site import Site
    from imaging.catalogue import Catalogue
    from imaging.store import Store

    site = Site.open(path)
    return Store(site.store), Catalogue(site.catalogue, site.keys)


def _releases(store: Store) -> list[Release]:
    """Return the store's releases; it also holds recovery images, whose refs begin otherwise."""
    from imaging.release import Release, is_release

    manifests = map(store.manifest, store.refs())
    return [Release.parse(manifest) for manifest in manifests if is_release(manifest)]


def _find(store: Store, ref: str) -> Release:
    found = [release for release in _releases(store) if ref in (release.ref, f"{release.name}/{release.version}")]
    if not found:
        raise NotFoundError(f"{ref!r} is not in the store; `reroot image list` shows what is")
    if len(found) > 1:
        raise UsageError(f"{ref!r} is there for {' and '.join(release.arch for release in found)}; add /ARCH")
    return found[0]


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


def _progress(quiet: bool) -> Progress | None:
    """Return what keeps one line on a terminal's stderr up to date; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        return None
    shown = [0]

    def tell(what: str, done: int, total: int) -> None:
        if done - shown[0] >= 8 << 20:
            shown[0] = done
            print(f"\r{what}: {_size(done)}{f' of {_size(total)}' if total else ''}\x1b[K", end="", file=sys.stderr,
                  flush=True)

    return tell


def _clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _size(count: int) -> str:
    """Return bytes in decimal units, as disks are sold."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))
