"""`tox -e bench`: run the benches and write docs/benchmarks.md; needs root, for files have owners."""

from __future__ import annotations

import os
from pathlib import Path

from bench import imaging

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
NOTES = "## What we learned"
"""From this heading on the page is written by people, and kept."""


def page(found: imaging.Found, notes: str) -> str:
    """Return the page for what was measured."""
    cores = len(os.sched_getaffinity(0))
    head = f"""# Benchmarks

Written by `sudo tox -e bench` on {cores} cores: peers and reroot take turns in one run, {imaging.RUNS} rounds after a
warm-up. A ratio is the median of the rounds' ratios, reroot ÷ peer (of speeds where it says so). Absolute times depend
on the machine: read the ratios. Both sides write out the one filesystem (syncfs).

Input: the two Debian 12 roots of `lab/roots.py`, as released and with all updates; the newer has {found.entries}
entries and is a tar of {found.raw_bytes / 1e6:.0f} MB.

Restore verifies every frame on the way in; `zstd -dc, tar -x` verifies nothing, casync every chunk. Read-back compares
content and metadata of every entry after the page cache was dropped; b3sum hashes contents only. From the old root a
host fetches the frames that it can't make from its own files, as casync does with that root as its seed.
"""
    tables = [
        "| what | reroot | peer | its figure | ratio | target | |", "|---|---|---|---|---|---|---|",
        *map(_line, found.rows), "",
        "| median of the times | s |", "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in found.times.items()), "",
        "| size | MB |", "|---|---|", *(f"| {name} | {value / 1e6:.1f} |" for name, value in found.sizes.items()),
    ]
    return "\n".join([head, *tables, "", notes])


def _line(row: imaging.Row) -> str:
    sign, verdict = "≥" if row.at_least else "≤", "met" if row.met else "**missed**"
    return (f"| {row.what} | {row.ours:.2f} {row.unit} | {row.peer} | {row.theirs:.2f} {row.unit} | {row.ratio:.2f} | "
            f"{sign} {row.target:.2f} | {verdict} |")


def main() -> None:
    """Measure, and replace all of the page but its notes."""
    old = PAGE.read_text() if PAGE.exists() else ""
    notes = old[old.index(NOTES):] if NOTES in old else f"{NOTES}\n\nNothing yet.\n"
    text = page(imaging.measure(), notes)
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
