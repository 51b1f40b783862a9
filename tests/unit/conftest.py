"""For all unit tests: how Hypothesis judges, and the one way in which they get a real PostgreSQL.

Hypothesis judges what a rule does, not how long a busy machine takes over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pytest_postgresql import factories
from pytest_postgresql.executors import PostgreSQLExecutor
from pytest_postgresql.janitor import DatabaseJanitor

settings.register_profile("reroot", deadline=None)
settings.load_profile("reroot")

postgresql_proc = factories.postgresql_proc(
    executable=str(Path(__file__).with_name("pg_ctl.sh")), port=None,
    postgres_options="-c fsync=on -c unix_socket_directories=''")


@pytest.fixture
def postgresql_url(postgresql_proc: PostgreSQLExecutor) -> Iterator[str]:
    """The URL of a database without tables, for as long as the test takes."""
    server = postgresql_proc
    with DatabaseJanitor(user=server.user, host=server.host, port=server.port, dbname="tickets",
                         maintenance_dbname="postgres"):
        yield f"postgresql+psycopg://{server.user}@{server.host}:{server.port}/tickets"
