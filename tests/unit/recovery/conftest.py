"""For the tests of recovery: a host whose partitions are loop devices, and the site it asks.

How a real `reroot serve` is made is the control room's tests' to know.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from one_host import Host, host

sys.path.append(str(Path(__file__).parents[1] / "control"))  # where a real `reroot serve` is made


@pytest.fixture
def alpha(tmp_path: Path) -> Iterator[Host]:
    with host(tmp_path) as made:
        yield made
