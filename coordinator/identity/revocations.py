"""Certificates that coordinators take no longer: those that an identity had when it was revoked.

A revocation is a moment, and a certificate falls under it when it was issued by then. So nobody has to know what was
issued, also offline, and what is issued to the same identity afterwards is good.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from aimesh.identity.v1 import identity_pb2
from coordinator import keys
from coordinator.etcd import Etcd, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.paging import page
from coordinator.state import State
from meshkit.auth import Principal, current_principal
from meshkit.certificates import issued_at, parse_certificate
from meshkit.errors import InvalidInputError, PreconditionError, SupersededError, UnauthenticatedError
from meshkit.tls import ROLES, Identity


@dataclass
class Revocations:
    """Every write is one transaction: the revocation and its audit event."""

    etcd: Etcd
    mirror: Mirror
    outbox: Outbox
    now: Callable[[], float] = time.time
    """Seconds since the epoch."""

    async def revoke(self, request: identity_pb2.RevokeCertificatesRequest) -> identity_pb2.RevokeCertificatesResponse:
        """Ends what an identity has; see identity.proto."""
        identity = _identity(request)
        caller = current_principal()
        if identity == caller.identity and not request.force:
            raise PreconditionError(
                f"{identity.uri} is the certificate that this call is made with",
                hint="use another administrator's, or add --force: the next call with it is refused",
                reason="OWN_CERTIFICATE",
            )
        record = keys.revocation(identity.role, identity.id)
        _, (held,) = await self.etcd.get(record)
        before = keys.parse(held.value or b"{}", identity_pb2.Revocation()).revoked_at.seconds
        # Certificates tell when they were issued to the second, and one that another coordinator gives while this is
        # being written must fall under it: hence the second that has not ended yet, and the next.
        moment = max(before, int(self.now()) + 1)
        made = identity_pb2.Revocation(role=identity.role, id=identity.id, revoked_by=caller.actor)
        made.revoked_at.FromSeconds(moment)
        value = keys.encode(made)
        event = await self.outbox.event(record, held.value, value)
        revision = await self.etcd.txn([Unchanged(record, held.mod_revision)], [Put(record, value), event])
        if revision is None:
            raise SupersededError(f"{identity.uri} was revoked at the same moment", hint="see: aimesh ca revoked")
        await self.mirror.reached(revision)
        await asyncio.sleep(max(0.0, moment + 1 - self.now()))  # who has the answer may issue a new one
        return identity_pb2.RevokeCertificatesResponse(revocation=made)

    def list(self, request: identity_pb2.ListRevocationsRequest) -> identity_pb2.ListRevocationsResponse:
        """A page of revocations, by role and id."""
        found = [made for _, made in sorted(self.mirror.state.revoked.items())]
        items, token = page(found, request.page_size, request.page_token, lambda made: f"{made.role}/{made.id}")
        return identity_pb2.ListRevocationsResponse(revocations=items, next_page_token=token)

    async def unrevoked(self, caller: Principal) -> Unchanged:
        """What must hold when the caller is given a new certificate, by etcd's own word: the mirror may be behind.

        Raises UnauthenticatedError when the caller's was revoked.
        """
        assert caller.identity is not None
        record = keys.revocation(caller.identity.role, caller.identity.id)
        _, (held,) = await self.etcd.get(record)
        if held.value is not None:
            _check(caller, keys.parse(held.value, identity_pb2.Revocation()))
        return Unchanged(record, held.mod_revision)


def check_certificate(state: State, caller: Principal) -> None:
    """Raises UnauthenticatedError when the caller's certificate was revoked."""
    if caller.identity is None or not state.revoked:
        return
    made = state.revoked.get(f"{caller.identity.role}/{caller.identity.id}")
    if made is not None:
        _check(caller, made)


def _check(caller: Principal, made: identity_pb2.Revocation) -> None:
    assert caller.identity is not None
    issued = issued_at(parse_certificate(caller.certificate))
    if issued.timestamp() <= made.revoked_at.seconds:
        raise UnauthenticatedError(
            f"the certificate of {caller.identity.uri}, issued at {issued:%Y-%m-%dT%H:%M:%SZ}, was revoked: "
            f"none from before {made.revoked_at.ToJsonString()} is taken",
            hint=f"give it a new one: aimesh ca issue {caller.identity.role} {caller.identity.id}",
            reason="CERTIFICATE_REVOKED",
        )


def _identity(request: identity_pb2.RevokeCertificatesRequest) -> Identity:
    identity = Identity.parse(f"spiffe://aimesh/{request.role}/{request.id}")
    if identity is None:
        raise InvalidInputError(
            f"there can be no certificate for role {request.role!r} and id {request.id!r}",
            hint=f"role is one of {', '.join(ROLES)}; id is as `aimesh ca show` has it",
        )
    if identity.role == "etcd":
        raise InvalidInputError(
            "coordinators cannot revoke a certificate of etcd: etcd checks its own",
            hint="give etcd a new authority: docs/operations/rotate-certificates.md",
        )
    return identity
