"""Releases in OCI layouts that are not the site's store: folders and archives, out and in. I/O.

An exported folder is an OCI image layout, an archive a plain tar of one, as `skopeo copy oci-archive:` has it. It is
never unpacked: its members are looked up by name, so nothing that it says can lead anywhere.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Self

from imaging.bundle import Piece, listed, listing, pieces
from imaging.entry import Progress
from imaging.release import Release, is_release
from imaging.store import MAX_JSON_BYTES, Store
from imaging.transfer import Moved, Origin, receive
from plumbing.digest import DIGEST, hex_of
from plumbing.durable import make_folder, sync_folder, told
from plumbing.errors import CorruptError, DiskError, NotFoundError, RefusedError, UsageError

PIECE_BYTES = 4 << 20
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}\n'


def export_folder(store: Store, ref: str, folder: Path, progress: Progress | None = None) -> Moved:
    """Copy a release and what belongs to it into an OCI layout, made or added to; what is there is not copied again."""
    found, other = pieces(store, ref), Store(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "oci-layout").exists():
        raise RefusedError(f"{folder} holds something that is no OCI layout; name an empty or a new folder")
    if folder.resolve() == store.path.resolve():
        raise RefusedError(f"{folder} is the store itself; name another folder")
    other.create()
    blobs = _blobs(found)
    there = {digest for digest in blobs if other.claim(digest)}
    total, done = sum(size for digest, size in blobs.items() if digest not in there), 0
    for digest in blobs.keys() - there:
        with other.incoming() as blob:
            for data in _read(store, digest, blobs[digest]):
                blob.stream.write(data)
                done += len(data)
                _say(progress, done, total)
            blob.keep(digest)
    for piece in found:
        other.put_manifest(piece.ref, piece.manifest)
    return Moved(tuple(found), done, sum(blobs[digest] for digest in there))


def export_archive(store: Store, ref: str, path: Path, progress: Progress | None = None) -> Moved:
    """Write a tar of an OCI layout with a release and what belongs to it; the file is there whole or not at all.

    The same release makes the same bytes. Raises RefusedError when there is a file.
    """
    if path.exists():
        raise RefusedError(f"{path} exists; name another file, or move it away")
    found = pieces(store, ref)
    blobs, done = _blobs(found), 0
    with told(str(path.parent), "no archive was made"), ExitStack() as stack:
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        stack.callback(Path(name).unlink, missing_ok=True)
        stream = stack.enter_context(os.fdopen(handle, "wb"))
        with tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, copybufsize=1 << 20) as tar:
            for member, data in (("oci-layout", LAYOUT), ("index.json", listing(found))):
                tar.addfile(_member(member, len(data)), BytesIO(data))
            for digest, size in sorted({**blobs, **{piece.digest: len(piece.manifest) for piece in found}}.items()):
                with _Checked(store, digest, size) as content:
                    tar.addfile(_member(f"blobs/sha256/{hex_of(digest)}", size), content)
                done += size
                _say(progress, done, sum(blobs.values()))
        stream.flush()
        os.fchmod(stream.fileno(), 0o644)
        os.fsync(stream.fileno())
        Path(name).rename(path)
        sync_folder(path.parent)
    return Moved(tuple(found), sum(blobs.values()), 0)


def bring_in(store: Store, path: Path, ref: str = "", progress: Progress | None = None) -> list[Moved]:
    """Take the releases of an exported folder or archive into the store, `ref` alone when it is given; check all.

    Raises NotFoundError when there is no such release, CorruptError when something is not what its digest says.
    """
    with ExitStack() as stack:
        origin: Folder | Archive = Folder(path) if path.is_dir() else stack.enter_context(Archive(path))
        others, wanted, seen = list[tuple[str, str]](), dict[str, str](), list[str]()
        for name, digest in listed(origin.index()):
            if is_release(manifest := origin.manifest(digest)):
                release = Release.parse(manifest)
                seen.append(release.ref)
                if ref in {"", release.ref, f"{release.name}/{release.version}"}:
                    wanted[digest] = release.ref
            else:
                others.append((name, digest))
        if not wanted:
            raise NotFoundError(f"{path} holds {'no release ' + repr(ref) if ref else 'no release'}; it holds "
                                f"{', '.join(seen) or 'other images only'}")
        return [receive(store, origin, digest, others, progress) for digest in wanted]


class Folder(Origin):
    """An OCI layout that may be anybody's."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        if not (path / "oci-layout").is_file():
            raise UsageError(f"{path} is not an OCI layout (it has no file oci-layout); name what `reroot image "
                             "export` or `skopeo copy` made")

    def index(self) -> bytes:
        """Return index.json."""
        return _short(self._store.path / "index.json")

    def manifest(self, reference: str) -> bytes:
        """Return a manifest by its digest."""
        return self._store.read_json_blob(reference)

    def blob(self, digest: str, size: int, offset: int) -> Iterator[bytes]:
        """Yield a blob from `offset` to `size`."""
        return _read(self._store, digest, size, offset, check=False)


class Archive(Origin):
    """A tar of an OCI layout, uncompressed, read in place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._stream = path.open("rb")
        except OSError as error:
            raise NotFoundError(f"{path} cannot be read ({error.strerror}); name an exported folder or "
                                "archive") from error
        try:
            with tarfile.open(fileobj=self._stream, mode="r:") as tar:
                self._members = {member.name.removeprefix("./"): (member.offset_data, member.size)
                                 for member in tar if member.isreg() and not member.issparse()}
        except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
            self._stream.close()
            raise CorruptError(f"{path} is not a whole tar ({error}); copy it again, and unpack it first when it is "
                               "compressed") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def index(self) -> bytes:
        """Return index.json."""
        return self._small("index.json")

    def manifest(self, reference: str) -> bytes:
        """Return a manifest by its digest; not checked."""
        if not DIGEST.fullmatch(reference):
            raise NotFoundError(f"{self._path} has no {reference}")
        return self._small(f"blobs/sha256/{hex_of(reference)}")

    def blob(self, digest: str, size: int, offset: int) -> Iterator[bytes]:
        """Yield a blob from `offset` to `size`."""
        start, there = self._find(f"blobs/sha256/{hex_of(digest)}")
        while offset < min(size, there):
            self._stream.seek(start + offset)
            data = self._stream.read(min(PIECE_BYTES, min(size, there) - offset))
            if not data:
                raise CorruptError(f"{self._path} ends too early; copy it again")
            yield data
            offset += len(data)

    def _find(self, name: str) -> tuple[int, int]:
        if name not in self._members:
            raise NotFoundError(f"{self._path} has no {name}; it is not a whole OCI archive, export the release again")
        return self._members[name]

    def _small(self, name: str) -> bytes:
        start, size = self._find(name)
        if size > MAX_JSON_BYTES:
            raise CorruptError(f"{name} in {self._path} is longer than {MAX_JSON_BYTES} bytes; export the release "
                               "again")
        self._stream.seek(start)
        return self._stream.read(size)


class _Checked:
    """A blob as a file object for tarfile that is hashed while it is read, and compared at the end."""

    def __init__(self, store: Store, digest: str, size: int) -> None:
        self._pieces = _read(store, digest, size)
        self._piece, self._at = b"", 0

    def __enter__(self) -> BinaryIO:
        return self  # type: ignore[return-value]  # tarfile only reads

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for _piece in self._pieces:  # the comparison comes after the last byte
                pass

    def read(self, length: int) -> bytes:
        """Return exactly `length` bytes, fewer only at the end."""
        taken = []
        while length:
            if self._at == len(self._piece):
                self._piece, self._at = next(self._pieces, b""), 0
                if not self._piece:
                    break
            taken.append(self._piece[self._at:self._at + length])
            self._at += len(taken[-1])
            length -= len(taken[-1])
        return taken[0] if len(taken) == 1 else b"".join(taken)


def _read(store: Store, digest: str, size: int, offset: int = 0, *, check: bool = True) -> Iterator[bytes]:
    """Yield a blob of a layout; with `check` (from byte 0) raises CorruptError after the last byte of a wrong one."""
    path, summed = store.blob_path(digest), hashlib.sha256()
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            while data := stream.read(min(PIECE_BYTES, size - offset)):
                summed.update(data)
                offset += len(data)
                yield data
    except FileNotFoundError as error:
        raise NotFoundError(f"{store.path} has no blob {digest}; restore it from a backup, or export the release "
                            "again") from error
    except OSError as error:
        raise DiskError(f"{path} cannot be read ({error.strerror}); the disk is failing") from error
    if check and (offset != size or f"sha256:{summed.hexdigest()}" != digest):
        raise CorruptError(f"{path} is not what its name says; the disk is failing: restore it")


def _blobs(found: list[Piece]) -> dict[str, int]:
    return dict(blob for piece in found for blob in piece.blobs())


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _short(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as stream:
        if len(data := stream.read(MAX_JSON_BYTES + 1)) <= MAX_JSON_BYTES:
            return data
    raise CorruptError(f"{path} is missing, unreadable or too long; export the release again")


def _say(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress("export", done, total)

