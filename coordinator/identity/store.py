"""The audit log in SQL: events are only ever appended, each linked to the one before.

Methods block: call them in threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from aimesh.identity.v1 import identity_pb2
from coordinator.database import Database, first_line
from coordinator.identity.chain import FIELDS, Head, check_holds, link, verify
from meshkit.errors import UnavailableError

_LOCK = 0x61696D657368
"""Number of PostgreSQL's advisory lock for whoever appends."""
_CHUNK = 1000

_events = sql.Table(
    "aimesh_audit_events",
    sql.MetaData(),
    sql.Column("sequence", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("id", sql.Text, unique=True, nullable=False),
    sql.Column("at", sql.Text, nullable=False),
    *(sql.Column(name, sql.Text, nullable=False) for name in FIELDS[1:]),
    sql.Column("hash", sql.Text, nullable=False),
)

_REFUSAL = "the audit log is only ever appended to"
_SQLITE_GUARDS = [
    f"CREATE TRIGGER IF NOT EXISTS aimesh_audit_no_{verb} BEFORE {verb} ON {_events.name} "
    f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    for verb in ("UPDATE", "DELETE")
]
_POSTGRES_GUARDS = [
    "CREATE OR REPLACE FUNCTION aimesh_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$",
    f"CREATE OR REPLACE TRIGGER aimesh_audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {_events.name} "
    "EXECUTE FUNCTION aimesh_audit_refuse()",
]


class AuditStore:
    """One database. Its table is made on first use."""

    def __init__(self, url: str) -> None:
        """Raises InvalidInputError when the URL is none that is understood."""
        self._database = Database(url, "coordinator.audit.url", pool_pre_ping=True)
        self.name = self._database.name
        self._ready = False

    @property
    def shared(self) -> bool:
        """Whether all coordinators write to one log: SQLite is a file on one machine."""
        return not self._database.sqlite

    def append(self, events: Sequence[identity_pb2.AuditEvent]) -> Head:
        """Adds the events that are not there yet, in order. The log's head. Raises UnavailableError."""
        with self._connected() as connection:
            if not self._database.sqlite:
                connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))
            head, known = _head(connection), _known(connection, [event.id for event in events])
            rows = []
            for event in events:
                if event.id not in known:
                    linked = link(event, head)
                    rows.append(_row(linked))
                    head = Head(linked.sequence, linked.hash)
            if rows:
                connection.execute(sql.insert(_events), rows)
        return head

    def read(self, after: int, most: int, *, target_prefix: str = "", actor: str = "") -> list[identity_pb2.AuditEvent]:
        """At most so many events after a sequence number, oldest first. Raises UnavailableError."""
        query = sql.select(_events).where(_events.c.sequence > after).order_by(_events.c.sequence).limit(most)
        if target_prefix:
            query = query.where(_events.c.target.startswith(target_prefix, autoescape=True))
        if actor:
            query = query.where(_events.c.actor == actor)
        with self._connected() as connection:
            return [_event(row) for row in connection.execute(query)]

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the events that are in the log. Raises UnavailableError."""
        with self._connected() as connection:
            return _known(connection, ids)

    def holds(self, head: Head) -> bool:
        """Whether this was once the log's newest event and is in it still. Raises UnavailableError."""
        if not head.sequence:
            return True
        found = sql.select(_events.c.sequence).where(_events.c.sequence == head.sequence, _events.c.hash == head.hash)
        with self._connected() as connection:
            return connection.scalar(found) is not None

    def verify(self, seen: Head) -> Head:
        """Reads all and checks the chain, and that `seen`, once its head, is still in it. The head.

        Raises DataLossError naming the first event that does not fit, UnavailableError.
        """
        head, passed = Head(), seen.sequence == 0
        while chunk := self.read(head.sequence, _CHUNK):
            head = verify(chunk, head)
            passed = passed or any((event.sequence, event.hash) == (seen.sequence, seen.hash) for event in chunk)
        check_holds(seen, head, found=passed)
        return head

    def close(self) -> None:
        """Ends all connections."""
        self._database.engine.dispose()

    @contextmanager
    def _connected(self) -> Iterator[sql.Connection]:
        """One transaction; what the database says of it as UnavailableError."""
        try:
            if not self._ready:
                self._database.keep_to_ourselves()
            with self._database.engine.begin() as connection:
                if not self._ready:
                    self._create(connection)
                yield connection
                self._ready = True
        except SQLAlchemyError as error:
            raise UnavailableError(
                f"the audit store {self.name} does not take it: {first_line(error)}",
                hint="check coordinator.audit.url and its database",
                reason="AUDIT_STORE",
            ) from None

    def _create(self, connection: sql.Connection) -> None:
        if not self._database.sqlite:
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))
        if sql.inspect(connection).has_table(_events.name):
            return  # this user may be one who can only append
        _events.metadata.create_all(connection)
        for statement in _SQLITE_GUARDS if self._database.sqlite else _POSTGRES_GUARDS:
            connection.exec_driver_sql(statement)


def _head(connection: sql.Connection) -> Head:
    newest = sql.select(_events.c.sequence, _events.c.hash).order_by(_events.c.sequence.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return Head(row.sequence, row.hash) if row else Head()


def _known(connection: sql.Connection, ids: Sequence[str]) -> set[str]:
    return set(connection.scalars(sql.select(_events.c.id).where(_events.c.id.in_(ids))))


def _row(event: identity_pb2.AuditEvent) -> dict[str, Any]:
    fields = {name: getattr(event, name) for name in FIELDS}
    return {**fields, "sequence": event.sequence, "at": event.at.ToJsonString(), "hash": event.hash}


def _event(row: Any) -> identity_pb2.AuditEvent:
    fields = {name: getattr(row, name) for name in FIELDS}
    event = identity_pb2.AuditEvent(**fields, sequence=row.sequence, hash=row.hash)
    event.at.FromJsonString(row.at)
    return event
