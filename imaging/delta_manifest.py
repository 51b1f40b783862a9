"""A delta's manifest: from what was built to canonical JSON, and from untrusted JSON to a value. Pure.

The catalogue signs it like a release's: it names the digest of the delta's head, which names those of its frames.
docs/protocols/delta.md, "Manifest".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from imaging import delta
from imaging.delta import MAX_HEAD_BYTES, Delta
from imaging.release import EMPTY, EMPTY_TYPE, MANIFEST_TYPE, TITLE, Release, canonical, is_ref
from plumbing.digest import DIGEST, sha256
from plumbing.errors import CorruptError

ARTIFACT_TYPE = "application/vnd.reroot.delta.v1"
HEAD, OLD, NEW = "dev.reroot.head", "dev.reroot.old", "dev.reroot.new"

_PLACE = re.compile(r"(\d{1,19}):(\d{1,19}):(sha256:[0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True)
class DeltaManifest:
    """What a delta's manifest says; sizes and offsets in bytes, digests as `sha256:HEX`, releases as their refs."""

    old: str
    new: str
    blob_digest: str
    blob_size: int
    head_offset: int
    head_length: int
    head_digest: str

    @property
    def ref(self) -> str:
        """The name under which a store lists it."""
        return delta_ref(self.old, self.new)

    @property
    def target(self) -> str:
        """The path under which the catalogue lists it."""
        return f"{self.ref}.json"

    def manifest(self) -> bytes:
        """Return the manifest as canonical JSON."""
        place = f"{self.head_offset}:{self.head_length}:{self.head_digest}"
        return canonical({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": EMPTY_TYPE, "digest": sha256(EMPTY), "size": len(EMPTY)},
            "layers": [{"mediaType": ARTIFACT_TYPE, "digest": self.blob_digest, "size": self.blob_size,
                        "annotations": {TITLE: "delta", HEAD: place}}],
            "annotations": {OLD: self.old, NEW: self.new},
        })

    @classmethod
    def parse(cls, manifest: bytes) -> DeltaManifest:
        """Read a manifest; raises CorruptError unless it is a delta's."""
        try:
            value = json.loads(manifest)
            layer, notes = value["layers"][0], value["annotations"]
            old, new, digest, size = notes[OLD], notes[NEW], layer["digest"], layer["size"]
            place = _PLACE.fullmatch(layer["annotations"][HEAD])
            if value["artifactType"] != ARTIFACT_TYPE or len(value["layers"]) != 1 or place is None \
                    or not is_ref(old) or not is_ref(new) or not DIGEST.fullmatch(digest) \
                    or type(size) is not int:
                raise ValueError
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise CorruptError("this is no delta's manifest; check the name, or make the delta again") from error
        offset, length = int(place[1]), int(place[2])
        if not 1 <= length <= MAX_HEAD_BYTES or offset + length != size:
            raise CorruptError("the head of this delta lies outside its blob; make the delta again")
        return cls(old, new, digest, size, offset, length, place[3])

    def read_head(self, data: bytes, old: Release, new: Release) -> Delta:
        """Decode the head as `decode_head` does, of a delta that joins these two releases; raises CorruptError."""
        found = self.decode_head(data)
        self.check_ends(found, old, new)
        return found

    def decode_head(self, data: bytes) -> Delta:
        """Check and decode the `head_length` bytes at `head_offset` of the blob; raises CorruptError."""
        if len(data) != self.head_length or sha256(data) != self.head_digest:
            raise CorruptError(f"the head of {self.ref} is not the one its manifest names; fetch it again")
        found = delta.decode(data)
        if found.data_bytes != self.head_offset:
            raise CorruptError(f"{self.ref} does not fit its manifest; make the delta again")
        return found

    def check_ends(self, head: Delta, old: Release, new: Release) -> None:
        """Raise CorruptError unless the head joins these two releases."""
        if (head.old, head.new) != (old.digest, new.digest):
            raise CorruptError(f"{self.ref} joins other builds of these releases; make the delta again")


def is_delta(manifest: bytes) -> bool:
    """Whether a manifest claims to be a delta's rather than, say, a release's."""
    try:
        value = json.loads(manifest)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("artifactType") == ARTIFACT_TYPE


def joined(name: str) -> tuple[str, str] | None:
    """Return the refs of the releases that a delta's ref or catalogue path names; None when it is no delta's."""
    kind, *words = name.removesuffix(".json").split("/")
    return ("/".join(words[:3]), "/".join(words[3:])) if kind == "deltas" and len(words) == 6 else None


def delta_ref(old: str, new: str) -> str:
    """Return the name under which a store lists the delta between two releases, named by their refs."""
    return f"deltas/{old}/{new}"
