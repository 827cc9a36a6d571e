"""API keys: made, listed, revoked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import duration_pb2

from aimesh.identity.v1 import identity_pb2
from coordinator import keys
from coordinator.etcd import Delete, Etcd, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.identity.signing import Signer, key_file_differs
from coordinator.mirror import Mirror
from coordinator.paging import page
from meshkit.auth import current_principal
from meshkit.errors import ConflictError, InvalidInputError, NotFoundError, SupersededError
from meshkit.names import check_model_name
from meshkit.scopes import KEY_SCOPES, word, words

MOST_TTL_S = 10 * 365 * 24 * 3600


@dataclass
class ApiKeys:
    """Every write is one transaction: the key, who has its name, and the audit event."""

    etcd: Etcd
    mirror: Mirror
    signer: Signer
    outbox: Outbox
    now: Callable[[], float] = time.time
    """Seconds since the epoch."""

    async def create(self, request: identity_pb2.CreateKeyRequest) -> identity_pb2.CreateKeyResponse:
        """Makes a key; its text is in the answer only."""
        _check(request)
        name_key = keys.api_key_name(request.name)
        _, (named, key_file) = await self.etcd.get(name_key, keys.KEY_FILE)
        if named.value is not None:
            raise ConflictError(
                f"a key with the name {request.name!r} exists", hint=f"run: aimesh keys revoke {request.name}"
            )
        self._check_key_file(key_file.value)
        key, text = self._make(request)
        lease = await self.etcd.grant(max(1, request.ttl.seconds)) if request.HasField("ttl") else 0
        kept, record = keys.encode(key), keys.api_key(key.id)
        changes: list[Put | Delete] = [
            Put(record, kept, lease),
            Put(name_key, key.id.encode(), lease),
            await self.outbox.event(record, None, kept),
        ]
        if key_file.value is None:
            changes.append(Put(keys.KEY_FILE, self.signer.fingerprint.encode()))
        guards = [Unchanged(name_key, 0), Unchanged(keys.KEY_FILE, key_file.mod_revision)]
        revision = await self.etcd.txn(guards, changes)
        if revision is None:
            raise SupersededError(f"a key {request.name!r} was made at the same moment", hint="try again")
        await self.mirror.reached(revision)
        return identity_pb2.CreateKeyResponse(key=shown(key), secret=text)

    def list(self, request: identity_pb2.ListKeysRequest) -> identity_pb2.ListKeysResponse:
        """A page of keys, by name."""
        found = sorted(self.mirror.state.api_keys.values(), key=lambda key: key.name)
        items, token = page(found, request.page_size, request.page_token, lambda key: key.name)
        return identity_pb2.ListKeysResponse(keys=[shown(key) for key in items], next_page_token=token)

    async def revoke(self, request: identity_pb2.RevokeKeyRequest) -> identity_pb2.RevokeKeyResponse:
        """Ends a key."""
        name_key = keys.api_key_name(request.name)
        _, (named,) = await self.etcd.get(name_key)
        if named.value is None:
            raise NotFoundError(
                f"there is no key {request.name!r}", hint="see: aimesh keys list", reason="KEY_NOT_FOUND"
            )
        record = keys.api_key(named.value.decode())
        _, (held,) = await self.etcd.get(record)
        event = await self.outbox.event(record, held.value, None)
        changes: list[Put | Delete] = [Delete(record), Delete(name_key), event]
        guards = [Unchanged(name_key, named.mod_revision), Unchanged(record, held.mod_revision)]
        revision = await self.etcd.txn(guards, changes)
        if revision is None:
            raise SupersededError(f"key {request.name!r} changed in the meantime", hint="try again")
        await self.mirror.reached(revision)
        return identity_pb2.RevokeKeyResponse()

    def _make(self, request: identity_pb2.CreateKeyRequest) -> tuple[identity_pb2.ApiKey, str]:
        key_id = f"k-{secrets.token_hex(8)}"
        now = int(self.now())
        claims: dict[str, Any] = {"jti": key_id, "sub": request.name, "iat": now, "scopes": words(request.scopes)}
        if request.HasField("ttl"):
            claims["exp"] = now + request.ttl.seconds
        text = self.signer.sign(claims)
        key = identity_pb2.ApiKey(
            id=key_id,
            name=request.name,
            scopes=sorted(set(request.scopes)),
            created_by=current_principal().actor,
            hash=self.signer.hash(text),
        )
        key.created_at.FromSeconds(now)
        if request.HasField("ttl"):
            key.expires_at.FromSeconds(now + request.ttl.seconds)
        return key, text

    def _check_key_file(self, fingerprint: bytes | None) -> None:
        if fingerprint is not None and fingerprint.decode() != self.signer.fingerprint:
            raise key_file_differs(self.signer.fingerprint, fingerprint.decode())


def shown(key: identity_pb2.ApiKey) -> identity_pb2.ApiKey:
    """The key as answers carry it."""
    copy = identity_pb2.ApiKey()
    copy.CopyFrom(key)
    copy.ClearField("hash")
    return copy


def check_ttl(ttl: duration_pb2.Duration, most_s: int) -> None:
    """Raises InvalidInputError when a time to live is under a second or beyond most_s."""
    if not 1 <= ttl.seconds <= most_s:
        raise InvalidInputError(f"a time to live of {ttl.seconds} s is not possible", hint=f"1 to {most_s} seconds")


def _check(request: identity_pb2.CreateKeyRequest) -> None:
    check_model_name(request.name)
    if not request.scopes:
        raise InvalidInputError(f"key {request.name!r} has no scopes", hint=f"of {', '.join(words(KEY_SCOPES))}")
    for scope in request.scopes:
        if scope not in KEY_SCOPES:
            raise InvalidInputError(
                f"a key cannot have the scope {word(scope)!r}", hint=f"of {', '.join(words(KEY_SCOPES))}"
            )
    if request.HasField("ttl"):
        check_ttl(request.ttl, MOST_TTL_S)
