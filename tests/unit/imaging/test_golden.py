"""The release format does not drift: a tree that a test makes gives the bytes it always gave.

When another zstandard release changes the compressed bytes, TAR must still hold; then run this test, look at what it
says it found, and put those digests here, with a line in CHANGELOG.md, for published releases cannot be built again.
"""

from __future__ import annotations

import os
from pathlib import Path

import captured
import pytest

from imaging.release import Release
from plumbing.digest import sha256

TAR = "sha256:649f52d34652703f017cba686876071ef26ddc9fbdddc647072ad79c379d6e5c"
LAYER = "sha256:87a21fc5df60c96a591d44c02c04978d931bc573a695c6760deed954254bdb56"
INDEX = "sha256:50257efe18589aab4872f8378c3e58e3bb1700440f1753b361707a88ba782842"
MANIFEST = "sha256:c7da5e1a0b7152fec24490883706c8bf1182cd269316265e5b82c4307dafa5d4"


@pytest.mark.root
def test_the_rich_tree_gives_the_bytes_it_always_gave(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        made = captured.rich(tmp_path)
    finally:
        os.umask(before)
    release = Release.parse(made.manifest)
    config = (tmp_path / "store/blobs/sha256" / release.config_digest.removeprefix("sha256:")).read_text()
    diff_id = config.partition('"diff_ids":["')[2].partition('"')[0]
    found = {"TAR": diff_id, "INDEX": release.index_digest, "LAYER": release.layer_digest,
             "MANIFEST": sha256(made.manifest)}
    assert found == {"TAR": TAR, "INDEX": INDEX, "LAYER": LAYER, "MANIFEST": MANIFEST}
