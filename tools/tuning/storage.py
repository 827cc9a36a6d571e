"""The database of studies: opened by a URL, and what it says put into the catalogue's words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sql
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.storages import RDBStorage

from meshkit.errors import AimeshError, InvalidInputError, SupersededError, UnavailableError

_TIMEOUT_S = 20
_MAKE_TRIES = 5


def open_storage(url: str) -> tuple[RDBStorage, str]:
    """The database at a URL, and its name without a password. Raises InvalidInputError, UnavailableError."""
    try:
        parsed = sql.make_url(url)
    except sql.exc.ArgumentError:
        raise _bad_url(url) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise _bad_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    where = parsed.render_as_string(hide_password=True)
    sqlite = parsed.get_backend_name() == "sqlite"
    limits: dict[str, Any] = {"timeout": _TIMEOUT_S} if sqlite else {"connect_timeout": _TIMEOUT_S}
    engine = {"connect_args": limits, **({} if sqlite else {"pool_pre_ping": True})}
    with translated(where):
        return _made(parsed.render_as_string(hide_password=False), engine), where


def names(url: str) -> list[str]:
    """The studies of a database. Raises InvalidInputError, UnavailableError."""
    storage, where = open_storage(url)
    with translated(where):
        found = sorted(each.study_name for each in storage.get_all_studies())
    storage.engine.dispose()
    return found


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raises UnavailableError for what the database refuses, SupersededError for a trial that another has ended."""
    try:
        yield
    except UpdateFinishedTrialError:
        raise SupersededError("another command has ended this trial") from None
    except (sql.exc.SQLAlchemyError, OptunaError) as error:
        said = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UnavailableError(
            f"the study's database {where} does not do its work: {said}",
            hint="once it does, the same command goes on where it was",
            reason="TUNE_STORAGE",
        ) from None


def _made(url: str, engine: dict[str, Any]) -> RDBStorage:
    """Tried again when another command makes the same tables at this moment."""
    for tried in range(1, _MAKE_TRIES + 1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return RDBStorage(url, engine_kwargs=engine)
        except (sql.exc.OperationalError, sql.exc.IntegrityError, sql.exc.ProgrammingError) as error:
            if tried == _MAKE_TRIES or ("exists" not in str(error) and "UNIQUE" not in str(error).upper()):
                raise
    raise AssertionError("the last try returns or raises")


def _bad_url(url: str) -> AimeshError:
    return InvalidInputError(
        f"--storage {url.rpartition('@')[2]!r} is no database",
        hint="sqlite:////path/to/file or postgresql://user:password@host/database",
    )
