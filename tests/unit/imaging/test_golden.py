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

TAR = "sha256:12bc47c8d90197941b300e2fb9abbddfe84d5b80eacec6fc183d3af9392009cb"
LAYER = "sha256:f7d7f37fc18338eeeff43916d031079f2facad30dadc31791a546b8c365025e3"
INDEX = "sha256:aca78b977951891ba1906a2df9fff7ac9ebfe59fb46a87d80e8de1c7a99ffbce"
MANIFEST = "sha256:cce310640631e612e8b0b49563e16ad146bc2a68b144f31db701a1d2ca7efd87"


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
