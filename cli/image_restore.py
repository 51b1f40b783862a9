"""`reroot image restore`: a release's tree in a directory, made as recovery makes it. I/O: site, network, directory.

The manifest comes from the catalogue, which signed it, and never from a place that has the bytes. Frames whose files
are durable are noted in a journal beside the directory, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.admin import SITE, SiteOption, catalogue_of, store_of
from cli.console import size
from cli.image_transfer import AuthfileOption, JsonOption, PlainOption, registry_place
from cli.progress import Report
from plumbing import durable
from plumbing.errors import BusyError, CorruptError, NotFoundError, RefusedError, UsageError
from recovery.log import plain

if TYPE_CHECKING:
    from imaging.fetch import SourceReport
    from imaging.index import Index
    from imaging.registry_source import RegistrySource
    from imaging.release import Release
    from imaging.restore import RestoreReport
    from imaging.sources import FileSource, HttpSource
    from imaging.store import Store
    from recovery.journal import Journal

    Place = FileSource | HttpSource | RegistrySource

app = typer.Typer()

SUFFIX = ".reroot-restore"
"""What the directory's name gets appended for the journal beside it."""


@app.command()
def restore(
    ref: Annotated[str, typer.Argument(metavar="NAME/VERSION/ARCH", help="The release; /ARCH may be left out.")],
    directory: Annotated[Path, typer.Argument(help="Empty or not there yet, such as a mounted disk.")],
    places: Annotated[list[str] | None, typer.Option(
        "--from", metavar="PLACE", help="Where the bytes are: a layer's file, an OCI layout's folder, a content server "
        "(http://host:port), a repository of a registry; may be given again, and all are used at once (default: the "
        "site's store).")] = None,
    verify: Annotated[bool, typer.Option(help="Read everything back from the disk in the end.")] = True,
    journal: Annotated[Path | None, typer.Option(
        help=f"Where to note what is done (default: DIRECTORY{SUFFIX}); gone in the end.", show_default=False)] = None,
    authfile: AuthfileOption = None, plain_http: PlainOption = False,
    site: SiteOption = SITE, as_json: JsonOption = False,
) -> None:
    """Make a release's tree in an empty directory, every digest checked; needs root. Cut short, it goes on there."""
    from imaging.ahead import Ahead
    from imaging.audit import signed
    from imaging.fetch import FrameFetcher
    from imaging.restore import restore as make
    from imaging.root_sources.scratch import need_root
    from recovery.journal import Noted
    from recovery.servers import read_index

    need_root("making a release's tree, whose files have owners,")
    store = store_of(site)
    release = signed(catalogue_of(site), store, ref)
    target = Path(os.path.realpath(directory))
    path = Path(os.path.realpath(journal)) if journal is not None else target.parent / f"{target.name}{SUFFIX}"
    with ExitStack() as stack:
        report = stack.enter_context(Report(as_json=as_json))
        found = _places(store, release, places or (), authfile, plain_http)
        for place in found:
            stack.callback(place.close)
        written = stack.enter_context(_claimed(target, path, release))
        _, index = read_index(found, release)
        _begin(written, release, target, index)
        done = written.state.frames
        fetcher, noted = FrameFetcher([tuple(found)], note=report.note), Noted(written)
        report.begin("restore", ref=release.ref)
        with _told(path), Ahead(fetcher, [index.frames[number] for number in sorted(index.filled - done)]) as ahead:
            made = make(index, ahead, target, progress=report.advance, done=done, on_frame=noted.add)
            noted.write()
        report.done("restore")
        if verify:
            _verify(index, target, written, release, report)
        with _told(path):
            path.unlink(missing_ok=True)
            durable.sync_folder(path.parent)
    sources = fetcher.report()
    if as_json:
        print(json.dumps(_facts(release, target, made, sources, verified=verify), indent=1))
        return
    print(f"{release.ref} is in {target}: {made.entries} entries, {size(made.content_bytes)}, in {made.seconds:.1f} s"
          f"{', read back' if verify else '; not read back'}")
    if made.frames_reused:
        print(f"{made.frames_reused} frames were there already")
    for source in sources:
        print(plain(_line(source)))


def _places(store: Store, release: Release, named: Sequence[str], authfile: Path | None, plain_http: bool,
            ) -> list[Place]:
    """Return where the layer is to be read; raises UsageError, NotFoundError, ConfigError."""
    from imaging.sources import FileSource

    if named:
        return [_place(text, release, authfile, plain_http) for text in dict.fromkeys(named)]
    if not store.has(release.layer_digest):
        raise NotFoundError(f"the root dump of {release.ref} is not in the store {store.path}; say with --from which "
                            "file, content server or registry has it")
    return [FileSource(store.blob_path(release.layer_digest))]


def _place(text: str, release: Release, authfile: Path | None, plain_http: bool) -> Place:
    """Return the place that `text` names: a path, a URL without a path (a content server), else a repository."""
    from imaging.registry_source import RegistrySource
    from imaging.sources import FileSource, HttpSource
    from imaging.store import Store

    scheme, there, rest = text.partition("://")
    if there and scheme in {"http", "https"} and "/" not in rest.rstrip("/"):
        return HttpSource(text.rstrip("/"), release.layer_digest)
    path = Path(text)
    if not there and (text.startswith(("/", ".")) or "/" not in text or path.exists()):
        return FileSource(Store(path).blob_path(release.layer_digest) if path.is_dir() else path)
    place, known = registry_place(text, authfile, plain_http)
    return RegistrySource(place, release.layer_digest, known)


@contextmanager
def _claimed(target: Path, path: Path, release: Release) -> Iterator[Journal]:
    """Yield the journal of a directory that is empty, or half filled with this release, and nobody else's now.

    Raises RefusedError when it holds something else, BusyError while another process fills it.
    """
    if path.is_relative_to(target):
        raise UsageError(f"the journal {path} would lie in the tree; name a file outside of {target} with --journal")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is not a directory; name an empty one, or one that is not there yet")
    with durable.told(f"the directory {target}", "nothing was restored"):
        target.mkdir(parents=True, exist_ok=True)
        handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise BusyError(f"{target} is being filled by another process; wait for it", retry_after_s=60) from error
    try:
        with _told(path):
            written = _journal(path, target)
        earlier = written.state
        if earlier.order is None and not _is_empty(target):
            raise RefusedError(f"{target} is not empty; name an empty directory, or remove what is in it")
        if earlier.order is not None and earlier.release != release.digest:
            raise RefusedError(f"{target} is half filled with {earlier.order} ({str(earlier.release)[:19]}…), not "
                               f"{release.ref} ({release.digest[:19]}…); restore that one to its end, or remove what "
                               "is in the directory")
        yield written
    finally:
        os.close(handle)


def _journal(path: Path, target: Path) -> Journal:
    """Return the journal at `path`, a new one for an empty directory; whatever else lies there stays as it is."""
    from recovery.journal import Journal, decode, replay

    data = path.read_bytes() if path.exists() else b""
    try:
        mode = replay(decode(data)[0]).mode
    except CorruptError as error:
        raise CorruptError(f"the journal {path} is damaged, so nobody knows what of {target} is done; remove both and "
                           "run the same command again") from error
    if data and mode != "restore":
        raise RefusedError(f"{path} is no journal of a restore; name another file with --journal, or remove it")
    if _is_empty(target):
        path.unlink(missing_ok=True)  # of what was there before, and nothing of it is left
    return Journal(path)


def _begin(written: Journal, release: Release, target: Path, index: Index) -> None:
    """Note which release it is, before anything of it is made; raises DiskError when there is no room for it."""
    from imaging.footprint import footprint
    from recovery.disks import require_space

    if written.state.order is None:
        require_space(target, footprint(index.entries).size, release.ref)
    with _told(written.path):
        written.order(release.ref, "restore", release.digest)


def _verify(index: Index, target: Path, written: Journal, release: Release, report: Report) -> None:
    """Read the tree back; raises CorruptError when it is not the release, and everything is to be made again then."""
    from imaging.verify import verify

    report.begin("verify")
    wrong = verify(index, target, report.advance)
    report.done("verify")
    if wrong:
        with _told(written.path):
            written.begin("wipe")
        raise CorruptError(f"{target} is not {release.ref}: {len(wrong)} differences, first {wrong[0]}; remove what is "
                           "not of the release, the same command makes the rest again; if it differs once more, "
                           "replace the disk")


def _is_empty(target: Path) -> bool:
    from imaging.verify import EXPECTED_EXTRAS

    return all(os.fsencode(name) in EXPECTED_EXTRAS for name in os.listdir(target))


def _told(path: Path) -> AbstractContextManager[None]:
    return durable.told(f"the journal {path}", "what was restored stays; name another place for it with --journal")


def _line(one: SourceReport) -> str:
    """Say what a source gave, and what it did wrong."""
    wrong = [f"{one.lies} answers were other bytes than the release has"] if one.lies else []
    wrong += [f"{one.failures} times it did not answer"] if one.failures else []
    wrong += [f"in the end it was not asked any more: {one.dropped}"] if one.dropped is not None else []
    return f"{one.frames} frames, {size(one.size)} from {'; '.join([one.name, *wrong])}"


def _facts(release: Release, target: Path, made: RestoreReport, sources: Sequence[SourceReport], *, verified: bool,
           ) -> dict[str, object]:
    return {"ref": release.ref, "digest": release.digest, "directory": str(target), "entries": made.entries,
            "content_bytes": made.content_bytes, "frames": made.frames, "reused_frames": made.frames_reused,
            "seconds": round(made.seconds, 3), "verified": verified,
            "sources": [{"name": one.name, "frames": one.frames, "bytes": one.size, "lies": one.lies,
                         "failures": one.failures, "dropped": one.dropped} for one in sources]}
