"""mypy over the tests: a folder at a time, for pytest puts each on the path by itself and many have a conftest.

All folders share mypy's cache with the check of the rooms themselves, so that only what changed is looked at.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
BESIDE = {TESTS / "unit/fleet": [TESTS / "unit/control"],
          TESTS / "unit/leases": [TESTS / "unit/control"],
          TESTS / "unit/recovery": [TESTS / "unit/control"],
          TESTS / "unit/cli": [TESTS / "unit/control", TESTS / "unit/imaging"]}
"""Folders whose conftest.py puts others on the path."""


def main() -> int:
    """Check every folder; returns how many have something wrong."""
    wrong = 0
    for folder in sorted({path.parent for path in TESTS.rglob("*.py")}):
        path = [part for part in (folder, *folder.parents, *BESIDE.get(folder, ())) if TESTS in part.parents]
        done = subprocess.run([sys.executable, "-m", "mypy", *map(str, sorted(folder.glob("*.py")))],
                              env={**os.environ, "MYPYPATH": os.pathsep.join(map(str, path))}, cwd=TESTS.parent)
        wrong += done.returncode != 0
    return wrong


if __name__ == "__main__":
    sys.exit(main())
