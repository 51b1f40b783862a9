"""The store: a standard OCI image layout directory that only ever gains whole releases. I/O: reads and writes it.

Publishing order: blobs (written aside, synced, renamed), then `index.json` (replaced by a rename). A crash, a kill
or a full disk in between leaves blobs that nothing names and the old `index.json`. Writers exclude each other by a
lock on `.lock`; readers need none. Only imaging.garbage takes anything out again. OCI image-spec 1.1, "Image Layout".
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from imaging.release import MANIFEST_TYPE
from plumbing.digest import hex_of, sha256
from plumbing.durable import make_folder, sync_folder, told, write_file
from plumbing.errors import CorruptError, DiskError, NotFoundError, RefusedError, UsageError

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
MAX_JSON_BYTES = 4 << 20
"""The largest manifest, or `index.json`, that is read, in bytes."""

_PART = r"[A-Za-z0-9]+(?:[._+-][A-Za-z0-9]+)*"
_REF = re.compile(rf"{_PART}(?:/{_PART})*")


@dataclass(frozen=True)
class Descriptor:
    """What `index.json` says of one manifest; `size` in bytes."""

    digest: str
    size: int
    media_type: str
    annotations: Mapping[str, str]


class Store:
    """An OCI image layout at `path`; nothing is read or made before it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- reading ------------------------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        """Return where the blob `sha256:HEX` is or would be; raises UsageError for anything else."""
        digits = hex_of(digest)
        if digits is None:
            raise UsageError(f"{digest[:90]!r} is not a digest; write sha256: and 64 hex digits")
        return self.path / "blobs" / "sha256" / digits

    def has(self, digest: str) -> bool:
        """Whether the blob is there (whole: blobs only appear whole)."""
        return self.blob_path(digest).is_file()

    def blobs(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield every blob's digest and status; its mtime is when a writer last stored or claimed it."""
        with os.scandir(self.path / "blobs" / "sha256") as found:
            for item in found:
                if hex_of(digest := f"sha256:{item.name}") is not None:
                    yield digest, item.stat(follow_symlinks=False)

    def unnamed(self) -> list[str]:
        """Return the digests that index.json lists without a ref, as other tools may."""
        found = map(self._descriptor, self._manifests())
        return [one.digest for one in found if REF_NAME not in one.annotations]

    def read_json_blob(self, digest: str, most: int = MAX_JSON_BYTES) -> bytes:
        """Return a blob of at most `most` bytes, checked against its digest."""
        path = self.blob_path(digest)
        try:
            with path.open("rb") as stream:
                data = stream.read(most + 1)
        except FileNotFoundError as error:
            raise NotFoundError(f"the store {self.path} has no blob {digest}; restore it from a backup, or "
                                "build what needs it again") from error
        if sha256(data) != digest:
            raise CorruptError(f"{path} is not what its name says; the store's disk is failing: restore it")
        return data

    def refs(self) -> dict[str, Descriptor]:
        """Return every published ref with its manifest's descriptor, by name."""
        found = (self._descriptor(item) for item in self._manifests())
        return dict(sorted((one.annotations[REF_NAME], one) for one in found if REF_NAME in one.annotations))

    def manifest(self, ref: str) -> bytes:
        """Return the manifest that `ref` names; raises NotFoundError."""
        descriptor = self.refs().get(ref)
        if descriptor is None:
            command = "recovery" if ref.startswith("recovery/") else "image"
            raise NotFoundError(f"{ref!r} is not in the store {self.path}; `reroot {command} list` shows what is")
        return self.read_json_blob(descriptor.digest)

    def complete(self, ref: str) -> str:
        """Return the ref that `ref` means: itself, or the only one that goes on with /ARCH; raises UsageError."""
        return complete(ref, self.refs())

    def _descriptor(self, item: Mapping[str, object]) -> Descriptor:
        digest, size, kind, notes = (item.get(key) for key in ("digest", "size", "mediaType", "annotations"))
        if (not isinstance(digest, str) or hex_of(digest) is None or type(size) is not int or size < 0
                or not isinstance(kind, str) or not isinstance(notes := notes or {}, dict)
                or not all(isinstance(value, str) for value in notes.values())):
            raise CorruptError(f"{self.path}/index.json has an entry without a proper digest, size, mediaType or "
                               "annotations; restore it from a backup or a mirror of the store")
        return Descriptor(digest, size, kind, notes)

    def _manifests(self) -> list[dict[str, object]]:
        path = self.path / "index.json"
        try:
            value: object = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise self._lost() from error
        except OSError as error:
            raise DiskError(f"{path} cannot be read ({error.strerror}); check who owns it, and the disk") from error
        except (ValueError, RecursionError) as error:
            raise CorruptError(f"{path} is not JSON; restore it from a backup or a mirror of the store") from error
        listed = value.get("manifests") if isinstance(value, dict) else None
        if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
            raise CorruptError(f"{path} is not an OCI image index; restore it from a backup or a mirror of the store")
        return listed

    def _lost(self) -> CorruptError:
        return CorruptError(f"{self.path}/index.json, the list of what is in the store, is missing; restore it from a "
                            "backup or a mirror of the store")

    # -- writing ------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the layout's folders and files where they are missing.

        Raises CorruptError when there are blobs and the list of them is gone: an empty one would hide what is lost.
        """
        with self._disk():
            make_folder(self.path / "blobs" / "sha256")
            make_folder(self.path / ".incoming")
            if not (self.path / "oci-layout").exists():
                write_file(self.path / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}\n')
            with self.locked():
                if not (self.path / "index.json").exists():
                    if any((self.path / "blobs" / "sha256").iterdir()):
                        raise self._lost()
                    self._write_index([])

    def add_bytes(self, data: bytes) -> str:
        """Store a small blob and return its digest; it is durable then."""
        digest = sha256(data)
        if not self.claim(digest):
            with self.incoming() as blob:
                blob.stream.write(data)
                blob.keep(digest)
        return digest

    def claim(self, digest: str) -> bool:
        """Whether the blob is there; it counts as new then, so that nobody collects it before it is named."""
        path = self.blob_path(digest)
        if not path.is_file():
            return False
        with self._disk(), self.locked():  # a collection that is under way has to end first
            with suppress(PermissionError, FileNotFoundError):  # another user's; put_manifest looks again
                os.utime(path)
            return path.is_file()

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Open a new blob; unless the caller `keep`s it, it is gone at the end.

        The disk's errors inside the block become DiskError.
        """
        self.create()
        with self._disk():
            with self.locked():  # or another writer's sweep could find the file before this one has locked it
                self._sweep()
                handle, name = tempfile.mkstemp(dir=self.path / ".incoming")
                fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                with os.fdopen(handle, "w+b") as stream:
                    yield Incoming(self, stream, Path(name))
            finally:
                Path(name).unlink(missing_ok=True)

    def put_manifest(
        self, ref: str, manifest: bytes, annotations: Mapping[str, str] | None = None, *,
        media_type: str = MANIFEST_TYPE,
    ) -> str:
        """Publish a manifest whose blobs are all stored under `ref`, and return its digest.

        Publishing the same again changes nothing. Raises RefusedError when the ref names other content, NotFoundError
        when a blob that the manifest names is not in the store.
        """
        if not _REF.fullmatch(ref) or len(ref) > 255:
            raise UsageError(f"{ref!r} can't name a release; use letters and digits joined by single . _ - + or /")
        self.create()
        digest = self.add_bytes(manifest)
        with self._disk(), self.locked():
            there = self.refs().get(ref)
            if there is not None and there.digest == digest:
                return digest
            for part in (digest, *_parts(manifest)):
                if not self.has(part):  # collected meanwhile, or never stored
                    raise NotFoundError(f"{ref} was not published: its part {part[:19]}… is not in the store; do the "
                                        "same again")
            if there is not None:
                raise RefusedError(f"{ref} is published already with other content ({there.digest[:19]}…), and "
                                   "releases never change; choose a new version")
            sync_folder(self.path / "blobs" / "sha256")  # a blob that was there may be of a writer that died too early
            entry: dict[str, object] = {
                "mediaType": media_type, "digest": digest, "size": len(manifest),
                "annotations": {**(annotations or {}), REF_NAME: ref},
            }
            self._write_index([*self._manifests(), entry])
        return digest

    def forget(self, refs: Collection[str]) -> None:
        """Take `refs` out of index.json; their blobs stay. The caller is inside `locked`."""
        kept = [item for item in self._manifests() if self._descriptor(item).annotations.get(REF_NAME) not in refs]
        with self._disk():
            self._write_index(kept)

    def _write_index(self, manifests: list[dict[str, object]]) -> None:
        value = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        write_file(self.path / "index.json", json.dumps(value, sort_keys=True).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other writers for the block; not to be nested."""
        with (self.path / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _disk(self) -> AbstractContextManager[None]:
        return told(f"the store {self.path}", "nothing was published")

    def _sweep(self) -> None:
        """Remove what writers that were killed left behind; those alive hold a lock on theirs."""
        for path in (self.path / ".incoming").iterdir():
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


class Incoming:
    """A blob that is being written; see Store.incoming."""

    def __init__(self, store: Store, stream: BinaryIO, path: Path) -> None:
        self._store = store
        self.stream = stream
        self.path = path

    def keep(self, digest: str) -> None:
        """Make what was written durable under its digest, which the caller computed."""
        target = self._store.blob_path(digest)
        self.stream.flush()
        os.fchmod(self.stream.fileno(), 0o644)
        os.fsync(self.stream.fileno())
        with self._store.locked():  # or a collection that has looked at an older one would take this
            self.path.rename(target)
        sync_folder(target.parent)


def complete(ref: str, refs: Iterable[str]) -> str:
    """Return which of `refs` the name `ref` means: itself, or the only one that goes on with /ARCH. Pure.

    A name that is none of them is returned as it is; raises UsageError for one that could be several.
    """
    found = [other for other in refs if other == ref or other.rpartition("/")[0] == ref]
    if len(found) > 1 and ref not in found:
        raise UsageError(f"{ref!r} is there as {' and '.join(found)}; say which")
    return ref if ref in found or not found else found[0]


def _parts(manifest: bytes) -> list[str]:
    """Return the digests of the config and layers that a manifest names; none for what is no image manifest."""
    try:
        value = json.loads(manifest)
        named = [value["config"], *value["layers"]]
        return [part["digest"] for part in named if hex_of(part["digest"]) is not None]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
