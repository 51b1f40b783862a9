"""How much a content server bears now, as a share of what it can: 0 is idle, 1 is all of it. I/O: reads /proc.

Pressure stall information says which part of the last ten seconds some process waited for a processor, the disk or
memory (Linux 4.20, Documentation/accounting/psi.rst); a kernel without it has its load average by the
processor instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

PRESSURE = Path("/proc/pressure")
_SOME = re.compile(r"^some avg10=([0-9.]+)", re.MULTILINE)


def load(pressure: Path = PRESSURE) -> float:
    """Return the load of this machine, from 0 to 1."""
    found = []
    for name in ("cpu", "io", "memory"):
        try:
            some = _SOME.search((pressure / name).read_text())
        except OSError:
            continue
        if some is not None:
            found.append(float(some.group(1)) / 100)
    if not found:
        found = [os.getloadavg()[0] / (os.cpu_count() or 1)]
    return round(min(1.0, max(found)), 3)
