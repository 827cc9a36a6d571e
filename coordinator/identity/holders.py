"""From an API key's text to who holds it, by what etcd keeps: the check before every call that shows a key."""

from __future__ import annotations

from aimesh.identity.v1 import identity_pb2
from coordinator.identity.signing import Signer, key_file_differs
from coordinator.state import State
from meshkit.auth import KeyHolder
from meshkit.errors import UnauthenticatedError
from meshkit.scopes import expand

_NO_LONGER = "make another with: aimesh keys create"


def check_key(state: State, signer: Signer, text: str, now: float) -> KeyHolder:
    """The holder of a valid key; `now` in seconds since the epoch.

    Raises UnauthenticatedError when the key is malformed, unknown, revoked or ended; PreconditionError when this
    coordinator's key file is not the mesh's, so that it cannot tell.
    """
    check_key_file(state, signer)
    key = state.api_keys.get(signer.key_id(text))
    if key is None or not signer.matches(text, key.hash):
        raise UnauthenticatedError("the API key is unknown or was revoked", hint=_NO_LONGER)
    ends_at = ends(key)
    if ends_at is not None and ends_at <= now:
        raise UnauthenticatedError(f"the API key {key.name} ended at {key.expires_at.ToJsonString()}", hint=_NO_LONGER)
    return KeyHolder(key.id, key.name, expand(key.scopes), ends_at)


def check_key_file(state: State, signer: Signer) -> None:
    """Raises PreconditionError when the mesh's API keys are signed with another key file than this coordinator's."""
    if state.key_file and state.key_file != signer.fingerprint:
        raise key_file_differs(signer.fingerprint, state.key_file)


def ends(key: identity_pb2.ApiKey) -> float | None:
    """When a key ends, in seconds since the epoch; None for never."""
    return key.expires_at.ToMicroseconds() / 1e6 if key.HasField("expires_at") else None
