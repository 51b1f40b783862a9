"""An OCI image layout from strangers: which image is meant, and its parts, digests checked. I/O: reads the layout.

OCI image-spec 1.1, "Image Layout", "Image Index", "Image Manifest", "Image Configuration"; Docker's schema 2 manifests,
which name the same things with other media types, are read too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imaging.release import MANIFEST_TYPE
from imaging.store import INDEX_TYPE
from plumbing.digest import hex_of
from plumbing.errors import CorruptError, DiskError, NotFoundError, UsageError

REF_NAME = "org.opencontainers.image.ref.name"
MAX_JSON_BYTES = 4 << 20
"""The largest index, manifest or config that is read, in bytes."""
MAX_LAYERS = 512
"""More than any container runtime mounts."""

INDEX_TYPES = frozenset({
    INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json"})
MANIFEST_TYPES = frozenset({
    MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"})
LAYER_TYPES: Mapping[str, str] = {
    **{f"application/vnd.oci.image.layer.{free}v1.tar{end}": kind for free in ("", "nondistributable.")
       for end, kind in (("", "tar"), ("+gzip", "gzip"), ("+zstd", "zstd"))},
    "application/vnd.docker.image.rootfs.diff.tar": "tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}
"""What a layer's media type says of its packing."""

_ARCHES = {"386": "i386", "ppc64le": "ppc64el", "arm": "armhf"}
"""Where OCI's word (Go's) is not Debian's."""


@dataclass(frozen=True)
class Blob:
    """A descriptor; `size` in bytes."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True)
class Layer:
    """One layer: where its bytes are, how they are packed (tar, gzip, zstd), and the SHA-256 of the tar in it."""

    blob: Blob
    packing: str
    diff_id: str


@dataclass(frozen=True)
class Image:
    """One image: its architecture in Debian's words and its layers, lowest first."""

    arch: str
    layers: tuple[Layer, ...]


def split_name(text: str) -> tuple[Path, str | None]:
    """Split `PATH[:TAG]`: the longest path that is a layout wins, as both may hold colons. Raises UsageError."""
    cuts = [len(text), *(place for place in range(len(text) - 1, 0, -1) if text[place] == ":")]
    for cut in cuts:
        path = Path(text[:cut])
        if (path / "oci-layout").is_file() and (path / "index.json").is_file():
            tag = text[cut + 1:]
            return path, tag or None
    raise UsageError(f"{text} names no OCI image layout, a folder with oci-layout, index.json and blobs; "
                     "`skopeo copy … oci:FOLDER:TAG` makes one")


def find_image(layout: Path, tag: str | None, arch: str | None) -> Image:
    """Return the image `tag` (the only one when None) of the layout, for `arch` when there are several.

    Raises NotFoundError or UsageError that list what there is, CorruptError when the layout contradicts itself.
    """
    rows = _rows(_json(_read(layout / "index.json")), "index.json")
    named = [row for row in rows if tag is None or _notes(row).get(REF_NAME) == tag]
    there = ", ".join(sorted({_notes(row).get(REF_NAME, "") or "(no tag)" for row in rows})) or "nothing"
    if not named:
        raise NotFoundError(f"{layout} has no image {tag!r}; there is {there}")
    if len({_blob(row).digest for row in named}) > 1:
        raise UsageError(f"{layout} has several images; write oci:{layout}:TAG; there is {there}")
    for _ in range(4):  # an index may hold another
        blob = _blob(named[0])
        if blob.media_type in MANIFEST_TYPES:
            return _image(layout, blob)
        if blob.media_type not in INDEX_TYPES:
            raise UsageError(f"{layout} holds a {blob.media_type!r} and no image under that name")
        named = [_for_arch(_rows(_json(read_blob(layout, blob)), "an image index"), arch)]
    raise CorruptError(f"{layout} has indexes within indexes; copy the one image out with skopeo copy")


def manifest_type(manifest: bytes) -> str:
    """Return the media type that a manifest or index says it has; an OCI one need not say it. Raises CorruptError."""
    value = _json(manifest)
    kind = value.get("mediaType")
    return kind if isinstance(kind, str) else INDEX_TYPE if "manifests" in value else MANIFEST_TYPE


def manifest_for(index: bytes, arch: str | None) -> Blob:
    """Return the image for `arch` that an index names; raises UsageError when there is none, or several."""
    return _blob(_for_arch(_rows(_json(index), "an image index"), arch))


def image_blobs(manifest: bytes) -> tuple[Blob, ...]:
    """Return what a manifest needs, its config first; raises CorruptError."""
    value = _json(manifest)
    layers = value.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise CorruptError("the image's manifest is not what OCI defines; copy it again")
    config = _blob(_mapping(value.get("config")))
    if config.size > MAX_JSON_BYTES:
        raise CorruptError(f"the image's config has {config.size} bytes, and {MAX_JSON_BYTES} are read at most")
    return config, *(_blob(_mapping(layer)) for layer in layers)


def debian_arch(architecture: str) -> str:
    """Return Debian's word for OCI's `architecture`."""
    return _ARCHES.get(architecture, architecture)


def blob_path(layout: Path, blob: Blob) -> Path:
    """Return where a blob lies; its digest is checked to be one."""
    return layout / "blobs" / "sha256" / (hex_of(blob.digest) or "")


def check_blob(layout: Path, blob: Blob) -> Path:
    """Read a blob once to its end and return its path; raises CorruptError unless it has its size and digest."""
    path = blob_path(layout, blob)
    try:
        with path.open("rb") as stream:
            if stream.seek(0, 2) != blob.size:
                raise _damaged(path, "is longer or shorter than its descriptor says")
            stream.seek(0)
            if f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}" != blob.digest:
                raise _damaged(path, "is not what its name says")
    except OSError as error:
        raise _unreadable(path, error) from error
    return path


def read_blob(layout: Path, blob: Blob) -> bytes:
    """Return a small blob, checked; raises CorruptError."""
    if blob.size > MAX_JSON_BYTES:
        raise CorruptError(f"{layout} has a manifest or config of {blob.size} bytes, and {MAX_JSON_BYTES} are read at "
                           "most")
    path = check_blob(layout, blob)
    data = _read(path)
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != blob.digest:
        raise _damaged(path, "changed while it was read")
    return data


def _image(layout: Path, manifest: Blob) -> Image:
    value = _json(read_blob(layout, manifest))
    config = _json(read_blob(layout, _blob(_mapping(value.get("config")))))
    layers, ids = value.get("layers"), _mapping(config.get("rootfs")).get("diff_ids")
    arch = config.get("architecture")
    if not isinstance(layers, list) or not isinstance(ids, list) or not isinstance(arch, str) or not arch:
        raise UsageError(f"{layout} holds something else than an image of a root filesystem under that name")
    if len(layers) != len(ids) or not 0 < len(layers) <= MAX_LAYERS:
        raise CorruptError(f"{layout} has an image with {len(layers)} layers and {len(ids)} digests; copy it again")
    return Image(debian_arch(arch), tuple(_layer(layer, diff_id) for layer, diff_id in zip(layers, ids, strict=True)))


def _layer(value: object, diff_id: object) -> Layer:
    blob = _blob(_mapping(value))
    if blob.media_type not in LAYER_TYPES:
        raise UsageError(f"a layer of type {blob.media_type!r} cannot be unpacked; copy the image with "
                         "`skopeo copy --dest-oci-accept-uncompressed-layers`, or export it anew, unencrypted")
    if not isinstance(diff_id, str) or hex_of(diff_id) is None:
        raise CorruptError("the image's config has a malformed digest of a layer; copy it again")
    return Layer(blob, LAYER_TYPES[blob.media_type], diff_id)


def _for_arch(rows: Sequence[Mapping[str, object]], arch: str | None) -> Mapping[str, object]:
    found = [(debian_arch(str(platform.get("architecture", ""))), row) for row in rows
             if (platform := _mapping(row.get("platform") or {})).get("os", "linux") == "linux"]
    fitting = [row for word, row in found if arch is None or word == arch]
    if len(fitting) != 1:
        there = ", ".join(sorted(word or "unnamed" for word, _ in found)) or "nothing"
        raise UsageError(f"the image is there for {there}; say which with --arch")
    return fitting[0]


def _rows(value: Mapping[str, object], what: str) -> list[Mapping[str, object]]:
    rows = value.get("manifests")
    if not isinstance(rows, list):
        raise CorruptError(f"{what} lists no manifests; copy the layout again")
    return [_mapping(row) for row in rows]


def _notes(row: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in _mapping(row.get("annotations") or {}).items()}


def _blob(row: Mapping[str, object]) -> Blob:
    digest, size, kind = row.get("digest"), row.get("size"), row.get("mediaType")
    if not isinstance(digest, str) or hex_of(digest) is None or type(size) is not int or size < 0:
        raise CorruptError("the layout names a blob without a proper sha256 digest and size; copy it again")
    return Blob(digest, size, kind if isinstance(kind, str) else "")


def _json(data: bytes) -> Mapping[str, object]:
    try:
        return _mapping(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise CorruptError("the layout has a manifest or config that is not JSON; copy it again") from error


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise CorruptError("the layout has a manifest or config that is not what OCI defines; copy it again")
    return value


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_JSON_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DiskError | NotFoundError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path} is missing from the layout; copy the image again")
    return DiskError(f"{path} cannot be read ({error.strerror}); check who owns it, and the disk")


def _damaged(path: Path, why: str) -> CorruptError:
    return CorruptError(f"{path} {why}; copy the image again")

