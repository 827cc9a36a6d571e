"""An SQL database of a coordinator's: SQLite on this machine, or a PostgreSQL that all coordinators share.

What is here blocks: call it in threads.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from meshkit.errors import InvalidInputError
from meshkit.files import SECRET

TIMEOUT_S = 5
"""How long the database may take to accept a connection, and to run one statement."""


class Database:
    """Where it is and how it is reached; nothing is connected before it is used."""

    def __init__(self, url: str, setting: str, **engine: Any) -> None:
        """`setting` is the URL's key in the settings, `engine` what SQLAlchemy's engine is made with besides.

        Raises InvalidInputError when the URL is none that is understood.
        """
        try:
            parsed = sql.make_url(url)
            self.sqlite = parsed.get_backend_name() == "sqlite"
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.name = parsed.render_as_string(hide_password=True)
            self.engine = sql.create_engine(parsed, connect_args=self._limits(), **engine)
        except (ArgumentError, ImportError) as error:
            raise InvalidInputError(
                f"{setting} is not understood: {error}",
                hint="use sqlite:////path/to/file or postgresql://user:password@host/database",
            ) from None
        self.file = parsed.database if self.sqlite else None

    def keep_to_ourselves(self) -> None:
        """Makes SQLite's file so that only its owner reads it; SQLite gives its other files the same mode."""
        if self.file and self.file != ":memory:":
            with suppress(OSError):  # SQLite says it better
                os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, SECRET))

    def _limits(self) -> dict[str, Any]:
        if self.sqlite:
            return {"timeout": TIMEOUT_S}
        return {"connect_timeout": TIMEOUT_S, "options": f"-c statement_timeout={TIMEOUT_S * 1000}"}


def first_line(error: SQLAlchemyError) -> str:
    """What the database said, in one line."""
    return str(error.__cause__ or error).strip().partition("\n")[0]
