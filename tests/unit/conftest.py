"""For all unit tests: how Hypothesis judges, a disk that answers no more, and the one way to a real PostgreSQL.

Hypothesis judges what a rule does, not how long a busy machine takes over it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from loopdevice import attached
from pytest_postgresql import factories
from pytest_postgresql.executors import PostgreSQLExecutor
from pytest_postgresql.janitor import DatabaseJanitor

from plumbing.run import run

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

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
"""ioctl_fsfreeze(2)."""


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """Mount a filesystem and freeze it until the test is over: whoever writes to it cannot be interrupted."""
    image, folder = tmp_path / "frozen.img", tmp_path / "frozen"
    folder.mkdir()
    with image.open("wb") as stream:
        stream.truncate(8 << 20)
    run(["mkfs.ext4", "-q", "-F", image])
    with attached(image) as device:
        run(["mount", "-t", "ext4", device, folder])
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, FIFREEZE, 0)
            yield folder
        finally:
            fcntl.ioctl(handle, FITHAW, 0)
            os.close(handle)
            run(["umount", "--lazy", folder])
