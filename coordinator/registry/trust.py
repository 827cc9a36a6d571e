"""Whose signatures of versions count, and signatures that are added to a version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aimesh.registry.v1 import registry_pb2
from coordinator import keys
from coordinator.etcd import Delete, Etcd, KeyValue, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.state import State
from meshkit.errors import InvalidInputError, NotFoundError, PreconditionError, SupersededError
from meshkit.signing import KEY_BYTES, check_allowed, fits, key_id, verify

MOST_KEYS = 64
MOST_SIGNATURES = 16
_MOST_FORGIVEN = 100
"""Remembered failures that are dropped in one transaction: etcd takes 128 operations at most."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,62}")


@dataclass(frozen=True)
class TrustKeeper:
    """Writes trust and signatures, each in one transaction on what was read."""

    etcd: Etcd
    mirror: Mirror
    outbox: Outbox

    async def set(self, trust: registry_pb2.Trust, replaces: registry_pb2.Trust | None = None) -> registry_pb2.Trust:
        """Replaces whose signatures count. Raises InvalidInputError naming what is wrong with it, SupersededError when
        it is to replace another one than there is."""
        check_trust(trust)
        _, (held,) = await self.etcd.get(keys.TRUST)
        if replaces is not None and keys.parse(held.value or b"{}", registry_pb2.Trust()) != replaces:
            raise SupersededError("the trusted keys changed in the meantime", hint="try again: aimesh trust list")
        value = keys.encode(trust)
        if value != held.value:
            await self._commit(held, value, forgiven(self.mirror.state, trust), "the trusted keys")
        return trust

    async def sign(
        self, name: str, version: str, signature: registry_pb2.VersionSignature
    ) -> registry_pb2.ModelVersion:
        """Adds a signature to a version; one of the same key is replaced.

        Raises NotFoundError, InvalidInputError when it is not over this version's digest, PreconditionError when its
        key is not trusted, so that nobody can tell whose it is.
        """
        _, (held,) = await self.etcd.get(keys.version(name, version))
        if held.value is None:
            raise NotFoundError(
                f"model {name!r} has no version {version!r}", hint="see: aimesh models list", reason="VERSION_NOT_FOUND"
            )
        signed = with_signature(keys.parse(held.value, registry_pb2.ModelVersion()), signature)
        check_signatures(signed, self.mirror.state.trust)
        value = keys.encode(signed)
        if value != held.value:
            drop = [keys.failure(*key) for key in self.mirror.state.failures if key[1:] == (name, version)]
            await self._commit(held, value, drop[:_MOST_FORGIVEN], f"{name}:{version}")
        return signed

    async def _commit(self, held: KeyValue, value: bytes, drop: Sequence[str], what: str) -> None:
        event = await self.outbox.event(held.key, held.value, value)
        guards = [Unchanged(held.key, held.mod_revision)]
        revision = await self.etcd.txn(guards, [Put(held.key, value), *map(Delete, drop), event])
        if revision is None:
            raise SupersededError(f"{what} changed in the meantime", hint="try again")
        await self.mirror.reached(revision)


def check_trust(trust: registry_pb2.Trust) -> None:
    """Raises InvalidInputError for a name or key that cannot be, or that is there twice, and for nobody to trust."""
    if len(trust.keys) > MOST_KEYS:
        raise InvalidInputError(f"{len(trust.keys)} trusted keys", hint=f"at most {MOST_KEYS}")
    for key in trust.keys:
        if not _NAME.fullmatch(key.name):
            raise InvalidInputError(
                f"trusted key name {key.name!r} is not allowed",
                hint="use 1 to 63 of a-z, 0-9, '.', '_', '@' and '-', the first a letter or digit",
            )
        if len(key.public_key) != KEY_BYTES:
            raise InvalidInputError(
                f"the key of {key.name} has {len(key.public_key)} bytes",
                hint=f"a raw ed25519 public key has {KEY_BYTES}",
            )
    _refuse_twice("name", [key.name for key in trust.keys])
    _refuse_twice("key", [key_id(key.public_key) for key in trust.keys])
    if trust.signed_only and not trust.keys:
        raise InvalidInputError(
            "signed_only without a trusted key: no model could be loaded any more",
            hint="name another key first: aimesh trust add NAME FILE.pub; or: aimesh trust require off",
        )


def check_signatures(version: registry_pb2.ModelVersion, trust: registry_pb2.Trust) -> None:
    """Raises InvalidInputError for a signature of something else, PreconditionError for one of an unknown key."""
    named = f"{version.name}:{version.version}"
    if len(version.signatures) > MOST_SIGNATURES:
        raise InvalidInputError(f"{named} has {len(version.signatures)} signatures", hint=f"at most {MOST_SIGNATURES}")
    _refuse_twice("signature of key", [signature.key_id for signature in version.signatures])
    trusted = {key_id(key.public_key): key for key in trust.keys}
    for signature in version.signatures:
        key = trusted.get(signature.key_id)
        if key is None:
            raise PreconditionError(
                f"{named} is signed by key {signature.key_id!r}, which is not trusted",
                hint="name it first: aimesh trust add NAME FILE.pub",
                reason="KEY_NOT_TRUSTED",
            )
        if not fits(key.public_key, version.digest, signature.signature):
            raise InvalidInputError(
                f"the signature of key {key.name} is not of {named} with digest {version.digest[:16]}…",
                hint="sign what is recorded: aimesh trust sign NAME:VERSION --key FILE",
                reason="BAD_SIGNATURE",
            )


def check_new(version: registry_pb2.ModelVersion, trust: registry_pb2.Trust) -> None:
    """Whether a version may be recorded. Raises as `check_signatures`, and when only signed ones are taken."""
    check_signatures(version, trust)
    check_allowed(version, trust)


def with_signature(
    version: registry_pb2.ModelVersion, signature: registry_pb2.VersionSignature
) -> registry_pb2.ModelVersion:
    """A copy of the version with the signature, in place of an older one of the same key."""
    signed = registry_pb2.ModelVersion()
    signed.CopyFrom(version)
    del signed.signatures[:]
    signed.signatures.extend(each for each in version.signatures if each.key_id != signature.key_id)
    signed.signatures.append(signature)
    signed.signatures.sort(key=lambda each: each.key_id)
    return signed


def forgiven(state: State, trust: registry_pb2.Trust) -> list[str]:
    """Keys of remembered failures of versions that may be loaded under the new trust and might not be before."""
    allowed = {
        (name, version)
        for (_, name, version) in state.failures
        if (held := state.versions.get((name, version))) is not None
        and _allowed(held, trust)
        and not _allowed(held, state.trust)
    }
    return [keys.failure(*key) for key in state.failures if key[1:] in allowed][:_MOST_FORGIVEN]


def _allowed(version: registry_pb2.ModelVersion, trust: registry_pb2.Trust) -> bool:
    return not trust.signed_only or bool(verify(version, trust).signer)


def _refuse_twice(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InvalidInputError(f"{what} {value} is there twice", hint="name it once")
        seen.add(value)
