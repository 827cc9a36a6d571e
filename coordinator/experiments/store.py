"""Experiments in SQL: every change compares the revision that was read, and carries its audit event.

Methods block: call them in threads. What the database says is an UnavailableError (EXPERIMENT_STORE).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from aimesh.experiment.v1 import experiment_pb2
from aimesh.identity.v1 import identity_pb2
from coordinator import keys
from coordinator.database import Database, first_line
from coordinator.experiments.lifecycle import word
from coordinator.experiments.migrate import migrate
from coordinator.experiments.schema import datasets, experiments, outbox, results
from meshkit.errors import ConflictError, NotFoundError, SupersededError, UnavailableError

_LOCK = 0x61696D6579
"""Number of PostgreSQL's advisory lock for whoever creates an experiment."""


@dataclass(frozen=True)
class Held:
    """An experiment and the revision that a change of it must compare."""

    experiment: experiment_pb2.Experiment
    revision: int


@dataclass(frozen=True)
class Result:
    """What an execution came to."""

    report: experiment_pb2.Report
    windows: str
    """What the gates judge, as JSON."""


class ExperimentStore:
    """One database. Its tables are made and migrated on first use.

    A connection lives as long as its transaction: there are few, and none is left behind when a coordinator goes.
    """

    def __init__(self, url: str, *, one_machine: bool = False) -> None:
        """With `one_machine` all coordinators open the same SQLite file.

        Raises InvalidInputError when the URL is none that is understood.
        """
        self._one_machine = one_machine
        self._database = Database(url, "coordinator.experiments.url", poolclass=sql.NullPool)
        self.name = self._database.name
        self._ready = False
        if self._database.sqlite:
            sql.event.listen(self._database.engine, "connect", _begin_nothing)
            sql.event.listen(self._database.engine, "begin", _begin_immediate)

    @property
    def shared(self) -> bool:
        """Whether all coordinators have the same experiments: SQLite is a file on one machine."""
        return self._one_machine or not self._database.sqlite

    @property
    def used(self) -> bool:
        """Whether there may be something in it: a file that is not there holds nothing."""
        return not self._database.file or self._ready or Path(self._database.file).exists()

    def create(self, experiment: experiment_pb2.Experiment, dataset: bytes, event: identity_pb2.AuditEvent) -> None:
        """Keeps a new one and its dataset. Raises ConflictError when the name is taken."""
        try:
            with self._connected() as connection:
                self._add(connection, experiment, dataset, event)
        except _TakenError:
            raise ConflictError(
                f"there is an experiment {experiment.spec.name!r} already",
                hint="names are never used twice: take another",
            ) from None

    def get(self, name: str) -> Held:
        """One. Raises NotFoundError."""
        with self._connected() as connection:
            row = connection.execute(sql.select(experiments).where(experiments.c.name == name)).one_or_none()
        if row is None:
            raise NotFoundError(
                f"there is no experiment {name!r}", hint="see: aimesh experiments list", reason="EXPERIMENT_NOT_FOUND"
            )
        return _held(row)

    def list(self, before: int, most: int, model: str = "") -> Sequence[tuple[int, experiment_pb2.Experiment]]:
        """At most so many that were created before a number (0 for all), the newest first, each with its number."""
        query = sql.select(experiments).order_by(experiments.c.number.desc()).limit(most)
        if before:
            query = query.where(experiments.c.number < before)
        if model:
            query = query.where(experiments.c.model == model)
        with self._connected() as connection:
            return [(row.number, _held(row).experiment) for row in connection.execute(query)]

    def in_states(self, states: Sequence[experiment_pb2.ExperimentState.ValueType]) -> Sequence[Held]:
        """All in one of the states, the oldest first."""
        query = sql.select(experiments).where(experiments.c.state.in_([word(state) for state in states]))
        with self._connected() as connection:
            return [_held(row) for row in connection.execute(query.order_by(experiments.c.number))]

    def change(
        self,
        held: Held,
        now: experiment_pb2.Experiment,
        event: identity_pb2.AuditEvent | None,
        result: Result | None = None,
    ) -> Held:
        """Writes what has become of one, and its result when it has one now. Raises SupersededError when it changed."""
        name = now.spec.name
        with self._connected() as connection:
            changed = connection.execute(
                sql.update(experiments)
                .where(experiments.c.name == name, experiments.c.revision == held.revision)
                .values(revision=held.revision + 1, **_columns(now))
            )
            if changed.rowcount != 1:
                raise SupersededError(f"experiment {name!r} changed at this moment", hint="try again")
            if result is not None:
                report = keys.encode(result.report).decode()
                row = {"experiment": name, "report": report, "windows": result.windows}
                connection.execute(sql.insert(results), row)
            if event is not None:
                _add_event(connection, event)
        return Held(now, held.revision + 1)

    def result(self, name: str) -> Result | None:
        """What its execution came to; None before that."""
        with self._connected() as connection:
            row = connection.execute(sql.select(results).where(results.c.experiment == name)).one_or_none()
        if row is None:
            return None
        return Result(keys.parse(row.report.encode(), experiment_pb2.Report()), row.windows)

    def dataset(self, digest: str) -> bytes:
        """Lines of JSON. Raises NotFoundError."""
        with self._connected() as connection:
            found = connection.scalar(sql.select(datasets.c.content).where(datasets.c.digest == digest))
        if found is None:
            raise NotFoundError(f"dataset {digest} is not kept", reason="BLOB_MISSING")
        return zlib.decompress(found)

    def events(self, most: int) -> Sequence[identity_pb2.AuditEvent]:
        """At most so many audit events that were not taken away, the oldest first."""
        query = sql.select(outbox.c.content).order_by(outbox.c.id).limit(most)
        with self._connected() as connection:
            return [keys.parse(text.encode(), identity_pb2.AuditEvent()) for text in connection.scalars(query)]

    def forget_events(self, ids: Sequence[str]) -> None:
        """Of those that are where they belong."""
        with self._connected() as connection:
            connection.execute(sql.delete(outbox).where(outbox.c.id.in_(ids)))

    def close(self) -> None:
        """Ends all connections."""
        self._database.engine.dispose()

    def _add(
        self,
        connection: sql.Connection,
        experiment: experiment_pb2.Experiment,
        dataset: bytes,
        event: identity_pb2.AuditEvent,
    ) -> None:
        if not self._database.sqlite:  # one at a time: each takes the next number, and two may bring the same dataset
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))
        newest = connection.scalar(sql.select(sql.func.max(experiments.c.number))) or 0
        row = {"name": experiment.spec.name, "number": newest + 1, "revision": 1, **_columns(experiment)}
        connection.execute(sql.insert(experiments), row)
        _add_dataset(connection, experiment.spec.evaluation.dataset, dataset)
        _add_event(connection, event)

    @contextmanager
    def _connected(self) -> Iterator[sql.Connection]:
        """One transaction."""
        try:
            self._prepare()
            with self._database.engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise _TakenError from None
        except SQLAlchemyError as error:
            raise UnavailableError(
                f"the experiments' database {self.name} does not take it: {first_line(error)}",
                hint="check coordinator.experiments.url and its database; nothing else needs it",
                reason="EXPERIMENT_STORE",
            ) from None

    def _prepare(self) -> None:
        if not self._ready:
            self._database.keep_to_ourselves()
            with self._database.engine.begin() as connection:
                migrate(connection)
            self._ready = True


class _TakenError(SupersededError):
    """A row of this key is there already."""

    def __init__(self) -> None:
        super().__init__("somebody else wrote this at the same moment", hint="try again")


def _begin_nothing(connection: Any, _record: object) -> None:
    """Python's sqlite3 would begin by itself, and not before tables are made."""
    connection.isolation_level = None


def _begin_immediate(connection: sql.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _columns(experiment: experiment_pb2.Experiment) -> dict[str, Any]:
    return {
        "model": experiment.spec.model,
        "hash": experiment.hash,
        "state": word(experiment.state),
        "content": keys.encode(experiment).decode(),
    }


def _held(row: Any) -> Held:
    return Held(keys.parse(row.content.encode(), experiment_pb2.Experiment()), row.revision)


def _add_dataset(connection: sql.Connection, digest: str, content: bytes) -> None:
    if connection.scalar(sql.select(datasets.c.digest).where(datasets.c.digest == digest)) is None:
        connection.execute(sql.insert(datasets), {"digest": digest, "content": zlib.compress(content)})


def _add_event(connection: sql.Connection, event: identity_pb2.AuditEvent) -> None:
    connection.execute(sql.insert(outbox), {"id": event.id, "content": keys.encode(event).decode()})
