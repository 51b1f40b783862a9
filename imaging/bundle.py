"""What travels together when a release does: its recovery image and its deltas first, then the release. I/O: the store.

A list of them is an OCI image index whose descriptors carry the store's refs as `org.opencontainers.image.ref.name`:
the `index.json` of an exported layout, and the tag TAG-artefacts beside a release in a registry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from imaging import recovery_manifest
from imaging.delta_manifest import DeltaManifest, is_delta
from imaging.release import MANIFEST_TYPE, Release, canonical, is_release
from imaging.store import INDEX_TYPE, REF_NAME, Store
from plumbing.digest import hex_of, sha256
from plumbing.errors import CorruptError

ARTEFACTS = "-artefacts"
"""What a release's tag gets appended for the list of what belongs to it."""
MAX_ARTEFACTS = 64


@dataclass(frozen=True)
class Piece:
    """One manifest under its ref in the store."""

    ref: str
    manifest: bytes

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return sha256(self.manifest)

    @property
    def delta(self) -> DeltaManifest | None:
        """What it says when it is a delta under its own name; None for anything else."""
        if not is_delta(self.manifest):
            return None
        try:
            found = DeltaManifest.parse(self.manifest)
        except CorruptError:
            return None
        return found if found.ref == self.ref else None

    def blobs(self) -> list[tuple[str, int]]:
        """Return digest and size in bytes of its config and layers; raises CorruptError."""
        try:
            value = json.loads(self.manifest)
            found = [(part["digest"], part["size"]) for part in (value["config"], *value["layers"])]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptError(f"{self.ref} is not an OCI image manifest; publish it again where it comes "
                               "from") from error
        if not all(isinstance(digest, str) and hex_of(digest) is not None and type(size) is int and 0 <= size < 1 << 63
                   for digest, size in found):
            raise CorruptError(f"{self.ref} names a blob without a proper digest or size; publish it again where it "
                               "comes from")
        return list(dict.fromkeys(found))


def pieces(store: Store, ref: str) -> list[Piece]:
    """Return what belongs to the release `ref` of a store, the release last; raises NotFoundError, CorruptError."""
    release = Piece(ref, store.manifest(ref))
    told = Release.parse(release.manifest)
    refs = store.refs()
    recovery = (told.recovery or "").removesuffix(".json")
    wanted = [recovery] if recovery in refs else []
    wanted += [other for other in refs if _is_part(Piece(other, store.manifest(other)), told)]
    return [*(Piece(other, store.manifest(other)) for other in wanted), release]


def listing(found: Sequence[Piece]) -> bytes:
    """Return the OCI image index that names these pieces. Pure."""
    return canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [
        {"mediaType": MANIFEST_TYPE, "digest": piece.digest, "size": len(piece.manifest),
         "annotations": {REF_NAME: piece.ref}} for piece in found]})


def listed(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield ref ("" for none) and digest of every manifest in an OCI image index. Pure; raises CorruptError."""
    try:
        for item in json.loads(data)["manifests"]:
            digest, ref = item["digest"], (item.get("annotations") or {}).get(REF_NAME, "")
            if hex_of(digest) is None or not isinstance(ref, str):
                raise ValueError(digest)
            yield ref, digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError("this is not an OCI image index; export or push the release again") from error


def belongs(piece: Piece, release: Release) -> bool:
    """Whether what came with `release` is its recovery image under its own name, a delta to it, or names it as subject.

    Nothing else is taken in with it: a list of artefacts is not signed, and must not bring in another release.
    """
    if _is_part(piece, release):
        return not is_release(piece.manifest) and not piece.ref.startswith("recovery/")
    if f"{piece.ref}.json" != release.recovery:
        return False
    recovery_manifest.parts(piece.manifest)
    return piece.ref == recovery_manifest.own_ref(piece.manifest)


def hindrance(found: DeltaManifest, stored: Mapping[str, str], signed: Mapping[str, str]) -> str | None:
    """Return why a delta is not to be signed, None when both its ends are signed as the store has them. Pure.

    `stored` and `signed` are manifests' digests by the store's refs and by the catalogue's paths.
    """
    for ref in (found.old, found.new):
        digest = signed.get(f"releases/{ref}.json")
        if digest is None:
            return f"{ref} is not signed; sign it first"
        if ref not in stored:
            return f"{ref} is not in the store, so nothing shows that the delta fits it; bring it in first"
        if digest != stored[ref]:
            return f"the store has another {ref} than the one that is signed"
    return None


def targets(found: Sequence[Piece]) -> dict[str, bytes]:
    """Return what the catalogue lists of these: the release and its recovery image, each under its path. Pure.

    The deltas are not among them: whether they can be signed is for `hindrance`, and for who reads them back.
    """
    return {f"{piece.ref}.json" if piece.ref.startswith("recovery/") else Release.parse(piece.manifest).target:
            piece.manifest for piece in found if piece.ref.startswith("recovery/") or is_release(piece.manifest)}


def _is_part(piece: Piece, release: Release) -> bool:
    """Whether a manifest names the release as its subject, or is under its own name a delta to it."""
    if _subject(piece.manifest) == release.digest:
        return True
    found = piece.delta
    return found is not None and found.new == release.ref


def _subject(manifest: bytes) -> str | None:
    """Return the digest of the manifest that this one belongs to (OCI image-spec 1.1, "subject")."""
    try:
        value = json.loads(manifest).get("subject")
        found = value.get("digest") if isinstance(value, dict) else None
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
