"""An OCI image in a registry as a source. I/O: fetched into a layout in a scratch folder, and from there as any layout.

Manifest (of the tag or digest, for the architecture) → config and layers, each hashed on its way. The layout's own
checks come on top, so nothing that a registry says is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imaging.registry import Place, Registry
from imaging.registry_auth import Credentials
from imaging.root_sources.oci import OciSource
from imaging.root_sources.oci_layout import INDEX_TYPES, Blob, blob_path, image_blobs, manifest_for, manifest_type
from imaging.root_sources.scratch import need_root, scratch_folder
from imaging.root_sources.source import RootTree
from plumbing.digest import DIGEST, sha256
from plumbing.durable import told
from plumbing.errors import CorruptError, UsageError

_DEPTH = 4


@dataclass(frozen=True)
class RegistryImage:
    """The image at `place`, for `arch` when there are several; `known` is who we are there."""

    place: Place
    known: Credentials | None = None
    arch: str | None = None
    scratch: Path | None = None

    @contextmanager
    def opened(self) -> Iterator[RootTree]:
        """Fetch and unpack the image and give its tree; needs root. See RootSource; also raises what Registry does."""
        need_root("unpacking an image with its owners and devices")
        if not self.place.reference:
            raise UsageError(f"{self.place} names no image; write docker://{self.place}:TAG")
        with scratch_folder(self.scratch) as folder:
            registry = Registry(self.place, self.known)
            try:
                _fetch(registry, self.place.reference, self.arch, folder)
            finally:
                registry.close()
            with OciSource(folder, None, self.arch, self.scratch).opened() as tree:
                yield tree


def _fetch(registry: Registry, reference: str, arch: str | None, layout: Path) -> None:
    """Make a layout of the one image that `reference` means."""
    (layout / "blobs/sha256").mkdir(parents=True)
    for _ in range(_DEPTH):
        data = registry.manifest(reference)
        if DIGEST.fullmatch(reference) and sha256(data) != reference:
            raise CorruptError(f"{registry.place.host} sent another manifest than {reference[:19]}…; ask who runs it")
        kind = manifest_type(data)
        if kind not in INDEX_TYPES:
            break
        reference = manifest_for(data, arch).digest
    else:
        raise CorruptError(f"{registry.place} has indexes within indexes; name the one image by its digest")
    row = {"mediaType": kind, "digest": sha256(data), "size": len(data)}
    with told(f"the scratch folder {layout}", "nothing was made"):
        blob_path(layout, Blob(sha256(data), len(data), kind)).write_bytes(data)
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [row]}))
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    for blob in dict.fromkeys(image_blobs(data)):
        with told(f"the scratch folder {layout}", "nothing was made"), blob_path(layout, blob).open("wb") as stream:
            summed = hashlib.sha256()
            for piece in registry.blob(blob.digest, blob.size):
                summed.update(piece)
                stream.write(piece)
        if f"sha256:{summed.hexdigest()}" != blob.digest:
            raise CorruptError(f"{registry.place.host} sent other bytes for {blob.digest[:19]}…; try again, and ask "
                               "who runs it")
