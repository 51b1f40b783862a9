"""What the control server remembers: tables, engine, migrations; I/O on one database.

SQLite in WAL mode with synchronous=FULL by default: a transaction that returned survives a power cut. Sessions are
short and run in worker threads; the event loop never waits for the disk.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Engine, Index, MetaData, String, Text, create_engine, event, func, select
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from plumbing.errors import ConfigError, DiskError
from throttle import tables as throttle_tables
from throttle.repository import READING

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 10_000
"""How long one writer waits for another before SQLite gives up, in milliseconds."""

MIGRATION_LOCK = 0x7265726F6F74
"""The advisory lock of PostgreSQL that whoever migrates holds."""

Json = dict[str, Any]


class Base(DeclarativeBase):
    """The control server's own tables."""

    metadata = MetaData(naming_convention={"ix": "ix_%(column_0_label)s", "pk": "pk_%(table_name)s"})
    type_annotation_map = {Json: JSON}  # noqa: RUF012 - SQLAlchemy reads it as a class attribute


class HostRow(Base):
    """A host that enrolled or was given a token; what a person wrote of it stays in hosts.toml."""

    __tablename__ = "hosts"
    name: Mapped[str] = mapped_column(String(253), primary_key=True)
    public_key: Mapped[str | None] = mapped_column(String(64))
    enrolled_s: Mapped[float | None]
    seen_s: Mapped[float | None]
    healthy_s: Mapped[float | None]
    level: Mapped[str | None] = mapped_column(String(64))
    release: Mapped[str | None] = mapped_column(String(400))
    facts: Mapped[Json] = mapped_column(default=dict)


class TokenRow(Base):
    """A one-time enrolment token; only its SHA-256 is kept."""

    __tablename__ = "enrol_tokens"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(253), index=True)
    expires_s: Mapped[float]
    claimed_by: Mapped[str | None] = mapped_column(String(64))


class OrderRow(Base):
    """An order as it was signed, and how far its host has come with it."""

    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    host: Mapped[str] = mapped_column(String(253))
    mode: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), index=True)
    release: Mapped[str | None] = mapped_column(String(400))
    digest: Mapped[str | None] = mapped_column(String(80))
    recovery: Mapped[str | None] = mapped_column(String(400))
    level: Mapped[str | None] = mapped_column(String(64))
    envelope: Mapped[bytes]
    nonce: Mapped[str] = mapped_column(String(64))
    claimed_by: Mapped[str | None] = mapped_column(String(64))
    issued_s: Mapped[float]
    expires_s: Mapped[float]
    deadline_s: Mapped[float]
    phase: Mapped[str | None] = mapped_column(String(32))
    recovering: Mapped[bool] = mapped_column(default=False)
    message: Mapped[str | None] = mapped_column(Text)
    changed_s: Mapped[float]
    rollout: Mapped[str | None] = mapped_column(String(36), index=True)
    __table_args__ = (Index("ix_orders_host_issued", "host", "issued_s"),)


class EventRow(Base):
    """One thing a host reported, or the server did to it; never changed."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    host: Mapped[str] = mapped_column(String(253), index=True)
    order_id: Mapped[str | None] = mapped_column("order", String(36))
    phase: Mapped[str] = mapped_column(String(32))
    event: Mapped[str] = mapped_column(String(32))
    at: Mapped[str] = mapped_column(String(32))
    received_s: Mapped[float]
    data: Mapped[Json] = mapped_column(default=dict)
    message: Mapped[str] = mapped_column(Text, default="")


class NonceRow(Base):
    """A request's nonce, until nobody could replay it any more."""

    __tablename__ = "nonces"
    host: Mapped[str] = mapped_column(String(253), primary_key=True)
    nonce: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_s: Mapped[float] = mapped_column(index=True)


class RolloutRow(Base):
    """A rollout: what was asked, and the executor's state after its last step."""

    __tablename__ = "rollouts"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    created_s: Mapped[float]
    changed_s: Mapped[float]
    status: Mapped[str] = mapped_column(String(16), index=True)
    spec: Mapped[Json]
    state: Mapped[str] = mapped_column(Text)
    knob_s: Mapped[float | None]


class LossRow(Base):
    """A host's newest loss report, whether another was asked for, and why none could be made; times in wall seconds."""

    __tablename__ = "losses"
    host: Mapped[str] = mapped_column(String(253), primary_key=True)
    asked_s: Mapped[float | None]
    received_s: Mapped[float | None]
    report: Mapped[Json | None]
    failed: Mapped[str] = mapped_column(Text, default="")


class LossAnswerRow(Base):
    """Somebody's word that a finding may be lost, for one installation of one host."""

    __tablename__ = "loss_answers"
    host: Mapped[str] = mapped_column(String(253), primary_key=True)
    finding: Mapped[str] = mapped_column(String(16), primary_key=True)
    baseline: Mapped[str] = mapped_column(Text)
    who: Mapped[str] = mapped_column(String(200))
    at_s: Mapped[float]


def url_for(site_database: Path, configured: str) -> str:
    """Return the SQLAlchemy URL: the configured one, else SQLite in the site's state/."""
    return configured or f"sqlite:///{site_database}"


def unwritable(error: OperationalError) -> str:
    """Say what is wrong: SQLite's disk, and nothing of the transaction is kept, or a PostgreSQL that is away."""
    if not isinstance(error.orig, sqlite3.Error):  # what it was committing when it went may be there
        return f"the server's database does not answer ({' '.join(str(error.orig).split())}); ask again"
    return f"the server's database cannot be used ({error.orig}); nothing was changed; check its disk's free space"


class Database:
    """One engine, opened once per process."""

    def __init__(self, url: str) -> None:
        try:
            self.engine: Engine = create_engine(url, connect_args=_arguments(url))
        except (ArgumentError, ImportError) as error:
            shown = re.sub(r"//[^@/]*@", "//…@", url)  # a password may be in it
            raise ConfigError(f"[server] database = {shown!r} cannot be used ({error}); leave it out to use "
                              "SQLite in the site's state folder") from error
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_immediately)
        else:
            event.listen(self.engine, "connect", _prepare_postgresql)
        self.url = url
        self.name = self.engine.url.render_as_string(hide_password=True)

    def migrate(self) -> None:
        """Bring the tables to this version's shape; raises DiskError when the database cannot be written."""
        from alembic import command
        from alembic.config import Config as AlembicConfig
        from alembic.util import CommandError as AlembicError

        settings = AlembicConfig()
        settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self.engine.connect() as connection:
                if self.engine.dialect.name == "postgresql":  # two servers that start at once take turns
                    connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                settings.attributes["connection"] = connection
                command.upgrade(settings, "head")
                connection.commit()
        except OperationalError as error:
            raise DiskError(f"the database {self.name} cannot be opened for writing ({error.orig}); check the "
                            "folder's owner and free space") from error
        except AlembicError as error:
            raise ConfigError(f"the database {self.name} was made by another version of reroot ({error}); "
                              "run the newer reroot, or restore the backup that belongs to this one") from error

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open a transaction that is committed at the end and rolled back by an exception."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that only reads: it waits for no writer."""
        with Session(self.engine.execution_options(**{READING: True}), expire_on_commit=False) as session:
            yield session

    def check(self) -> None:
        """Raise OperationalError when the database does not answer."""
        with self.reading() as session:
            session.execute(select(1))

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def metadata() -> list[MetaData]:
    """Return the metadata of every table in the database, for alembic and its test."""
    return [Base.metadata, throttle_tables.metadata]


def _arguments(url: str) -> dict[str, object]:
    if not url.startswith("sqlite"):
        return {}
    return {"timeout": BUSY_TIMEOUT_MS / 1000, "isolation_level": None}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prepare_postgresql(connection: Any, _record: object) -> None:
    # What was answered must be on disk, whatever the server's own default is.
    cursor = connection.cursor()
    cursor.execute("SET synchronous_commit TO on")
    cursor.close()
    connection.commit()


def _begin_immediately(connection: Any) -> None:
    # A transaction that reads and then writes cannot be upgraded behind another writer: SQLite would answer
    # "database is locked" at once instead of waiting. Taking the write lock first makes everybody queue.
    reading = connection.get_execution_options().get(READING, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
