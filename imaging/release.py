"""A release's manifest: from what was built to canonical JSON, and from untrusted JSON to a value. Pure.

The fields are those of docs/protocols/release.md, "Manifest".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import cast

from imaging.index import MAX_RAW_BYTES, Index, decode
from plumbing.digest import DIGEST, sha256
from plumbing.errors import CorruptError, UsageError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
EMPTY_TYPE, EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
"""The config of a manifest that is no image's: OCI image-spec 1.1, "Guidance for an Empty Descriptor"."""
TITLE, VERSION = "org.opencontainers.image.title", "org.opencontainers.image.version"
ARCH, RAW_BYTES, ENTRIES = "dev.reroot.arch", "dev.reroot.raw-bytes", "dev.reroot.entries"
RECOVERY, INDEX = "dev.reroot.recovery", "dev.reroot.index"
COMPRESSION = "dev.reroot.compression"

_WORD = re.compile(r"[A-Za-z0-9]+(?:[._+-][A-Za-z0-9]+)*")
_COMPRESSION = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Release:
    """What a release's manifest says; sizes and offsets in bytes, digests as `sha256:HEX`.

    `raw_bytes` is the length of the tar, `recovery` the recovery image's catalogue target path, `digest` the
    manifest's own. `index_raw_length` is the index's length when unpacked. `compression` names the library and level
    that all frames were made with, None when they are mixed or nobody said.
    """

    name: str
    version: str
    arch: str
    layer_digest: str
    layer_size: int
    index_offset: int
    index_length: int
    index_raw_length: int
    index_digest: str
    raw_bytes: int
    entries: int
    config_digest: str
    config_size: int
    recovery: str | None = None
    digest: str = ""
    compression: str | None = None

    @property
    def ref(self) -> str:
        """The name under which a store lists it."""
        return f"{self.name}/{self.version}/{self.arch}"

    @property
    def target(self) -> str:
        """The path under which the catalogue lists it."""
        return f"releases/{self.ref}.json"

    @classmethod
    def parse(cls, manifest: bytes) -> Release:
        """Read a manifest; raises CorruptError unless it is a release's."""
        value = _json_object(manifest)
        layers = value.get("layers")
        if value.get("schemaVersion") != 2 or not isinstance(layers, list) or len(layers) != 1:
            raise _bad("it is not an OCI image manifest with exactly one layer")
        notes, layer, config = _strings(value.get("annotations")), _object(layers[0]), _object(value.get("config"))
        if layer.get("mediaType") != LAYER_TYPE or config.get("mediaType") != CONFIG_TYPE:
            raise _bad("its layer or config is of another type than a release's")
        layer_size = _number(layer.get("size"))
        offset, length, raw, index_digest = _index_place(_strings(layer.get("annotations")).get(INDEX, ""), layer_size)
        recovery = notes.get(RECOVERY)
        if recovery is not None and not all(map(_WORD.fullmatch, recovery.split("/"))):
            raise _bad(f"{RECOVERY} is not a catalogue path")
        compression = notes.get(COMPRESSION)
        if compression is not None and (not _COMPRESSION.fullmatch(compression) or len(compression) > 64):
            raise _bad(f"{COMPRESSION} is malformed")
        return cls(
            _word(notes, TITLE), _word(notes, VERSION), _word(notes, ARCH),
            _digest(layer.get("digest")), layer_size, offset, length, raw, index_digest,
            _decimal(notes.get(RAW_BYTES)), _decimal(notes.get(ENTRIES)),
            _digest(config.get("digest")), _number(config.get("size")), recovery,
            sha256(manifest), compression,
        )

    def manifest(self) -> bytes:
        """Return the manifest: canonical, so that equal releases have equal digests."""
        notes = {TITLE: self.name, VERSION: self.version, ARCH: self.arch, RAW_BYTES: str(self.raw_bytes),
                 ENTRIES: str(self.entries)}
        if self.recovery is not None:
            notes[RECOVERY] = self.recovery
        if self.compression is not None:
            notes[COMPRESSION] = self.compression
        place = f"{self.index_offset}:{self.index_length}:{self.index_raw_length}:{self.index_digest}"
        return canonical({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": self.config_digest, "size": self.config_size},
            "layers": [{"mediaType": LAYER_TYPE, "digest": self.layer_digest, "size": self.layer_size,
                        "annotations": {TITLE: "root.tar.zst", INDEX: place}}],
            "annotations": notes,
        })

    def read_index(self, payload: bytes) -> Index:
        """Check the `index_length` bytes at `index_offset` of the layer and decode them; raises CorruptError."""
        if len(payload) != self.index_length or sha256(payload) != self.index_digest:
            raise CorruptError(f"the index of {self.ref} is not the one its manifest names; fetch it again")
        index = decode(payload)
        end = index.frames[-1].offset + index.frames[-1].length if index.frames else 0
        if len(index.entries) != self.entries or end + 8 != self.index_offset:
            raise CorruptError(f"the index of {self.ref} does not fit its manifest; publish the release anew")
        return index


def check_word(value: str, what: str) -> str:
    """Return a name, version or arch that a release may carry; raises UsageError."""
    if not _WORD.fullmatch(value) or len(value) > 64:
        raise UsageError(f"{value!r} can't be a release's {what}; use letters and digits joined by single . _ - or +")
    return value


def is_ref(text: str) -> bool:
    """Whether a text can be the name of a release, NAME/VERSION/ARCH."""
    words = text.split("/")
    return len(words) == 3 and all(_WORD.fullmatch(word) and len(word) <= 64 for word in words)


def config(arch: str, diff_id: str) -> bytes:
    """Return the OCI image config; `diff_id` is the tar's SHA-256 as hex."""
    return canonical({"architecture": arch, "os": "linux", "config": {},
                      "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}})


def canonical(value: object) -> bytes:
    """Return JSON whose bytes depend on the value alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def is_release(manifest: bytes) -> bool:
    """Whether a manifest of the store claims to be a release rather than, say, a recovery image."""
    try:
        layers = _json_object(manifest).get("layers")
        return isinstance(layers, list) and any(_object(layer).get("mediaType") == LAYER_TYPE for layer in layers)
    except CorruptError:
        return False


def _bad(why: str) -> CorruptError:
    return CorruptError(f"this is no release's manifest: {why}; check the name, or publish the release anew")


def _json_object(data: bytes) -> dict[str, object]:
    if len(data) > _MAX_MANIFEST_BYTES:
        raise _bad(f"it is longer than {_MAX_MANIFEST_BYTES} bytes")
    try:
        return _object(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise _bad("it is not JSON") from error


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _bad("a JSON object is missing")
    return value


def _strings(value: object) -> dict[str, str]:
    found = _object(value)
    if not all(isinstance(item, str) for item in found.values()):
        raise _bad("an annotation is not a string")
    return cast("dict[str, str]", found)


def _word(notes: dict[str, str], key: str) -> str:
    value = notes.get(key, "")
    if not _WORD.fullmatch(value) or len(value) > 64:
        raise _bad(f"{key} is missing or malformed")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise _bad("a size is missing or not a number")
    return value


def _decimal(text: str | None) -> int:
    if text is None or not re.fullmatch(r"0|[1-9][0-9]{0,18}", text):
        raise _bad(f"{RAW_BYTES} or {ENTRIES} is missing or not a number")
    return _number(int(text))


def _digest(value: object) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise _bad("a digest is missing or malformed")
    return value


def _index_place(text: str, layer_size: int) -> tuple[int, int, int, str]:
    match = re.fullmatch(r"(\d{1,19}):(\d{1,19}):(\d{1,19}):(sha256:[0-9a-f]{64})", text, re.ASCII)
    if match is None:
        raise _bad(f"{INDEX} is missing or malformed")
    offset, length, raw = (int(match[part]) for part in (1, 2, 3))
    if length < 1 or offset + length > layer_size or raw > MAX_RAW_BYTES or length > MAX_RAW_BYTES:
        raise _bad("its index lies outside the layer or is too long")
    return offset, length, raw, match[4]
