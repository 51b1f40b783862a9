"""Where tickets live in the database; `metadata` is for alembic. No I/O."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, MetaData, String, Table, Text

metadata = MetaData()

counter = Table(
    "ticket_counter", metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: the row that every change moves first
    Column("version", BigInteger, nullable=False),
    Column("last_fence", BigInteger, nullable=False),
)

leases = Table(
    "ticket_leases", metadata,
    Column("fence", BigInteger, primary_key=True, autoincrement=False),
    Column("service", String(200), nullable=False),
    Column("provider", String(200), nullable=False),
    Column("holder", String(255), nullable=False),
    Column("lifetime_s", Integer, nullable=False),
    Column("expires_s", Double, nullable=False),  # monotonic seconds since the boot that `clock` names
    Column("clock", String(64), nullable=False),
    Column("since_s", Double, nullable=True),  # wall seconds, for people
    Column("address", String(64), nullable=False),
    Column("bandwidth", BigInteger, nullable=False),  # bytes per second, 0 for any
    Column("quarantined", Boolean, nullable=False),
)

offers = Table(
    "ticket_offers", metadata,
    Column("service", String(200), primary_key=True),
    Column("provider", String(200), primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("url", String(400), nullable=False),
    Column("lifetime_s", Integer, nullable=False),
    Column("expires_s", Double, nullable=False),
    Column("clock", String(64), nullable=False),
)

tuned = Table(
    "ticket_tuned", metadata,
    Column("service", String(200), primary_key=True),
    Column("provider", String(200), primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("why", Text, nullable=False),
    Column("changed_s", Double, nullable=False),  # wall seconds
)

changes = Table(
    "ticket_changes", metadata,  # what each version changed, so that another process need not read everything anew
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("told", Text, nullable=False),  # JSON: [[kind, key …, row or null] …]
)
