"""Commands are tested against real servers; how those and what they serve are made is other rooms' tests' to know."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / room) for room in ("control", "imaging")]
