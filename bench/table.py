"""What a bench found, as a section of docs/benchmarks.md. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One line of the table: `ours` and `theirs` with a unit, their ratio, and what it should be at most (or least)."""

    what: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    target: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


@dataclass(frozen=True)
class Section:
    """What one bench found; `times` are medians in seconds, `sizes` in bytes."""

    title: str
    about: str
    rows: Sequence[Row]
    times: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """Return it as markdown, without its heading."""
        lines = [self.about, "", "| what | reroot | peer | its figure | ratio | target | |",
                 "|---|---|---|---|---|---|---|", *map(_line, self.rows)]
        if self.times:
            lines += ["", "| median of the times | s |", "|---|---|",
                      *(f"| {name} | {value:.2f} |" for name, value in self.times.items())]
        if self.sizes:
            lines += ["", "| size | MB |", "|---|---|",
                      *(f"| {name} | {value / 1e6:.1f} |" for name, value in self.sizes.items())]
        return "\n".join(lines)


def timed(what: str, peer: str, ours: Sequence[float], theirs: Sequence[float], target: float) -> Row:
    """Compare times in seconds round by round: what disturbs the machine disturbs both of a round."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return Row(what, peer, statistics.median(ours), statistics.median(theirs), "s", ratio, target)


def sized(what: str, peer: str, ours: int, theirs: int, target: float) -> Row:
    """Compare two lengths in bytes."""
    return Row(what, peer, ours / 1e6, theirs / 1e6, "MB", ours / theirs, target)


def page(old: str, head: str, found: Sequence[Section]) -> str:
    """Return the page `old` with what was found in the place of the sections of the same titles; others are kept."""
    kept = dict(re.findall(r"^## (.+)\n\n?((?:(?!^## ).*\n?)*)", old, re.MULTILINE))
    kept |= {section.title: section.text() for section in found}
    notes = kept.pop("What we learned", "Nothing yet.")
    return "\n\n".join([head.strip(), *(f"## {title}\n\n{text.strip()}" for title, text in kept.items()),
                        f"## What we learned\n\n{notes.strip()}"]) + "\n"


def _line(row: Row) -> str:
    sign, verdict = "≥" if row.at_least else "≤", "met" if row.met else "**missed**"
    return (f"| {row.what} | {row.ours:.2f} {row.unit} | {row.peer} | {row.theirs:.2f} {row.unit} | {row.ratio:.2f} | "
            f"{sign} {row.target:.2f} | {verdict} |")
