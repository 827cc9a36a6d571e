"""Brings a database's tables up to date, once, whoever begins first. Blocks."""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sql

_LOCK = 0x61696D6578
"""Number of PostgreSQL's advisory lock for whoever migrates."""
_ALONE = threading.Lock()
"""Alembic works on one database of a process at a time."""


def migrate(connection: sql.Connection) -> None:
    """Runs what is missing in the connection's transaction. Who comes at the same time waits and finds it done.

    SQLite's transaction must have begun with BEGIN IMMEDIATE, which holds others off.
    """
    from alembic import command  # imported here: a quarter of a second, and only needed once
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    with _ALONE:
        command.upgrade(config, "head")
