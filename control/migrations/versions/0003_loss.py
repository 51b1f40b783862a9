"""Loss reports of hosts, and the answers to what they ask."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "losses",
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("asked_s", sa.Double(), nullable=True),
        sa.Column("received_s", sa.Double(), nullable=True),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.Column("failed", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("host", name="pk_losses")
    )
    op.create_table(
        "loss_answers",
        sa.Column("host", sa.String(253), nullable=False),
        sa.Column("finding", sa.String(16), nullable=False),
        sa.Column("baseline", sa.Text(), nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("host", "finding", name="pk_loss_answers")
    )


def downgrade() -> None:
    for name in ("loss_answers", "losses"):
        op.drop_table(name)
