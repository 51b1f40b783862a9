"""The agent's tests talk to a real `reroot serve`; how one is made is the control room's tests' to know."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "control"))
