"""Reading the audit log: what the database holds, and what is still on its way there."""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass

from aimesh.identity.v1 import identity_pb2
from coordinator.identity.mover import AuditMover
from coordinator.mirror import Mirror
from coordinator.paging import DEFAULT_SIZE, MOST
from meshkit.errors import InvalidInputError

_LAST = 2**63 - 1
"""The highest number that the database can give an event."""


@dataclass
class AuditLog:
    """The log as users see it."""

    mirror: Mirror
    mover: AuditMover

    async def list(self, request: identity_pb2.ListAuditEventsRequest) -> identity_pb2.ListAuditEventsResponse:
        """A page of events, oldest first; on the last page also those that wait, at most MOST of them."""
        most = min(request.page_size or DEFAULT_SIZE, MOST)
        waiting = await self.mover.waiting(MOST)  # read first: what is moved meanwhile is found in the log
        found = await asyncio.to_thread(
            self.mover.store.read,
            _after(request.page_token),
            most + 1,
            target_prefix=request.target_prefix,
            actor=request.actor,
        )
        answer = identity_pb2.ListAuditEventsResponse(events=found[:most], warning=self.warning())
        if len(found) > most:
            answer.next_page_token = base64.urlsafe_b64encode(str(found[most - 1].sequence).encode()).decode()
            return answer
        logged = await asyncio.to_thread(self.mover.store.known, [event.id for event in waiting])
        answer.events.extend(event for event in waiting if event.id not in logged and _wanted(event, request))
        return answer

    async def verify(self) -> identity_pb2.VerifyAuditResponse:
        """Checks the chain, and that the newest event that was ever seen in the log is still there."""
        head = await asyncio.to_thread(self.mover.store.verify, await self.mover.seen())
        return identity_pb2.VerifyAuditResponse(events=head.sequence, last_hash=head.hash, warning=self.warning())

    def warning(self) -> str:
        """Why the log may not be whole; empty when it is."""
        if self.mover.failing:
            return f"events wait in etcd: {self.mover.failing}"
        coordinators = len(self.mirror.state.coordinators)
        if coordinators > 1 and not self.mover.store.shared:
            return (
                f"each of the {coordinators} coordinators keeps the events of its own time as leader in a file of its "
                "own; set coordinator.audit.url to one PostgreSQL database on all of them"
            )
        return ""


def _after(token: str) -> int:
    try:
        after = int(base64.b64decode(token.encode(), altchars=b"-_", validate=True)) if token else 0
    except (binascii.Error, ValueError):
        after = -1
    if 0 <= after <= _LAST:
        return after
    raise InvalidInputError(f"page_token {token!r} is not valid", hint="pass next_page_token unchanged")


def _wanted(event: identity_pb2.AuditEvent, request: identity_pb2.ListAuditEventsRequest) -> bool:
    return event.target.startswith(request.target_prefix) and request.actor in ("", event.actor)
