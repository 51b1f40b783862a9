"""For the tests of recovery: a host whose partitions are loop devices, and the site it asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from one_host import Host, host


@pytest.fixture
def alpha(tmp_path: Path) -> Iterator[Host]:
    with host(tmp_path) as made:
        yield made
