"""IdentityService: keys, tokens, and who changed what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from coordinator.identity.api_keys import ApiKeys
from coordinator.identity.audit_api import AuditLog
from coordinator.identity.join_tokens import JoinTokens
from coordinator.identity.revocations import Revocations
from meshkit.auth import current_principal


@dataclass
class IdentityService(identity_pb2_grpc.IdentityServiceServicer):
    """Serves aimesh.identity.v1; each part has a file of its own."""

    keys: ApiKeys
    tokens: JoinTokens
    revocations: Revocations
    audit: AuditLog

    async def CreateKey(self, request: identity_pb2.CreateKeyRequest, context: Any) -> identity_pb2.CreateKeyResponse:  # noqa: N802
        """Makes an API key."""
        return await self.keys.create(request)

    async def ListKeys(self, request: identity_pb2.ListKeysRequest, context: Any) -> identity_pb2.ListKeysResponse:  # noqa: N802
        """A page of API keys."""
        return self.keys.list(request)

    async def RevokeKey(self, request: identity_pb2.RevokeKeyRequest, context: Any) -> identity_pb2.RevokeKeyResponse:  # noqa: N802
        """Ends an API key."""
        return await self.keys.revoke(request)

    async def CreateJoinToken(  # noqa: N802
        self, request: identity_pb2.CreateJoinTokenRequest, context: Any
    ) -> identity_pb2.CreateJoinTokenResponse:
        """Makes a join token."""
        return await self.tokens.create(request)

    async def ListJoinTokens(  # noqa: N802
        self, request: identity_pb2.ListJoinTokensRequest, context: Any
    ) -> identity_pb2.ListJoinTokensResponse:
        """A page of join tokens."""
        return self.tokens.list(request)

    async def RevokeJoinToken(  # noqa: N802
        self, request: identity_pb2.RevokeJoinTokenRequest, context: Any
    ) -> identity_pb2.RevokeJoinTokenResponse:
        """Ends a join token."""
        return await self.tokens.revoke(request)

    async def RevokeCertificates(  # noqa: N802
        self, request: identity_pb2.RevokeCertificatesRequest, context: Any
    ) -> identity_pb2.RevokeCertificatesResponse:
        """Ends an identity's certificates."""
        return await self.revocations.revoke(request)

    async def ListRevocations(  # noqa: N802
        self, request: identity_pb2.ListRevocationsRequest, context: Any
    ) -> identity_pb2.ListRevocationsResponse:
        """A page of revocations."""
        return self.revocations.list(request)

    async def WhoAmI(self, request: identity_pb2.WhoAmIRequest, context: Any) -> identity_pb2.WhoAmIResponse:  # noqa: N802
        """Who calls, and what it may do."""
        caller = current_principal()
        return identity_pb2.WhoAmIResponse(actor=caller.actor, scopes=sorted(caller.scopes))

    async def ListAuditEvents(  # noqa: N802
        self, request: identity_pb2.ListAuditEventsRequest, context: Any
    ) -> identity_pb2.ListAuditEventsResponse:
        """A page of changes."""
        return await self.audit.list(request)

    async def VerifyAudit(  # noqa: N802
        self, request: identity_pb2.VerifyAuditRequest, context: Any
    ) -> identity_pb2.VerifyAuditResponse:
        """Checks the log."""
        return await self.audit.verify()
