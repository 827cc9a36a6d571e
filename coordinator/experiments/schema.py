"""The tables of experiments, as the newest migration leaves them."""

from __future__ import annotations

import sqlalchemy as sql

METADATA = sql.MetaData()
VERSION_TABLE = "aimesh_experiments_schema"
"""Where Alembic keeps which migration was the last."""

experiments = sql.Table(
    "aimesh_experiments",
    METADATA,
    sql.Column("name", sql.Text, primary_key=True),
    sql.Column("number", sql.BigInteger, nullable=False, unique=True),  # the order in which they were created
    sql.Column("model", sql.Text, nullable=False, index=True),
    sql.Column("hash", sql.Text, nullable=False, index=True),
    sql.Column("state", sql.Text, nullable=False, index=True),
    sql.Column("revision", sql.BigInteger, nullable=False),  # rises with each change, which compares it
    sql.Column("content", sql.Text, nullable=False),  # aimesh.experiment.v1.Experiment as JSON
)
datasets = sql.Table(
    "aimesh_experiment_datasets",
    METADATA,
    sql.Column("digest", sql.Text, primary_key=True),
    sql.Column("content", sql.LargeBinary, nullable=False),  # lines of JSON, compressed with zlib
)
results = sql.Table(
    "aimesh_experiment_results",
    METADATA,
    sql.Column("experiment", sql.Text, sql.ForeignKey("aimesh_experiments.name"), primary_key=True),
    sql.Column("report", sql.Text, nullable=False),  # aimesh.experiment.v1.Report as JSON
    sql.Column("windows", sql.Text, nullable=False),  # what the gates judge, as JSON
)
outbox = sql.Table(
    "aimesh_experiment_audit",
    METADATA,
    sql.Column("id", sql.Text, primary_key=True),
    sql.Column("content", sql.Text, nullable=False),  # aimesh.identity.v1.AuditEvent as JSON
)
