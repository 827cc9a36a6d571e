"""The authority: what it issues says who the holder is, and nothing else passes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from meshkit.certificates import (
    ETCD_CLIENT,
    ETCD_MEMBER,
    Authority,
    Names,
    issued_at,
    key_pem,
    make_names,
    names_of,
    new_key,
    parse_certificate,
    pem,
    read_request,
    request,
)
from meshkit.errors import AimeshError, ConflictError, InvalidInputError, PreconditionError
from meshkit.tls import COORDINATOR_NAME, ROLES, Identity, Role, TlsSettings, check_binding
from tests.certificates import TestAuthority
from tools.certificates import create_authority, issue, load_authority

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("role", ROLES)
def test_a_certificate_says_what_was_asked_for(role: Role) -> None:
    authority = Authority.create(NOW)
    names = make_names(Identity(role, "x-1"), ["10.0.0.1", "::1"], ["host.example"])
    asked, public = read_request(request(new_key(), names))
    assert asked == names
    issued = parse_certificate(authority.issue(asked, public, NOW, timedelta(days=1)))
    assert names_of(issued) == names
    issued.verify_directly_issued_by(authority.certificate)
    server = x509.oid.ExtendedKeyUsageOID.SERVER_AUTH
    purposes = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (server in purposes) == (role not in ("client", "admin"))


def test_a_certificate_ends_no_later_than_its_authority() -> None:
    authority = Authority.create(NOW, timedelta(days=10))
    names = Names(Identity("node", "n1"))
    issued = parse_certificate(authority.issue(names, new_key().public_key(), NOW, timedelta(days=90)))
    assert issued.not_valid_after_utc == NOW + timedelta(days=10)


@pytest.mark.parametrize("role", ROLES)
def test_only_coordinators_and_members_have_the_names_of_their_roles(role: Role) -> None:
    names = make_names(Identity(role, "x-1"), (), ["host.example"])
    issued = parse_certificate(Authority.create(NOW).issue(names, new_key().public_key(), NOW, timedelta(days=1)))
    hosts = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    of_role = {"coordinator": [ETCD_CLIENT, COORDINATOR_NAME], "etcd": [ETCD_CLIENT, ETCD_MEMBER]}
    assert hosts.get_values_for_type(x509.DNSName) == ["host.example", *of_role.get(role, [])]


@pytest.mark.parametrize(
    "host", [COORDINATOR_NAME, ETCD_CLIENT, ETCD_MEMBER.upper(), f"{ETCD_CLIENT}.", "*.etcd.aimesh.internal"]
)
def test_nobody_can_ask_for_those_names(host: str) -> None:
    with pytest.raises(InvalidInputError, match="come with a role"):
        make_names(Identity("node", "n1"), (), [host])
    with pytest.raises(InvalidInputError, match="come with a role"):
        read_request(request(new_key(), Names(Identity("node", "n1"), (), (host,))))


def test_a_certificate_tells_when_it_was_issued() -> None:
    """It begins earlier; revocations go by when it was made."""
    made = Authority.create(NOW).issue(Names(Identity("node", "n1")), new_key().public_key(), NOW, timedelta(days=1))
    assert issued_at(parse_certificate(made)) == NOW


def test_names_cover_only_what_they_have() -> None:
    held = make_names(Identity("node", "n1"), ["10.0.0.1"], ["a"])
    assert held.covers(Names(Identity("node", "n1")))
    assert not held.covers(Names(Identity("node", "n2")))
    assert not held.covers(Names(Identity("node", "n1"), ("10.0.0.2",)))
    assert not held.covers(Names(Identity("node", "n1"), (), ("b",)))


@pytest.mark.parametrize(
    "uris", [[], ["https://example.org"], ["spiffe://aimesh/node/n1", "spiffe://aimesh/admin/root"]]
)
def test_a_request_must_say_who_it_is_for_once(uris: list[str]) -> None:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")]))
    names = [x509.DNSName("n1"), *(x509.UniformResourceIdentifier(uri) for uri in uris)]
    asked = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(new_key(), hashes.SHA256())
    with pytest.raises(InvalidInputError, match="who this is"):
        read_request(pem(asked))


def test_what_is_no_request_is_refused() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://aimesh/node/n1")])
    builder = x509.CertificateSigningRequestBuilder(subject)
    other_kind = builder.add_extension(uri, critical=False).sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    signed = request(new_key(), Names(Identity("node", "n1")))
    broken = bytearray(x509.load_pem_x509_csr(signed).public_bytes(serialization.Encoding.DER))
    broken[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(broken))
    for text in (b"", b"nonsense", pem(other_kind), pem(forged), pem(Authority.create(NOW).certificate)):
        with pytest.raises(InvalidInputError):
            read_request(text)


@pytest.mark.parametrize(
    "uri", ["spiffe://aimesh/root/x", "spiffe://other/node/n1", "spiffe://aimesh/node/", "spiffe://aimesh/node/a/b"]
)
def test_only_names_of_this_form_are_identities(uri: str) -> None:
    assert Identity.parse(uri) is None


def test_an_authority_in_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    create_authority(folder)
    with pytest.raises(ConflictError, match="already"):
        create_authority(folder)
    issue(folder, make_names(Identity("node", "n1"), ["127.0.0.1"], ()), timedelta(days=1), tmp_path / "n1")
    TlsSettings(**{name: tmp_path / "n1" / f"{name}.pem" for name in ("ca", "cert", "key")}).read()
    for secret in (folder / "ca.key", folder / "api-keys.pem", tmp_path / "n1" / "key.pem"):
        assert secret.stat().st_mode & 0o077 == 0, secret
    with pytest.raises(AimeshError, match="aimesh ca init"):
        load_authority(tmp_path)
    other = Authority.create(NOW)
    with pytest.raises(InvalidInputError, match="does not belong"):
        Authority.load((folder / "ca.pem").read_bytes(), key_pem(other.key))


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path)
    tls, other = authority.issue("node", "n1"), authority.issue("node", "n2")
    with pytest.raises(PreconditionError, match="not the key of"):
        TlsSettings(ca=tls.ca, cert=tls.cert, key=other.key).read()
    with pytest.raises(PreconditionError, match="cannot read"):
        TlsSettings(ca=tls.ca, cert=tls.cert, key=tmp_path / "none").read()


@pytest.mark.parametrize(
    ("host", "may"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.1", False), ("h", False)],
)
def test_without_tls_only_loopback_is_listened_on(host: str, may: bool, tmp_path: Path) -> None:
    check_binding(host, TestAuthority(tmp_path).issue("node", "n1"), insecure=False, table="agent")
    check_binding(host, TlsSettings(), insecure=True, table="agent")
    if may:
        check_binding(host, TlsSettings(), insecure=False, table="agent")
    else:
        with pytest.raises(InvalidInputError, match="without TLS"):
            check_binding(host, TlsSettings(), insecure=False, table="agent")
