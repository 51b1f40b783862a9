"""Reading a stored release back, every byte of it. I/O: reads the store.

The tar a rescue disk would unpack and the index a host would restore from are two accounts of one tree; both are
derived anew here and compared, so that they cannot tell different stories.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import TYPE_CHECKING, NoReturn

import zstandard
from blake3 import blake3

from imaging import tarstream
from imaging.entry import Entry, Extent, Progress, printable
from imaging.index import Index
from imaging.release import Release, config, is_release
from imaging.store import Store, complete
from plumbing.errors import CorruptError, NotFoundError, TrustError

if TYPE_CHECKING:
    from imaging.catalogue import Catalogue


@dataclass(frozen=True)
class Audit:
    """What was read and found whole; `content_bytes` are the files' bytes."""

    release: Release
    frames: int
    files: int
    content_bytes: int


def stored(store: Store, ref: str) -> Release:
    """Return the release that `ref` names, with or without /ARCH; raises NotFoundError, UsageError for several."""
    manifest = store.manifest(store.complete(ref))
    if not is_release(manifest):
        raise NotFoundError(f"{ref!r} is not a release; `reroot image list` shows what is")
    return Release.parse(manifest)


def signed(catalogue: Catalogue, store: Store, ref: str) -> Release:
    """Return the release that the catalogue vouches for as `ref`, with or without /ARCH, wherever its bytes are.

    Raises NotFoundError when there is none, TrustError when the store has one of that name and nobody signed it.
    """
    targets = {path.removeprefix("releases/").removesuffix(".json"): path for path in catalogue.listed()
               if path.startswith("releases/")}
    target = targets.get(complete(ref, targets))
    if target is not None:
        return Release.parse(catalogue.read(target))
    there = store.complete(ref)
    if there in store.refs() and is_release(store.manifest(there)):
        raise TrustError(f"{there} is in the store, and the catalogue does not list it: nobody vouches for it; sign it "
                         "with --sign of `reroot image pull` or `import`, or build it again")
    raise NotFoundError(f"{ref!r} is not in the catalogue {catalogue.folder}; `reroot image list` shows what is")


def load_index(store: Store, release: Release) -> Index:
    """Return a stored release's index; raises NotFoundError when its layer is missing, CorruptError when damaged."""
    with _open_layer(store, release) as stream:
        stream.seek(release.index_offset)
        return release.read_index(stream.read(release.index_length))


def audit(store: Store, ref: str, progress: Progress | None = None) -> Audit:
    """Read the whole release `ref` and check every digest in it; raises CorruptError naming what is wrong."""
    release = Release.parse(store.manifest(ref))
    index = load_index(store, release)
    image = store.read_json_blob(release.config_digest)
    with _open_layer(store, release) as stream:
        raw = _Raw(release, index, stream, progress)
        earlier = raw.begins(tarstream.header(index.entries[0]))  # such releases lie in tree order
        for row in range(len(index.entries)) if earlier else tarstream.order(index.entries):
            _audit_entry(release, index.entries[row], raw)
        raw.expect(tarstream.END, "the end of the tar")
        raw.finish()
    _audit_layer(store, release)
    if image != config(release.arch, raw.tar.hexdigest()) or raw.done != release.raw_bytes:
        _complain(release, "its tar is not the one its config names")
    files = sum(entry.is_file for entry in index.entries)
    return Audit(release, len(index.frames), files, index.content_bytes)


def _open_layer(store: Store, release: Release) -> BufferedReader:
    try:
        return store.blob_path(release.layer_digest).open("rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"the root dump of {release.ref} is not in the store {store.path}; build it again, "
                            "or restore the store from a backup") from error


def _complain(release: Release, what: str) -> NoReturn:
    raise CorruptError(f"{release.ref} is damaged: {what}; restore the store from a mirror, or build a new version")


class _Raw:
    """The uncompressed tar, frame by frame, as far as it was taken."""

    def __init__(self, release: Release, index: Index, stream: BufferedReader, progress: Progress | None) -> None:
        self._release = release
        self._frames = index.frames
        self._stream = stream
        self._progress = progress
        self._decompressor = zstandard.ZstdDecompressor()
        self._next = 0
        self._data = memoryview(b"")
        self._at = 0
        self.tar = hashlib.sha256()
        self.done = 0

    def begins(self, wanted: bytes) -> bool:
        """Whether the first frame begins with `wanted`; to be asked before anything is taken."""
        self._load()
        return self._data[:len(wanted)] == wanted

    def take(self, length: int) -> Iterator[tuple[Extent, memoryview]]:
        """Yield the next `length` bytes, piece by piece, and where each lies."""
        while length:
            if self._at == len(self._data):
                self._load()
            piece = self._data[self._at:self._at + length]
            yield Extent(self._next - 1, self._at, len(piece)), piece
            self._at += len(piece)
            length -= len(piece)

    def expect(self, wanted: bytes, what: str) -> None:
        """Take as many bytes as `wanted` has; they must be those."""
        if b"".join(piece for _, piece in self.take(len(wanted))) != wanted:
            _complain(self._release, f"{what} is not what the index says")

    def finish(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._data) or self._next != len(self._frames):
            _complain(self._release, "its tar goes on after the last entry")

    def _load(self) -> None:
        if self._next == len(self._frames):
            _complain(self._release, "its tar ends too early")
        frame = self._frames[self._next]
        self._stream.seek(frame.offset)
        packed = self._stream.read(frame.length)
        if blake3(packed).digest() != frame.digest:
            _complain(self._release, f"frame {self._next} at byte {frame.offset} is not what the index says")
        try:
            raw = self._decompressor.decompress(packed, max_output_size=frame.raw_length, allow_extra_data=False)
        except zstandard.ZstdError:
            _complain(self._release, f"frame {self._next} can't be unpacked")
        if len(raw) != frame.raw_length:
            _complain(self._release, f"frame {self._next} unpacks to another length than the index says")
        self.tar.update(raw)
        self._data, self._at, self._next = memoryview(raw), 0, self._next + 1
        self.done += len(raw)
        if self._progress is not None:
            self._progress("verify", self.done, self._release.raw_bytes)


def _audit_entry(release: Release, entry: Entry, raw: _Raw) -> None:
    where = f"/{printable(entry.path)}"
    raw.expect(tarstream.header(entry), f"the tar's header of {where}")
    if entry.is_file:
        summed, extents = blake3(), []
        for extent, piece in raw.take(entry.size):
            summed.update(piece)
            extents.append(extent)
        if summed.digest() != entry.digest or tuple(extents) != entry.extents:
            _complain(release, f"the content of {where} is not what the index says")
        raw.expect(tarstream.padding(entry.size), f"what follows {where}")


def _audit_layer(store: Store, release: Release) -> None:
    """Check the file as a whole, which covers the seek table too."""
    with _open_layer(store, release) as stream:
        summed = hashlib.file_digest(stream, "sha256").hexdigest()
        if f"sha256:{summed}" != release.layer_digest or stream.tell() != release.layer_size:
            _complain(release, "its root dump as a whole is not what the manifest names")
