"""Manifests: canonical out, suspicious in."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.entry import ROOT, Entry, EntryType
from imaging.index import Frame, Index, encode
from imaging.release import INDEX, RAW_BYTES, RECOVERY, TITLE, Release, canonical, config
from plumbing.digest import sha256
from plumbing.errors import CorruptError

PAYLOAD = encode(Index((Entry(ROOT, EntryType.DIRECTORY, 0o755, 0, 0, 0),), (Frame(0, 30, 1024, bytes(32)),)))
GOOD = Release("debian", "13.1+deb", "amd64", sha256(b"layer"), 5000, 38, len(PAYLOAD), 400, sha256(PAYLOAD), 1024, 1,
               sha256(b"config"), 99, "recovery/std/1/amd64.json")


def test_round_trip() -> None:
    data = GOOD.manifest()
    read = Release.parse(data)
    assert replace(read, digest="") == GOOD
    assert read.digest == sha256(data)
    assert read.manifest() == data
    assert (read.ref, read.target) == ("debian/13.1+deb/amd64", "releases/debian/13.1+deb/amd64.json")
    assert Release.parse(replace(GOOD, recovery=None).manifest()).recovery is None


def test_index_is_checked_before_it_is_read() -> None:
    assert len(GOOD.read_index(PAYLOAD).entries) == 1
    for payload in (PAYLOAD[:-1], PAYLOAD + b"x", PAYLOAD[:-1] + b"x", b""):
        with pytest.raises(CorruptError, match="not the one its manifest names"):
            GOOD.read_index(payload)
    for wrong in (replace(GOOD, entries=2), replace(GOOD, index_offset=40)):
        with pytest.raises(CorruptError, match="does not fit"):
            wrong.read_index(PAYLOAD)


def changed(where: tuple[str | int, ...], value: object) -> bytes:
    manifest = json.loads(GOOD.manifest())
    holder = manifest
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    return canonical(manifest)


@pytest.mark.parametrize(("where", "value"), [
    (("schemaVersion",), 1), (("layers",), []), (("layers",), [1]), (("layers",), [1, 2]), (("config",), None),
    (("config", "mediaType"), "application/vnd.oci.empty.v1+json"), (("config", "digest"), "sha256:x"),
    (("layers", 0, "mediaType"), "application/vnd.oci.image.layer.v1.tar+gzip"),
    (("layers", 0, "digest"), "sha256:../../../x"), (("layers", 0, "size"), "5000"), (("layers", 0, "size"), True),
    (("layers", 0, "size"), -1), (("layers", 0, "annotations"), {}), (("annotations",), {}), (("annotations",), []),
    (("annotations", TITLE), "../debian"), (("annotations", TITLE), "de\nbian"), (("annotations", TITLE), "x" * 65),
    (("annotations", TITLE), 5), (("annotations", RAW_BYTES), "01"), (("annotations", RAW_BYTES), "-1"),
    (("annotations", RAW_BYTES), "٣"), (("annotations", RAW_BYTES), "9" * 19), (("annotations", RECOVERY), "../x"),
    (("annotations", RECOVERY), "/etc/x"),
    *((("layers", 0, "annotations", INDEX), text) for text in (
        "", "1:2:3", f"38:4963:400:{sha256(b'')}", f"38:0:400:{sha256(b'')}", f"-1:10:400:{sha256(b'')}",
        f"38:100:{1 << 31}:{sha256(b'')}", f"38:100:400:{sha256(b'')}\n", f"38:100:400:md5:{'0' * 64}")),
])
def test_other_manifests_are_refused(where: tuple[str | int, ...], value: object) -> None:
    with pytest.raises(CorruptError, match="no release's manifest"):
        Release.parse(changed(where, value))


@given(st.binary(max_size=60))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        Release.parse(data)


def test_endless_and_deep_manifests_are_refused() -> None:
    for data in (b" " * (1 << 20) + GOOD.manifest(), b"[" * 100_000, b"null", b"[]"):
        with pytest.raises(CorruptError):
            Release.parse(data)


def test_config_is_an_oci_image_config() -> None:
    assert json.loads(config("arm64", "ab")) == {"architecture": "arm64", "os": "linux", "config": {},
                                                 "rootfs": {"type": "layers", "diff_ids": ["sha256:ab"]}}
