"""Tickets: versions, quarantine, offers, measured slots. Live tickets are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    boot = connection.execute(sa.text("SELECT boot FROM ticket_counter")).scalar() or ""
    with op.batch_alter_table("ticket_counter") as table:
        table.add_column(sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"))
        table.alter_column("last_fence", type_=sa.BigInteger(), existing_nullable=False)
        table.drop_column("boot")
    with op.batch_alter_table("ticket_counter") as table:
        table.alter_column("version", server_default=None)
    op.drop_index("ix_ticket_leases_service", "ticket_leases")
    with op.batch_alter_table("ticket_leases") as table:
        table.alter_column("fence", type_=sa.BigInteger(), existing_nullable=False)
        table.alter_column("expires_s", type_=sa.Double(), existing_nullable=False)
        table.add_column(sa.Column("clock", sa.String(64), nullable=False, server_default=""))
        table.add_column(sa.Column("since_s", sa.Double(), nullable=True))
        table.add_column(sa.Column("address", sa.String(64), nullable=False, server_default=""))
        table.add_column(sa.Column("bandwidth", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("quarantined", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("ticket_leases") as table:
        for column in ("clock", "address", "bandwidth", "quarantined"):
            table.alter_column(column, server_default=None)
    connection.execute(sa.text("UPDATE ticket_leases SET clock = :boot"), {"boot": boot})
    op.drop_table("ticket_rounds")
    op.create_table(
        "ticket_offers",
        sa.Column("service", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(200), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("url", sa.String(400), nullable=False),
        sa.Column("lifetime_s", sa.Integer(), nullable=False),
        sa.Column("expires_s", sa.Double(), nullable=False),
        sa.Column("clock", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("service", "provider")
    )
    op.create_table(
        "ticket_tuned",
        sa.Column("service", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(200), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("changed_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("service", "provider")
    )
    op.create_table(
        "ticket_changes",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("told", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version")
    )


def downgrade() -> None:
    for name in ("ticket_changes", "ticket_tuned", "ticket_offers"):
        op.drop_table(name)
    with op.batch_alter_table("ticket_leases") as table:
        for column in ("quarantined", "bandwidth", "address", "since_s", "clock"):
            table.drop_column(column)
        table.alter_column("expires_s", type_=sa.Float(), existing_nullable=False)
        table.alter_column("fence", type_=sa.Integer(), existing_nullable=False)
    op.create_index("ix_ticket_leases_service", "ticket_leases", ["service"])
    with op.batch_alter_table("ticket_counter") as table:
        table.add_column(sa.Column("boot", sa.String(64), nullable=False, server_default=""))
        table.alter_column("last_fence", type_=sa.Integer(), existing_nullable=False)
        table.drop_column("version")
    op.create_table(
        "ticket_rounds",
        sa.Column("service", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(200), nullable=False),
        sa.Column("credit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("service", "provider")
    )
