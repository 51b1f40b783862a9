"""What of an archive returns, and what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from old_and_new import rules, write

from precious import keep


@pytest.mark.root
def test_an_archive_says_what_its_return_takes(tmp_path: Path) -> None:
    for number in range(300):
        write(tmp_path / "old", f"srv/{number}", b"x")
    write(tmp_path / "old", "etc/unlisted", b"x" * 10_000)
    kept = keep.collect(tmp_path / "old", rules('keep = ["/srv/**"]'), tmp_path / "kept")
    assert kept.footprint.inodes == 302  # with srv and the top
    assert 300 * 4096 <= kept.footprint.size < 320 * 4096, "and nothing of what was not listed"
