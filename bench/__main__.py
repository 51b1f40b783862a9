"""`tox -e bench`: run the benches and write docs/benchmarks.md."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from bench import imaging, throttle

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def page(found: Mapping[str, object]) -> str:
    """Return the page for what was measured."""
    seconds, sizes, ratios = (cast("Mapping[str, float]", found[name]) for name in ("seconds", "sizes", "ratios"))
    lines = [
        "# Benchmarks", "",
        f"Written by `tox -e bench` on {len(os.sched_getaffinity(0))} cores. Peer and reroot take turns in one run,",
        f"{imaging.RUNS} rounds after a warm-up; figures are medians. Absolute times depend on the machine: read",
        "the ratios.", "",
        f"Input: Debian 13 minbase with systemd, sshd and the cloud kernel: {found['entries']} entries, "
        f"{cast('int', found['raw_bytes']) / 1e6:.0f} MB.", "",
        "| what | median |", "|---|---|",
        *(f"| {_cell(name)} | {value:.2f} s |" for name, value in seconds.items()), "",
        "| size | MB |", "|---|---|", *(f"| {_cell(name)} | {value / 1e6:.1f} |" for name, value in sizes.items()), "",
        "| reroot ÷ peer | ratio |", "|---|---|", *(f"| {name} | {value:.2f} |" for name, value in ratios.items()), "",
        "Restore verifies every frame's BLAKE3 on the way in; the peer verifies nothing. Read-back compares every file",
        "with its digest after the page cache was dropped.", "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    text = page(imaging.measure()) + "\n" + throttle.section(throttle.measure())
    PAGE.write_text(text)
    print(text)
