"""The audit log's chain: each event's hash covers the event and the hash before it. Pure.

Changing, removing or putting in an event makes every hash from there on wrong. Source: S. Haber and W. S. Stornetta,
"How to Time-Stamp a Digital Document", Journal of Cryptology 3 (1991), the linking scheme without its authority.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from aimesh.identity.v1 import identity_pb2
from meshkit.errors import DataLossError

FIELDS = ("id", "actor", "peer", "action", "target", "before", "after", "coordinator")
"""An event's plain fields, in the contract's words; its time and its place in the log are covered too."""
_HINT = "compare with a copy that was exported before (aimesh audit export), and ask who can write the database"


@dataclass(frozen=True)
class Head:
    """The newest event of a log."""

    sequence: int = 0
    hash: str = "0" * 64


def link(event: identity_pb2.AuditEvent, head: Head) -> identity_pb2.AuditEvent:
    """The event as it stands in the log after `head`."""
    linked = identity_pb2.AuditEvent()
    linked.CopyFrom(event)
    linked.sequence = head.sequence + 1
    linked.hash = _hash(linked, head.hash)
    return linked


def verify(events: Iterable[identity_pb2.AuditEvent], head: Head | None = None) -> Head:
    """Checks that events follow `head` (the log's beginning when None) and each other. The new head.

    Raises DataLossError naming the first event that does not fit.
    """
    head = head or Head()
    for event in events:
        if event.sequence != head.sequence + 1:
            raise _broken(event, f"it should be number {head.sequence + 1}: events are missing, or were put in")
        if event.hash != _hash(event, head.hash):
            raise _broken(event, "its hash does not fit: it, or an event before it, was changed")
        head = Head(event.sequence, event.hash)
    return head


def check_holds(seen: Head, head: Head, *, found: bool) -> None:
    """Raises DataLossError when a log that ends at `head` lost the event that once was its newest."""
    if not found:
        raise DataLossError(
            f"the audit log ends at event {head.sequence} or was written anew: event {seen.sequence}, which was its "
            "newest before, is no longer in it",
            hint=_HINT,
            reason="AUDIT_BROKEN",
        )


def _hash(event: identity_pb2.AuditEvent, previous: str) -> str:
    fields = {name: getattr(event, name) for name in FIELDS}
    fields |= {"sequence": event.sequence, "at": event.at.ToJsonString()}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(previous.encode() + canonical.encode()).hexdigest()


def _broken(event: identity_pb2.AuditEvent, why: str) -> DataLossError:
    return DataLossError(
        f"the audit log is broken at event {event.sequence} ({event.id}): {why}", hint=_HINT, reason="AUDIT_BROKEN"
    )
