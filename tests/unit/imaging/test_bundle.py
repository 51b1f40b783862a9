"""What belongs to a release, and which of it can be signed."""

from __future__ import annotations

import json

import pytest

from imaging.bundle import Piece, belongs, hindrance
from imaging.delta_manifest import DeltaManifest
from imaging.recovery_manifest import TITLES
from imaging.release import Release
from plumbing.digest import sha256

ONE, TWO, OTHER = (sha256(text) for text in (b"1", b"2", b"other"))
DELTA = DeltaManifest("d/1/amd64", "d/2/amd64", sha256(b"blob"), 4, 0, 4, sha256(b"blob"))
NEW = Release("d", "2", "amd64", TWO, 1000, 8, 9, 10, ONE, 5, 1, ONE, 1, recovery="recovery/std/1/amd64.json")
SIGNED = {"releases/d/1/amd64.json": ONE, "releases/d/2/amd64.json": TWO}
STORED = {"d/1/amd64": ONE, "d/2/amd64": TWO}


def test_a_delta_is_signed_between_signed_releases() -> None:
    assert hindrance(DELTA, STORED, SIGNED) is None


@pytest.mark.parametrize(("stored", "signed", "words"), [
    (STORED, {"releases/d/2/amd64.json": TWO}, "d/1/amd64 is not signed"),
    (STORED, {"releases/d/1/amd64.json": ONE}, "d/2/amd64 is not signed"),
    ({"d/2/amd64": TWO}, SIGNED, "d/1/amd64 is not in the store"),
    ({**STORED, "d/1/amd64": OTHER}, SIGNED, "the store has another d/1/amd64"),
    (STORED, {**SIGNED, "releases/d/2/amd64.json": OTHER}, "the store has another d/2/amd64"),
])
def test_why_a_delta_is_not_signed(stored: dict[str, str], signed: dict[str, str], words: str) -> None:
    assert words in (hindrance(DELTA, stored, signed) or "")


def recovery(**notes: str) -> bytes:
    value = {"artifactType": "application/vnd.reroot.recovery.v1", "annotations": {
        f"org.opencontainers.image.{key}": text for key, text in notes.items()},
             "layers": [{"digest": ONE, "size": 1, "annotations": {"org.opencontainers.image.title": title}}
                        for title in TITLES]}
    value["annotations"]["dev.reroot.arch"] = "amd64"  # type: ignore[index]
    return json.dumps(value).encode()


def test_what_belongs_to_a_release() -> None:
    assert belongs(Piece(DELTA.ref, DELTA.manifest()), NEW)
    assert belongs(Piece("recovery/std/1/amd64", recovery(title="std", version="1")), NEW)
    assert belongs(Piece("sbom", json.dumps({"subject": {"digest": NEW.digest}}).encode()), NEW)


@pytest.mark.parametrize("piece", [
    Piece("deltas/d/0/amd64/d/2/amd64", DELTA.manifest()),
    Piece(DELTA.ref, DELTA.manifest().replace(b"vnd.reroot.delta", b"vnd.example")),
    Piece(DELTA.ref, DELTA.manifest().replace(b"dev.reroot.head", b"dev.reroot.tail")),
    Piece("recovery/other/1/amd64", recovery(title="other", version="1")),
    Piece("recovery/std/1/amd64", recovery(title="std", version="2")),
    Piece("d/2/amd64", NEW.manifest()), Piece("x", b"[]"), Piece("x", b"{"), Piece("x", b"\xff"),
])
def test_what_does_not(piece: Piece) -> None:
    assert not belongs(piece, NEW)
