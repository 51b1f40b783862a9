"""Frames of an earlier release, so that what is in it already is not compressed again. I/O: reads a layer.

A frame of the base is only a candidate: it is found by what its index says of it, and taken when its bytes have their
digest and unpack to exactly the bytes in hand. So nothing that a base claims can get into a release, however it was
made. docs/adr/0003-release-format.md, "A base saves work, never changes bytes".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard
from blake3 import blake3

from imaging.audit import load_index
from imaging.frames import Key, small_key
from imaging.index import Frame, Index
from imaging.release import Release, is_release
from imaging.store import Store
from plumbing.errors import CorruptError, NotFoundError


def frame_keys(index: Index) -> dict[Key, int]:
    """Return the number of each frame by its key; a frame that holds no content has none."""
    small: dict[int, list[tuple[int, bytes]]] = {}
    found: dict[Key, int] = {}
    for entry in index.entries:
        alone = bool(entry.extents) and entry.extents[0].offset == 0  # a header comes before every small content
        if alone:
            found.update(((entry.path, piece), extent.frame) for piece, extent in enumerate(entry.extents))
        elif entry.extents:
            frame, offset, _ = entry.extents[0]
            small.setdefault(frame, []).append((offset, entry.digest))
    return found | {small_key(files): frame for frame, files in small.items()}


@dataclass(frozen=True)
class Base:
    """The frames of `release`, whose layer is open as `handle`; used by many threads at once."""

    release: Release
    frames: tuple[Frame, ...]
    keys: dict[Key, int]
    handle: int

    def candidate(self, key: Key, raw_length: int) -> Frame | None:
        """Return the frame that may hold the same `raw_length` bytes."""
        number = self.keys.get(key)
        frame = self.frames[number] if number is not None else None
        return frame if frame is not None and frame.raw_length == raw_length else None

    def same(self, frame: Frame, raw: bytes) -> bytes | None:
        """Return the compressed bytes of `frame` when they unpack to `raw`, None when they are damaged or do not."""
        packed = os.pread(self.handle, frame.length, frame.offset)
        if blake3(packed).digest() != frame.digest:
            return None
        try:
            unpacked = zstandard.ZstdDecompressor().decompress(packed, max_output_size=len(raw), allow_extra_data=False)
        except zstandard.ZstdError:
            return None
        return packed if unpacked == raw else None


def newest_base(store: Store, name: str, arch: str, compression: str) -> Release | None:
    """Return the release of that name and arch, compressed that way, that came into the store last."""
    found: list[tuple[int, str, Release]] = []
    for ref, descriptor in store.refs().items():
        if ref.startswith(f"{name}/") and ref.endswith(f"/{arch}"):
            try:
                manifest = store.read_json_blob(descriptor.digest)
                release = Release.parse(manifest) if is_release(manifest) else None
                came = store.blob_path(descriptor.digest).stat().st_mtime_ns
            except (CorruptError, NotFoundError, OSError):
                continue  # whatever is wrong with it, this build does not depend on it
            if release is not None and (release.name, release.arch, release.compression) == (name, arch, compression):
                found.append((came, ref, release))
    return max(found, key=lambda one: one[:2])[2] if found else None


@contextmanager
def opened_base(store: Store, release: Release) -> Iterator[Base]:
    """Give the frames of a stored release; raises NotFoundError when its layer is gone, CorruptError when damaged."""
    index = load_index(store, release)
    handle = os.open(Path(store.blob_path(release.layer_digest)), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Base(release, index.frames, frame_keys(index), handle)
    finally:
        os.close(handle)
