"""Stored deltas found and read back. I/O: reads the store.

The cheap part reads the blob: its SHA-256, the head, every frame's BLAKE3, and that the new release's index comes out
of the old one's. With `deep` every content is made out of the old release's layer as a host would make it, and compared
with the BLAKE3 that the new index has.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from blake3 import blake3

from imaging.audit import load_index, stored
from imaging.bundle import Piece
from imaging.delta import Delta, check, files
from imaging.delta_apply import UNMADE, Applied, new_index
from imaging.delta_manifest import DeltaManifest
from imaging.entry import Progress, printable
from imaging.fetch import FrameFetcher
from imaging.file_contents import LayerContents
from imaging.sources import FileSource
from imaging.store import Store
from plumbing.errors import CorruptError, NotFoundError

if TYPE_CHECKING:
    from imaging.index import Index
    from imaging.release import Release

PIECE = 4 << 20
"""How much of a blob is read at a time, in bytes."""


@dataclass(frozen=True)
class DeltaAudit:
    """What was read and found whole.

    `lacks` names an end that the store does not have, so that nothing could be compared with it. `elsewhere` names
    files that this machine packs to other bytes than the release has, as hosts like it do: they fetch those.
    """

    frames: int
    contents: int
    lacks: str | None = None
    elsewhere: tuple[str, ...] = ()


def deltas(store: Store) -> dict[str, DeltaManifest]:
    """Return the deltas of a store by their manifests' digests, in the order of their names."""
    pieces = (Piece(ref, store.read_json_blob(listed.digest)) for ref, listed in store.refs().items())
    return {piece.digest: found for piece in pieces if (found := piece.delta) is not None}


def audit_delta(store: Store, found: DeltaManifest, *, deep: bool = False, progress: Progress | None = None,
                ) -> DeltaAudit:
    """Read a delta back, and with `deep` make every content of it; raises CorruptError naming what is wrong.

    `progress` counts bytes of the blob, then with `deep` of the contents.
    """
    _whole(store, found, progress)
    with closing(FileSource(store.blob_path(found.blob_digest))) as blob:
        head = found.decode_head(blob.read(found.head_offset, found.head_length))
        frames = FrameFetcher([blob], patience_s=0, pause_s=0)
        for one in (head.index, *head.frames):
            if blake3(blob.read(one.frame.offset, one.frame.length)).digest() != one.frame.digest:
                _complain(found, f"its frame at byte {one.frame.offset} is not what its head says")
        refs = store.refs()
        lacks = next((ref for ref in (found.old, found.new) if ref not in refs), None)
        if lacks is not None:
            return DeltaAudit(len(head.frames), len(head.contents), lacks)
        old, new = stored(store, found.old), stored(store, found.new)
        found.check_ends(head, old, new)
        before, after = load_index(store, old), load_index(store, new)
        check(head, before, after)
        if new_index(head, before, frames) != after:
            _complain(found, f"the index of {new.ref} does not come out of it")
        elsewhere = _tried(store, found, (old, new), (head, before, after), frames, progress) if deep else ()
    return DeltaAudit(len(head.frames), len(head.contents), None, elsewhere)


def _whole(store: Store, found: DeltaManifest, progress: Progress | None) -> None:
    summed, done = hashlib.sha256(), 0
    try:
        with store.blob_path(found.blob_digest).open("rb") as stream:
            while data := stream.read(PIECE):
                summed.update(data)
                done += len(data)
                if progress is not None:
                    progress("verify", done, found.blob_size)
    except FileNotFoundError as error:
        raise NotFoundError(f"the blob of {found.ref} is not in the store {store.path}; make it again with `reroot "
                            f"image delta {found.old} {found.new}`, or restore the store from a backup") from error
    if done != found.blob_size or f"sha256:{summed.hexdigest()}" != found.blob_digest:
        _complain(found, "its blob as a whole is not what the manifest names")


def _tried(store: Store, found: DeltaManifest, ends: tuple[Release, Release], read: tuple[Delta, Index, Index],
           frames: FrameFetcher, progress: Progress | None) -> tuple[str, ...]:
    """Make every content and keep none; return the names of the files that this machine packs otherwise."""
    head, before, after = read
    old_layer, new_layer = (FileSource(store.blob_path(end.layer_digest)) for end in ends)
    entries, elsewhere, done = files(after), list[str](), 0
    total = sum(entries[content.row].size for content in head.contents)
    with closing(old_layer), closing(new_layer):
        contents = LayerContents(before, FrameFetcher([old_layer], patience_s=0, pause_s=0))
        applied = Applied(head, before, after, contents, frames, FrameFetcher([new_layer]), store.path)
        with closing(applied):
            for content in sorted(head.contents, key=lambda one: one.extents[0]):
                entry, reason = entries[content.row], "it becomes something else"
                summed = blake3()
                try:
                    for piece in applied.made(content):
                        summed.update(piece)
                except UNMADE as error:
                    reason = error.sentence
                if summed.digest() != entry.digest:
                    name = f"/{printable(entry.path)}"
                    if not content.recipe or not applied.unpacks(content):
                        _complain(found, f"{name} does not come out right: {reason}")
                    elsewhere.append(name)
                done += entry.size
                if progress is not None:
                    progress("verify", done, total)
    return tuple(elsewhere)


def _complain(found: DeltaManifest, what: str) -> NoReturn:
    raise CorruptError(f"{found.ref} is damaged: {what}; restore the store from a mirror or a backup")
