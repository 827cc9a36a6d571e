"""Audit events wait beside the change that they tell of, in its transaction."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "aimesh_experiment_audit",
        sql.Column("id", sql.Text, primary_key=True),
        sql.Column("content", sql.Text, nullable=False),
    )


def downgrade() -> None:
    """Drops it, with the events that were not moved."""
    op.drop_table("aimesh_experiment_audit")
