from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from control.database import Database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh database, once in each kind; its tables are made as a server makes them."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'reroot.db'}"
    else:
        made = str(request.getfixturevalue("postgresql_url"))
    database = Database(made)
    database.migrate()
    database.close()
    return made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    yield made
    made.close()
