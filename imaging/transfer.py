"""Releases between stores: to and from registries, folders and archives. I/O.

Sending: blobs the other side lacks, then manifests, the release's own last, so that a name never means less than all.
Receiving: the manifest's digest, then every blob's while it comes, into `.partial/` of the store; what was cut short
goes on there next time. Only whole and verified blobs are moved into the store, and only then is the ref published.
Nothing here signs: whether this site vouches for what it received is decided by whoever has the targets key.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imaging.audit import load_index
from imaging.bundle import ARTEFACTS, MAX_ARTEFACTS, Piece, belongs, listed, listing, pieces
from imaging.entry import Progress
from imaging.garbage import PARTIAL
from imaging.registry import Registry
from imaging.release import Release
from imaging.store import INDEX_TYPE, Incoming, Store
from plumbing.digest import DIGEST, hex_of, sha256
from plumbing.durable import make_folder, told, write_file
from plumbing.errors import BusyError, CorruptError, NotFoundError, TrustError


class Origin(Protocol):
    """Where a release is received from; nothing that it yields is believed."""

    def manifest(self, reference: str) -> bytes:
        """Return the manifest or index that a digest or name means; raises NotFoundError."""

    def blob(self, digest: str, size: int, offset: int) -> Iterator[bytes]:
        """Yield a blob from byte `offset` to byte `size`."""


@dataclass(frozen=True)
class Moved:
    """What a transfer did: the pieces, the release last, and bytes moved and found there."""

    pieces: tuple[Piece, ...]
    sent_bytes: int
    there_bytes: int

    @property
    def release(self) -> Release:
        """The release that moved."""
        return Release.parse(self.pieces[-1].manifest)


def default_tag(release: Release) -> str:
    """Return the tag under which a store serves a release too: tags have no +, which versions of packages do."""
    return f"{release.version}-{release.arch}".replace("+", "_")


def push(store: Store, ref: str, registry: Registry, tag: str, progress: Progress | None = None) -> Moved:
    """Send the release `ref` and what belongs to it to `registry` under `tag`; raises what Registry does."""
    found = pieces(store, ref)
    blobs = dict(blob for piece in found for blob in piece.blobs())
    sent = there = 0
    for digest, size in blobs.items():
        if registry.has_blob(digest):
            there += size
        else:
            _send(store, registry, digest, size, _after(progress, "push", sent, sum(blobs.values()) - there))
            sent += size
    for piece in found:
        registry.put_manifest(piece.digest, piece.manifest)
    if len(found) > 1:
        registry.put_manifest(f"{tag}{ARTEFACTS}", listing(found[:-1]), INDEX_TYPE)
    registry.put_manifest(tag, found[-1].manifest)
    return Moved(tuple(found), sent, there)


def receive(
    store: Store, origin: Origin, reference: str, artefacts: Sequence[tuple[str, str]] | None = None,
    progress: Progress | None = None,
) -> Moved:
    """Bring a release into the store, under the name its own manifest tells, with what belongs to it.

    `reference` is a digest, which the manifest must have, or a name that the origin knows. `artefacts` are ref and
    digest of what may belong to it; None asks the origin for the list beside the name. Raises TrustError or
    CorruptError for bytes that are not what they should be, RefusedError when the store has the name with other
    content.
    """
    manifest = origin.manifest(reference)
    if DIGEST.fullmatch(reference) and sha256(manifest) != reference:
        raise TrustError(f"the manifest that came is {sha256(manifest)[:19]}…, not the {reference[:19]}… asked for; "
                         "nothing was taken, ask another registry")
    release = Release.parse(manifest)
    named = _listed(origin, reference) if artefacts is None else list(artefacts)
    found = [*_belonging(origin, named, release), Piece(release.ref, manifest)]
    blobs = dict(blob for piece in found for blob in piece.blobs())
    store.create()
    there = {digest for digest in blobs if store.claim(digest)}
    total, done = sum(size for digest, size in blobs.items() if digest not in there), 0
    for digest, size in blobs.items():
        if digest not in there:
            _fetch(store, origin, digest, size, _after(progress, "pull", done, total))
            done += size
    load_index(store, release)
    for piece in found:
        store.put_manifest(piece.ref, piece.manifest)
    return Moved(tuple(found), done, sum(blobs[digest] for digest in there))


def _listed(origin: Origin, reference: str) -> list[tuple[str, str]]:
    if DIGEST.fullmatch(reference):
        return []
    try:
        found = list(listed(origin.manifest(f"{reference}{ARTEFACTS}")))
    except NotFoundError:
        return []
    if len(found) > MAX_ARTEFACTS:
        raise CorruptError(f"{len(found)} artefacts are said to belong to {reference}; at most {MAX_ARTEFACTS} can")
    return found


def _belonging(origin: Origin, named: Sequence[tuple[str, str]], release: Release) -> list[Piece]:
    found = []
    for ref, digest in named:
        manifest = origin.manifest(digest)
        if sha256(manifest) != digest:
            raise CorruptError(f"{ref} is not the manifest that the list of artefacts names; push it again")
        if belongs(piece := Piece(ref, manifest), release):
            found.append(piece)
    return found


def _after(progress: Progress | None, what: str, before: int, total: int) -> Callable[[int], None]:
    """Return what hears how many bytes of a blob are there, and tells it with those of the blobs before."""
    return lambda at: None if progress is None else progress(what, before + at, total)


def _fetch(store: Store, origin: Origin, digest: str, size: int, tell: Callable[[int], None]) -> None:
    """Bring one blob into the store, from where an earlier attempt stopped."""
    folder = store.path / PARTIAL
    path = folder / (hex_of(digest) or "")
    with told(f"the store {store.path}", "nothing was published, and what came is kept for the next attempt"):
        make_folder(folder)
        with path.open("ab+") as stream:
            _lock(stream.fileno(), digest)
            begun = min(stream.seek(0, os.SEEK_END), size)
            if not _complete(stream.fileno(), path, origin, digest, size, begun, tell):
                if not begun:
                    raise CorruptError(f"the blob {digest[:19]}… that came is another one; nothing was published, "
                                       "push it again where it comes from")
                # What lay here may have been damaged by a crash: once more, from the start.
                if not _complete(stream.fileno(), path, origin, digest, size, 0, tell):
                    raise CorruptError(f"the blob {digest[:19]}… that came is another one, twice; nothing was "
                                       "published, push it again where it comes from")
            Incoming(store, stream, path).keep(digest)


def _complete(handle: int, path: Path, origin: Origin, digest: str, size: int, begun: int,
              tell: Callable[[int], None]) -> bool:
    """Fill the file from byte `begun` on; False, and an empty file, when it is not the blob then."""
    summed = hashlib.sha256()
    os.ftruncate(handle, begun)
    with path.open("rb") as before:
        while piece := before.read(1 << 20):
            summed.update(piece)
    for piece in origin.blob(digest, size, begun):
        if begun + len(piece) > size:
            break
        summed.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(handle, view):]
        begun += len(piece)
        tell(begun)
    if begun == size and f"sha256:{summed.hexdigest()}" == digest:
        return True
    os.ftruncate(handle, 0)
    return False


def _send(store: Store, registry: Registry, digest: str, size: int, tell: Callable[[int], None]) -> None:
    """Send one blob, from where an earlier attempt stopped; which upload that was, the store remembers."""
    name = hashlib.sha256(f"{registry.place.origin}/{registry.place.repository} {digest}".encode()).hexdigest()
    folder = store.path / PARTIAL
    memory = folder / f"upload-{name}"

    def note(at: int, location: str) -> None:
        write_file(memory, json.dumps({"location": location}).encode(), 0o600)  # its URL may be a capability
        tell(at)

    with told(f"the store {store.path}", "the release may be half sent"):
        make_folder(folder)
    try:
        with store.blob_path(digest).open("rb") as content:
            registry.upload(digest, size, content, begun=_begun(memory), told=note)
    except FileNotFoundError as error:
        raise NotFoundError(f"the blob {digest[:19]}… is not in the store {store.path}; restore it from a backup, or "
                            "build the release again") from error
    memory.unlink(missing_ok=True)


def _begun(memory: Path) -> str:
    try:
        return str(json.loads(memory.read_bytes())["location"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _lock(handle: int, digest: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(f"another process is fetching {digest[:19]}… into this store; wait for it", retry_after_s=60,
                        ) from error
