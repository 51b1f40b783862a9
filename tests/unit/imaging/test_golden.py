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

TAR = "sha256:ea929576efad01c41f3ff7d1c800f4a2a706aff3679b58aa46e946b95c771ee1"
LAYER = "sha256:0a39d1c2cdddd96687163be4be74b3ae760ab3139e114856a9d83d7666b96a7f"
INDEX = "sha256:680250476b5493d0527c06be090af98fbb10d7de67ceb17b3e85f243de847407"
MANIFEST = "sha256:81e270415ec328a129c0a1775aa327b8cf5d2125dcbb234c06d5c1c0e50f5f45"


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
