"""The first tables."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "aimesh_experiments",
        sql.Column("name", sql.Text, primary_key=True),
        sql.Column("number", sql.BigInteger, nullable=False, unique=True),
        sql.Column("model", sql.Text, nullable=False, index=True),
        sql.Column("hash", sql.Text, nullable=False, index=True),
        sql.Column("state", sql.Text, nullable=False, index=True),
        sql.Column("revision", sql.BigInteger, nullable=False),
        sql.Column("content", sql.Text, nullable=False),
    )
    op.create_table(
        "aimesh_experiment_datasets",
        sql.Column("digest", sql.Text, primary_key=True),
        sql.Column("content", sql.LargeBinary, nullable=False),
    )
    op.create_table(
        "aimesh_experiment_results",
        sql.Column("experiment", sql.Text, sql.ForeignKey("aimesh_experiments.name"), primary_key=True),
        sql.Column("report", sql.Text, nullable=False),
        sql.Column("windows", sql.Text, nullable=False),
    )


def downgrade() -> None:
    """Drops them, with all that is in them."""
    for table in ("aimesh_experiment_results", "aimesh_experiment_datasets", "aimesh_experiments"):
        op.drop_table(table)
