"""Join tokens: with one, a machine that has no certificate yet gets its first, once."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from aimesh.identity.v1 import identity_pb2
from coordinator import keys
from coordinator.etcd import Delete, Etcd, KeyValue, Put, Unchanged
from coordinator.hello import check_node_id
from coordinator.identity.api_keys import check_ttl
from coordinator.identity.outbox import Outbox
from coordinator.identity.signing import Signer
from coordinator.mirror import Mirror
from coordinator.paging import page
from meshkit.auth import current_principal
from meshkit.certificates import Names
from meshkit.errors import InvalidInputError, NotFoundError, PreconditionError, SupersededError, UnauthenticatedError

DEFAULT_TTL_S = 3600
MOST_TTL_S = 7 * 24 * 3600
MOST_NAMES = 32
_TEXT = re.compile(r"aimesh-join\.(t-[0-9a-f]{16})\.([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}")


@dataclass
class JoinTokens:
    """Every write is one transaction, on the revision that was read: of two who use a token at once, one gets it."""

    etcd: Etcd
    mirror: Mirror
    signer: Signer
    outbox: Outbox
    enrolls: bool
    """Whether this coordinator gives certificates."""
    now: Callable[[], float] = time.time
    """Seconds since the epoch."""

    async def create(self, request: identity_pb2.CreateJoinTokenRequest) -> identity_pb2.CreateJoinTokenResponse:
        """Makes a token; its text is in the answer only."""
        if not self.enrolls:
            raise PreconditionError(
                "this coordinator gives no certificates", hint="set coordinator.auth.ca_key and coordinator.enroll_port"
            )
        ttl_s = _check(request)
        token, text = self._make(request, ttl_s)
        record, kept = keys.join_token(token.id), keys.encode(token)
        lease = await self.etcd.grant(ttl_s)
        event = await self.outbox.event(record, None, kept)
        revision = await self.etcd.txn([Unchanged(record, 0)], [Put(record, kept, lease), event])
        if revision is None:  # the answer to the first try was lost: its secret is good
            revision = (await self.etcd.get(record))[0]
        await self.mirror.reached(revision)
        return identity_pb2.CreateJoinTokenResponse(token=shown(token), secret=text)

    def list(self, request: identity_pb2.ListJoinTokensRequest) -> identity_pb2.ListJoinTokensResponse:
        """A page of tokens, by id."""
        found = sorted(self.mirror.state.join_tokens.values(), key=lambda token: token.id)
        items, following = page(found, request.page_size, request.page_token, lambda token: token.id)
        return identity_pb2.ListJoinTokensResponse(tokens=[shown(token) for token in items], next_page_token=following)

    async def revoke(self, request: identity_pb2.RevokeJoinTokenRequest) -> identity_pb2.RevokeJoinTokenResponse:
        """Ends a token."""
        record = keys.join_token(request.id)
        _, (held,) = await self.etcd.get(record)
        if held.value is None:
            raise NotFoundError(f"there is no join token {request.id!r}", hint="see: aimesh tokens list")
        changes: list[Put | Delete] = [Delete(record), await self.outbox.event(record, held.value, None)]
        revision = await self.etcd.txn([Unchanged(record, held.mod_revision)], changes)
        if revision is None:
            raise SupersededError(f"token {request.id} was used or revoked in the meantime", hint="aimesh tokens list")
        await self.mirror.reached(revision)
        return identity_pb2.RevokeJoinTokenResponse()

    async def find(self, text: str) -> tuple[KeyValue, identity_pb2.JoinToken]:
        """The token with this text, as etcd holds it. Raises UnauthenticatedError when there is none (any more)."""
        form = _TEXT.fullmatch(text)
        if form is None:
            raise _refused()
        _, (held,) = await self.etcd.get(keys.join_token(form[1]))
        token = keys.parse(held.value or b"{}", identity_pb2.JoinToken())
        # Compared even when there is none, so that the answer takes as long.
        if not self.signer.matches(text, token.hash) or token.expires_at.ToMicroseconds() / 1e6 <= self.now():
            raise _refused()
        return held, token

    async def use_up(self, held: KeyValue, names: Names) -> None:
        """Takes the token away for a certificate with these names. Raises UnauthenticatedError when it is gone."""
        given = json.dumps({"certificate": [names.identity.uri, *names.ips, *names.dns]})
        changes: list[Put | Delete] = [Delete(held.key), await self.outbox.event(held.key, held.value, given.encode())]
        if await self.etcd.txn([Unchanged(held.key, held.mod_revision)], changes) is None:
            raise _refused()

    def _make(self, request: identity_pb2.CreateJoinTokenRequest, ttl_s: int) -> tuple[identity_pb2.JoinToken, str]:
        token_id = f"t-{secrets.token_hex(8)}"
        text = f"aimesh-join.{token_id}.{secrets.token_urlsafe(32)}"
        token = identity_pb2.JoinToken(
            id=token_id,
            node_id=request.node_id,
            created_by=current_principal().actor,
            hash=self.signer.hash(text),
            names=request.names,
        )
        token.created_at.FromSeconds(int(self.now()))
        token.expires_at.FromSeconds(int(self.now()) + ttl_s)
        return token, text


def shown(token: identity_pb2.JoinToken) -> identity_pb2.JoinToken:
    """The token as answers carry it."""
    copy = identity_pb2.JoinToken()
    copy.CopyFrom(token)
    copy.ClearField("hash")
    return copy


def _check(request: identity_pb2.CreateJoinTokenRequest) -> int:
    """The time to live in seconds."""
    if request.node_id:
        check_node_id(request.node_id)
    for name in request.names:
        if not _NAME.fullmatch(name):
            raise InvalidInputError(f"{name!r} is neither an IP address nor a host name")
    if len(request.names) > MOST_NAMES:
        raise InvalidInputError(f"{len(request.names)} names are too many", hint=f"at most {MOST_NAMES}")
    if not request.HasField("ttl"):
        return DEFAULT_TTL_S
    check_ttl(request.ttl, MOST_TTL_S)
    return request.ttl.seconds


def _refused() -> UnauthenticatedError:
    return UnauthenticatedError(
        "the join token is unknown, was used, or has expired",
        hint="make another with: aimesh tokens create",
        reason="TOKEN_REFUSED",
    )
