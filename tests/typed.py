"""mypy over the tests: a folder at a time, for pytest puts each on the path by itself and many have a conftest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def main() -> int:
    """Check every folder; returns how many have something wrong."""
    wrong = 0
    for folder in sorted({path.parent for path in TESTS.rglob("*.py")}):
        above = [path for path in (folder, *folder.parents) if TESTS in path.parents]
        done = subprocess.run([sys.executable, "-m", "mypy", *map(str, sorted(folder.glob("*.py")))],
                              env={**os.environ, "MYPYPATH": os.pathsep.join(map(str, above))}, cwd=TESTS.parent)
        wrong += done.returncode != 0
    return wrong


if __name__ == "__main__":
    sys.exit(main())
