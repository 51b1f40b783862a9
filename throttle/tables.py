"""Where tickets live in the database; `metadata` is for alembic. No I/O."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, MetaData, String, Table

metadata = MetaData()

counter = Table(
    "ticket_counter", metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: the row every change locks first
    Column("last_fence", Integer, nullable=False),
    Column("boot", String(64), nullable=False),  # which boot the monotonic times in ticket_leases are from
)

leases = Table(
    "ticket_leases", metadata,
    Column("fence", Integer, primary_key=True, autoincrement=False),
    Column("service", String(200), nullable=False, index=True),
    Column("provider", String(200), nullable=False),
    Column("holder", String(255), nullable=False),
    Column("lifetime_s", Integer, nullable=False),
    Column("expires_s", Float, nullable=False),  # monotonic seconds since that boot
)

rounds = Table(
    "ticket_rounds", metadata,
    Column("service", String(200), primary_key=True),
    Column("provider", String(200), primary_key=True),
    Column("credit", Integer, nullable=False),
)
