"""`tox -e bench [NAME …]`: run the benches and write docs/benchmarks.md; needs root, for files have owners."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import delta, imaging, keeping, precious, throttle
from bench.table import Section, page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BENCHES: Mapping[str, tuple[Callable[[], Section], tuple[str, ...]]] = {
    "imaging": (imaging.measure, ("casync", "b3sum", "tar", "zstd", "mmdebstrap")),
    "delta": (delta.measure, ("ostree", "mmdebstrap")),
    "precious": (precious.measure, ()),
    "keeping": (keeping.measure, ("tar",)),
    "throttle": (throttle.measure, ("etcd", "postgres")),
}
"""Each bench by name, with the programs it needs."""
PACKAGES = {"etcd": "etcd-server", "postgres": "postgresql"}
"""Debian's names of those whose package has another name."""
PATH = ":".join([os.environ.get("PATH", ""), "/usr/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
HEAD = """# Benchmarks

`sudo tox -e bench` writes the tables: peers and reroot take turns in one run, after a round that only warms up. A ratio
is the median of the rounds' ratios, reroot ÷ peer (of speeds where it says so). Absolute times depend on the machine:
read the ratios. Both sides write out the one filesystem they work on (syncfs).
"""


def main(names: list[str]) -> None:
    """Measure, and replace what was measured before; "What we learned" is written by people and kept."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        sys.exit(f"there is no bench {unknown[0]}; there are {', '.join(BENCHES)}")
    wanted = names or list(BENCHES)
    lacking = sorted({program for name in wanted for program in BENCHES[name][1]
                      if shutil.which(program, path=PATH) is None})
    if lacking:
        packages = " ".join(PACKAGES.get(program, program) for program in lacking)
        sys.exit(f"{', '.join(lacking)} is not installed; apt-get install {packages}")
    if os.geteuid():
        sys.exit("files have owners, so this needs root; run it with sudo")
    for name in wanted:
        found = BENCHES[name][0]()
        PAGE.write_text(page(PAGE.read_text() if PAGE.exists() else "", HEAD, [found]))
        print(f"## {found.title}\n\n{found.text()}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
