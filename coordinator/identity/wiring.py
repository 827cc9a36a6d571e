"""The identity parts of one coordinator, wired together."""

from __future__ import annotations

import functools
import time
from collections.abc import Coroutine
from typing import Any

import grpc.aio
import structlog

from aimesh.identity.v1 import identity_pb2_grpc
from coordinator.election import Election
from coordinator.etcd import Etcd
from coordinator.identity.api_keys import ApiKeys
from coordinator.identity.audit_api import AuditLog
from coordinator.identity.certificates import EnrollmentService, Issuer, RenewalService
from coordinator.identity.holders import check_key
from coordinator.identity.join_tokens import JoinTokens
from coordinator.identity.mover import AuditMover
from coordinator.identity.outbox import Outbox
from coordinator.identity.revocations import Revocations, check_certificate
from coordinator.identity.service import IdentityService
from coordinator.identity.signing import signer
from coordinator.identity.store import AuditStore
from coordinator.mirror import Mirror
from coordinator.settings import CoordinatorSettings
from coordinator.state import State
from meshkit.auth import AuthInterceptor, KeyHolder, Principal, identify
from meshkit.errors import AimeshError, InvalidInputError, UnauthenticatedError, UnavailableError
from meshkit.server import MeshServer
from meshkit.tls import check_binding, enrollment_credentials

log = structlog.get_logger()

SERVICES = ("aimesh.identity.v1.IdentityService", "aimesh.identity.v1.RenewalService")
"""On the main port."""
ENROLLMENT = "aimesh.identity.v1.EnrollmentService"
"""On the port for machines without a certificate."""


class Identities:
    """Who may do what at this coordinator. `interceptor` guards its main server; `outbox` is for all that writes."""

    def __init__(self, settings: CoordinatorSettings, etcd: Etcd, mirror: Mirror, election: Election) -> None:
        """Raises PreconditionError or InvalidInputError when the settings' files are not what they should be."""
        check_binding(settings.host, settings.tls, insecure=settings.insecure, table="coordinator")
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._settings = settings
        self._mirror = mirror
        self._signer = signer(settings)
        self.outbox = Outbox(etcd, settings.id, settings.audit.max_backlog)
        self.interceptor = AuthInterceptor(self._identify)
        url = settings.audit.url or f"sqlite:///{settings.data_dir / 'audit.sqlite'}"
        self._mover = AuditMover(etcd, mirror, election, AuditStore(url), settings.id)
        issuer = Issuer(settings)
        tokens = JoinTokens(etcd, mirror, self._signer, self.outbox, enrolls=settings.enroll_port > 0)
        revocations = Revocations(etcd, mirror, self.outbox)
        self._service = IdentityService(
            ApiKeys(etcd, mirror, self._signer, self.outbox), tokens, revocations, AuditLog(mirror, self._mover)
        )
        self._renewal = RenewalService(etcd, self.outbox, issuer, revocations)
        self._enrollment = EnrollmentService(mirror, tokens, issuer)
        self._enrollment_server = self._make_enrollment_server()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the services of the main port."""
        identity_pb2_grpc.add_IdentityServiceServicer_to_server(self._service, server)
        identity_pb2_grpc.add_RenewalServiceServicer_to_server(self._renewal, server)

    def loops(self) -> dict[str, Coroutine[None, None, None]]:
        """Everything that runs for as long as the process, by name."""
        return {"audit": self._mover.run(), "revocations": self._end_revoked()}

    async def start(self) -> None:
        """Opens the port for machines without a certificate, when there is one. Raises ExhaustedError."""
        if self._enrollment_server is not None:
            await self._enrollment_server.start()
            log.info("enrollment.serving", port=self._enrollment_server.port)

    async def stop(self, grace_s: float) -> None:
        """Closes it again, and the audit store."""
        if self._enrollment_server is not None:
            await self._enrollment_server.stop(grace_s)
        self._mover.store.close()

    def _identify(self, context: Any) -> Principal:
        caller = identify(context, tls=self._settings.tls.on, check_key=self._check_key)
        check_certificate(self._mirror.state, caller)
        return caller

    def _check_key(self, text: str) -> KeyHolder:
        if not self._mirror.state.revision:
            raise UnavailableError("this coordinator does not know the API keys yet: etcd has not been read")
        return check_key(self._mirror.state, self._signer, text, time.time())

    async def _end_revoked(self) -> None:
        """Ends calls as what they show is revoked; those of keys that end by themselves have a timeout."""
        seen: tuple[object, object] | None = None
        async for state in self._mirror.changes():
            decisive = state.api_keys, state.revoked  # new objects when they change, and only then
            if seen is None or any(old is not new for old, new in zip(seen, decisive, strict=True)):
                self.interceptor.end_calls(functools.partial(why_ended, state))
            seen = decisive

    def _make_enrollment_server(self) -> MeshServer | None:
        settings = self._settings
        if not settings.enroll_port:
            return None
        if not settings.tls.on or settings.auth.ca_key is None:
            raise InvalidInputError(
                f"coordinator.enroll_port = {settings.enroll_port} needs [coordinator.tls] and coordinator.auth.ca_key",
                hint="set them (see: aimesh ca init), or set enroll_port to 0",
            )
        server = MeshServer(
            f"{settings.host}:{settings.enroll_port}",
            (ENROLLMENT,),
            credentials=enrollment_credentials(settings.tls),
            interceptors=[AuthInterceptor(_nobody)],
        )
        identity_pb2_grpc.add_EnrollmentServiceServicer_to_server(self._enrollment, server.grpc)
        return server


def why_ended(state: State, caller: Principal) -> AimeshError | None:
    """Why a call that was admitted may not go on; None when it may."""
    if caller.key_id and caller.key_id not in state.api_keys:
        return UnauthenticatedError(f"the API key of {caller.actor} is no longer valid")
    try:
        check_certificate(state, caller)
    except UnauthenticatedError as error:
        return error
    return None


def _nobody(context: Any) -> Principal:
    """Whoever comes to the enrolment port: what it may do, its token says."""
    return Principal("unknown", frozenset(), str(context.peer()))
