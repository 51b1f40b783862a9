"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "enrol_tokens",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("expires_s", sa.Double(), nullable=False),
        sa.Column("claimed_by", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("digest", name="pk_enrol_tokens")
    )
    op.create_index("ix_enrol_tokens_host", "enrol_tokens", ["host"])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("order", sa.String(36), nullable=True),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events")
    )
    op.create_index("ix_events_host", "events", ["host"])
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("public_key", sa.String(64), nullable=True),
        sa.Column("enrolled_s", sa.Double(), nullable=True),
        sa.Column("seen_s", sa.Double(), nullable=True),
        sa.Column("healthy_s", sa.Double(), nullable=True),
        sa.Column("level", sa.String(64), nullable=True),
        sa.Column("release", sa.String(400), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_hosts")
    )
    op.create_table(
        "nonces",
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("expires_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("host", "nonce", name="pk_nonces")
    )
    op.create_index("ix_nonces_expires_s", "nonces", ["expires_s"])
    op.create_table(
        "orders",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("release", sa.String(400), nullable=True),
        sa.Column("digest", sa.String(80), nullable=True),
        sa.Column("recovery", sa.String(400), nullable=True),
        sa.Column("level", sa.String(64), nullable=True),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("claimed_by", sa.String(64), nullable=True),
        sa.Column("issued_s", sa.Double(), nullable=False),
        sa.Column("expires_s", sa.Double(), nullable=False),
        sa.Column("deadline_s", sa.Double(), nullable=False),
        sa.Column("phase", sa.String(32), nullable=True),
        sa.Column("recovering", sa.Boolean(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("changed_s", sa.Double(), nullable=False),
        sa.Column("rollout", sa.String(36), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_orders")
    )
    op.create_index("ix_orders_host_issued", "orders", ["host", "issued_s"])
    op.create_index("ix_orders_rollout", "orders", ["rollout"])
    op.create_index("ix_orders_state", "orders", ["state"])
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("changed_s", sa.Double(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("knob_s", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_rollouts")
    )
    op.create_index("ix_rollouts_status", "rollouts", ["status"])
    op.create_table(
        "ticket_counter",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_fence", sa.Integer(), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id")
    )
    op.create_table(
        "ticket_leases",
        sa.Column("fence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("service", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(200), nullable=False),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("lifetime_s", sa.Integer(), nullable=False),
        sa.Column("expires_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("fence")
    )
    op.create_index("ix_ticket_leases_service", "ticket_leases", ["service"])
    op.create_table(
        "ticket_rounds",
        sa.Column("service", sa.String(200), nullable=False),
        sa.Column("provider", sa.String(200), nullable=False),
        sa.Column("credit", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("service", "provider")
    )


def downgrade() -> None:
    for table in ("ticket_rounds", "ticket_leases", "ticket_counter", "rollouts", "orders", "nonces", "hosts", "events",
                  "enrol_tokens"):
        op.drop_table(table)
