from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_postgresql import factories
from pytest_postgresql.executors import PostgreSQLExecutor
from pytest_postgresql.janitor import DatabaseJanitor

from control.database import Database

postgresql_proc = factories.postgresql_proc(
    executable=str(Path(__file__).with_name("pg_ctl.sh")), port=None, unixsocketdir="/tmp",
    postgres_options="-c fsync=on")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh database, once in each kind; its tables are made as a server makes them."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'reroot.db'}"
        _migrate(made)
        yield made
        return
    server: PostgreSQLExecutor = request.getfixturevalue("postgresql_proc")
    janitor = DatabaseJanitor(user=server.user, host=server.host, port=server.port, dbname="tickets",
                              maintenance_dbname="postgres")
    with janitor:
        made = f"postgresql+psycopg://{server.user}@{server.host}:{server.port}/tickets"
        _migrate(made)
        yield made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    yield made
    made.close()


def _migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.close()
