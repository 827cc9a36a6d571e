"""Audit events are written in the same transaction as the change that they tell of: a change cannot happen unlogged.

They wait in etcd, as an outbox, until the leader has moved them to the log (see mover.py).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable

from aimesh.identity.v1 import identity_pb2
from coordinator import keys
from coordinator.etcd import Etcd, Put
from meshkit.auth import current_method, current_principal
from meshkit.errors import ExhaustedError

_WITH_HASHES = ("keys/", "tokens/")
"""Below these keys values hold a secret's hash in `hash`, which is nobody's business."""


class Outbox:
    """Makes the events of one coordinator."""

    def __init__(
        self, etcd: Etcd, coordinator_id: str, max_backlog: int, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """`now_ns` gives nanoseconds since the epoch."""
        self._etcd = etcd
        self._coordinator = coordinator_id
        self._most = max_backlog
        self._now_ns = now_ns

    async def event(self, key: str, before: bytes | None, after: bytes | None) -> Put:
        """The write to put into the transaction that changes `key`: who is calling, what it was and what it becomes.

        Raises ExhaustedError when too many events wait for their database, UnavailableError when etcd does not answer.
        """
        waiting = await self._etcd.count(keys.AUDIT)
        if waiting >= self._most:
            raise ExhaustedError(
                f"{waiting} audit events wait for the audit store, so nothing may be changed",
                hint="mend the database at coordinator.audit.url; the coordinators' logs say what is wrong with it",
                reason="AUDIT_BACKLOG",
            )
        event = self._event(key.removeprefix(keys.ROOT), before, after)
        return Put(keys.audit_event(event.id), keys.encode(event))

    def draft(self, target: str, before: bytes | None, after: bytes | None) -> identity_pb2.AuditEvent:
        """The event of a change that is kept elsewhere than in etcd: whoever writes it moves it there afterwards."""
        return self._event(target, before, after)

    def _event(self, target: str, before: bytes | None, after: bytes | None) -> identity_pb2.AuditEvent:
        principal, now = current_principal(), self._now_ns()
        event = identity_pb2.AuditEvent(
            id=f"{now:020d}-{self._coordinator}-{secrets.token_hex(4)}",
            actor=principal.actor,
            peer=principal.peer,
            action=current_method(),
            target=target,
            before=_shown(target, before),
            after=_shown(target, after),
            coordinator=self._coordinator,
        )
        event.at.FromNanoseconds(now)
        return event


def _shown(target: str, value: bytes | None) -> str:
    """A value as it may be shown; empty for none."""
    if value is None:
        return ""
    text = value.decode(errors="replace")
    if not target.startswith(_WITH_HASHES):
        return text
    fields = json.loads(text)
    fields.pop("hash", None)
    return json.dumps(fields, sort_keys=True)
