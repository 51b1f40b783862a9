"""Stored deltas read back: what is spoiled is found, by the cheap part or by the whole application."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from trees import noise

from imaging import delta, delta_build, repack
from imaging.capture import capture
from imaging.delta import Delta
from imaging.delta_audit import audit_delta, deltas
from imaging.delta_manifest import DeltaManifest, is_delta, joined
from imaging.release import Release
from imaging.store import Store
from plumbing.digest import sha256
from plumbing.errors import CorruptError, NotFoundError

PACKED = b"".join(b"%d bottles\n" % number for number in range(20_000))


class Made:
    """A store with two releases and the delta between them: two files of one length changed, and a gzip file."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        for version in (1, 2):
            top = folder / str(version)
            top.mkdir()
            for name in ("a", "b"):
                change = name.encode() * version * 100
                (top / name).write_bytes(noise(ord(name), 50_000) + change.ljust(300, b"."))
            (top / "c.gz").write_bytes(gzip.compress(PACKED + bytes(version), mtime=0))
            (top / "same").write_bytes(noise(3, 1000))
        self.old, self.new = (Release.parse(capture(folder / version, self.store, name="p", version=version,
                                                    arch="amd64", excludes=())) for version in ("1", "2"))
        self.manifest = DeltaManifest.parse(delta_build.build(self.store, self.old, self.new))
        self.blob = self.store.blob_path(self.manifest.blob_digest).read_bytes()
        self.head = self.manifest.decode_head(self.blob[self.manifest.head_offset:])

    def spoiled(self, data: bytes, head: Delta) -> DeltaManifest:
        """Store a blob of other frames and another head; everything that the manifest says of it is right."""
        packed = delta.encode(head)
        blob = data[:self.manifest.head_offset] + packed
        return replace(self.manifest, blob_digest=self.store.add_bytes(blob), blob_size=len(blob),
                       head_length=len(packed), head_digest=sha256(packed))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def test_a_sound_one(made: Made) -> None:
    told: list[tuple[str, int, int]] = []
    assert list(deltas(made.store).values()) == [made.manifest]
    found = audit_delta(made.store, made.manifest, progress=lambda *step: told.append(step))
    assert (found.contents, found.lacks, found.elsewhere) == (3, None, ())
    assert told[-1] == ("verify", made.manifest.blob_size, made.manifest.blob_size)
    assert any(content.recipe for content in made.head.contents)
    assert audit_delta(made.store, made.manifest, deep=True, progress=lambda *step: told.append(step)) == found
    assert told[-1][1] == told[-1][2] > 100_000


def spoilings(made: Made) -> Iterator[tuple[DeltaManifest, str, bool]]:
    """Yield what is wrong, what is said of it, and whether it takes the whole application to see it."""
    flipped = bytearray(made.blob)
    flipped[made.head.index.frame.length + 5] ^= 1
    yield made.spoiled(bytes(flipped), made.head), "its frame at byte", False
    flipped = bytearray(made.blob)
    flipped[5] ^= 1
    yield made.spoiled(bytes(flipped), made.head), "its frame at byte 0", False
    yield made.spoiled(made.blob, replace(made.head, new=made.old.digest)), "joins other builds", False
    index = replace(made.head.index, raw_digest=bytes(32))
    yield made.spoiled(made.blob, replace(made.head, index=index)), "its index does not come out right", False
    yield replace(made.manifest, head_digest=sha256(b"")), "is not the one its manifest names", False
    yield replace(made.manifest, blob_size=made.manifest.blob_size + 1), "its blob as a whole", False
    first, second, *others = made.head.contents
    assert not first.recipe and not second.recipe
    swapped = (replace(first, extents=second.extents), replace(second, extents=first.extents), *others)
    yield made.spoiled(made.blob, replace(made.head, contents=swapped)), "/b does not come out right: it becomes", True
    frames = [replace(one, raw_digest=bytes(32)) for one in made.head.frames]
    yield made.spoiled(made.blob, replace(made.head, frames=tuple(frames))), "does not come out right: a frame", True


def test_what_is_spoiled_is_found(made: Made) -> None:
    for found, words, only_deep in spoilings(made):
        if only_deep:
            audit_delta(made.store, found)
        with pytest.raises(CorruptError, match=words):
            audit_delta(made.store, found, deep=only_deep)


def test_another_zlib_is_no_defect(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repack, "pack_pieces", lambda payload, recipe: iter([b"".join(payload)[:10]]))
    assert audit_delta(made.store, made.manifest, deep=True).elsewhere == ("/c.gz",)
    assert audit_delta(made.store, made.manifest).elsewhere == ()


def test_what_is_not_in_the_store(made: Made, tmp_path: Path) -> None:
    other = Store(tmp_path / "store")
    with pytest.raises(NotFoundError, match="make it again with `reroot image delta p/1/amd64 p/2/amd64`"):
        other.create()
        audit_delta(other, made.manifest)
    other.add_bytes(made.blob)
    found = audit_delta(other, made.manifest, deep=True)
    assert (found.lacks, found.contents) == ("p/1/amd64", 3)


def test_what_is_a_delta(made: Made) -> None:
    assert is_delta(made.manifest.manifest())
    assert not any(map(is_delta, (b"", b"[]", b"{", b"\xff", b'"artifactType"', made.new.manifest())))
    assert joined(made.manifest.target) == joined(made.manifest.ref) == ("p/1/amd64", "p/2/amd64")
    assert joined("releases/p/1/amd64.json") is joined("deltas/p/1/amd64.json") is None
