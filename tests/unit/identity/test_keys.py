"""API keys: whose they are, and what is no key."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from aimesh.identity.v1 import identity_pb2
from coordinator.identity.holders import check_key
from coordinator.identity.signing import ISSUER, Signer, create_key_file, jwks, load_key_file
from coordinator.settings import AuthSettings, CoordinatorSettings
from coordinator.state import State
from meshkit import scopes
from meshkit.credentials import ClientCredentials
from meshkit.errors import InvalidInputError, PreconditionError, UnauthenticatedError
from tools.cli.identity import parse_duration

SIGNER = Signer(Ed25519PrivateKey.generate())


def key(signer: Signer = SIGNER, ends_at: int = 0) -> tuple[State, str]:
    """A state with one key, and the key's text."""
    text = signer.sign({"jti": "k-1", "sub": "ci"})
    kept = identity_pb2.ApiKey(id="k-1", name="ci", scopes=[scopes.DEPLOY], hash=signer.hash(text))
    if ends_at:
        kept.expires_at.FromSeconds(ends_at)
    return State(revision=1, api_keys={"k-1": kept}, key_file=signer.fingerprint), text


def test_a_key_says_who_holds_it_and_what_its_scopes_hold() -> None:
    state, text = key(ends_at=100)
    holder = check_key(state, SIGNER, text, 99.9)
    assert (holder.name, scopes.words(holder.scopes), holder.ends_at) == ("ci", ["read", "deploy"], 100.0)
    with pytest.raises(UnauthenticatedError, match="ended"):
        check_key(state, SIGNER, text, 100.0)


def test_a_key_that_was_revoked_or_is_another_with_the_same_id_is_refused() -> None:
    state, text = key()
    again = SIGNER.sign({"jti": "k-1", "sub": "somebody else"})
    for known, shown in ((replace(state, api_keys={}), text), (state, again)):
        with pytest.raises(UnauthenticatedError, match="unknown or was revoked"):
            check_key(known, SIGNER, shown, 0.0)


def test_a_key_that_others_signed_is_refused() -> None:
    state, _ = key()
    other = Signer(Ed25519PrivateKey.generate())
    unsigned = jwt.encode({"jti": "k-1", "iss": ISSUER}, "", algorithm="none")
    with_secret = jwt.encode({"jti": "k-1", "iss": ISSUER}, "x" * 32, algorithm="HS256")
    for text in (other.sign({"jti": "k-1"}), unsigned, with_secret, SIGNER.sign({"sub": "no id"}), "x" * 5000):
        with pytest.raises(UnauthenticatedError):
            check_key(state, SIGNER, text, 0.0)


@given(
    st.text(max_size=60)
    | st.lists(st.binary(max_size=20), min_size=3, max_size=3).map(
        lambda parts: ".".join(base64.urlsafe_b64encode(part).decode() for part in parts)
    )
)
def test_noise_is_no_key(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        check_key(key()[0], SIGNER, text, 0.0)


def test_another_key_file_is_named_as_the_cause() -> None:
    state, text = key()
    with pytest.raises(PreconditionError, match="key file"):
        check_key(state, Signer(Ed25519PrivateKey.generate()), text, 0.0)


def test_a_key_file_is_made_once_and_read_by_all(tmp_path: Path) -> None:
    settings = CoordinatorSettings(data_dir=tmp_path / "new")
    public = jwks(settings)
    assert jwks(settings) == public
    made = tmp_path / "new" / "api-keys.pem"
    assert made.stat().st_mode & 0o077 == 0
    create_key_file(made)
    (found,) = json.loads(public)["keys"]
    verified = jwt.decode(
        load_key_file(made).sign({"jti": "k-1"}), jwt.PyJWK(found).key, algorithms=["EdDSA"], issuer=ISSUER
    )
    assert verified["jti"] == "k-1"
    named = CoordinatorSettings(data_dir=tmp_path, auth=AuthSettings(key_file=tmp_path / "none.pem"))
    with pytest.raises(PreconditionError, match="aimesh ca init"):
        jwks(named)


def test_secrets_match_their_own_hash_only() -> None:
    assert SIGNER.matches("a", SIGNER.hash("a"))
    assert not SIGNER.matches("b", SIGNER.hash("a"))
    assert not SIGNER.matches("", "")
    assert Signer(Ed25519PrivateKey.generate()).hash("a") != SIGNER.hash("a")


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("15m", 900), ("2h", 7200), ("90d", 7_776_000)])
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1h", "1w", "1.5h", "h"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_duration(text)


def test_credentials_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    from_folder = ClientCredentials.from_environment({"AIMESH_TLS_DIR": str(tmp_path), "AIMESH_API_KEY": "k"})
    assert from_folder == ClientCredentials(ca=tmp_path / "ca.pem", api_key="k")
    for environ in (
        {"AIMESH_TLS_CERT": "c"},
        {"AIMESH_TLS_CERT": "c", "AIMESH_TLS_KEY": "k"},
        {"AIMESH_TLS_DIR": "/no"},
    ):
        with pytest.raises(InvalidInputError):
            ClientCredentials.from_environment(environ)
