"""The mesh's own certificate authority: keys, requests and certificates whose names say who the holder is.

Keys are ECDSA on P-256: what gRPC, Envoy (BoringSSL), etcd (Go) and Triton all take, clients and servers alike.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshkit.errors import InvalidInputError
from meshkit.tls import COORDINATOR_NAME, Identity, Role

CA_LIFETIME = timedelta(days=3650)
CERTIFICATE_LIFETIME = timedelta(days=90)
_CLOCKS_APART = timedelta(minutes=5)
"""Certificates begin this much earlier, for machines whose clocks are behind."""

_SERVERS = ("node", "coordinator", "gateway", "etcd")
_RESERVED = "aimesh.internal"
ETCD_CLIENT, ETCD_MEMBER = f"client.etcd.{_RESERVED}", f"member.etcd.{_RESERVED}"
"""Host names that say who may call etcd, and who may be a member: it knows nothing of URI names. They come with the
role, so `Names` leave them out and nobody can ask for them; so does COORDINATOR_NAME."""
_OF_ROLE: dict[Role, tuple[str, ...]] = {
    "coordinator": (ETCD_CLIENT, COORDINATOR_NAME),
    "etcd": (ETCD_CLIENT, ETCD_MEMBER),  # a member also calls itself
}
_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Names:
    """What a certificate says of its holder: who it is, and at which addresses it is reached."""

    identity: Identity
    ips: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()

    def covers(self, other: Names) -> bool:
        """Whether another says nothing that this one does not say."""
        return self.identity == other.identity and set(other.ips) <= set(self.ips) and set(other.dns) <= set(self.dns)


@dataclass(frozen=True)
class Authority:
    """Signs certificates. The key never leaves the machine that it was made on."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, now: datetime, lifetime: timedelta = CA_LIFETIME) -> Authority:
        """A new authority, signed by itself."""
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aimesh authority")])
        public = key.public_key()
        built = (
            _builder(name, name, public, now, now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        return cls(built.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Authority:
        """From PEM. Raises InvalidInputError when either is not what it should be, or they are no pair."""
        found, secret = parse_certificate(certificate), _parse_key(key)
        if found.public_key() != secret.public_key():
            raise InvalidInputError("the authority's key does not belong to its certificate", reason="CA_MISMATCH")
        return cls(found, secret)

    def issue(self, names: Names, public: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta) -> bytes:
        """A certificate in PEM. It ends no later than the authority's own."""
        ends = min(now + lifetime, self.certificate.not_valid_after_utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names.identity.id)])
        builder = _builder(self.certificate.subject, subject, public, now, ends)
        for extension, critical in self._extensions(names, public):
            builder = builder.add_extension(extension, critical)
        return pem(builder.sign(self.key, hashes.SHA256()))

    def _extensions(self, names: Names, public: ec.EllipticCurvePublicKey) -> Iterable[tuple[x509.ExtensionType, bool]]:
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if names.identity.role in _SERVERS:
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        yield x509.BasicConstraints(ca=False, path_length=None), True
        yield _usage(authority=False), True
        yield x509.ExtendedKeyUsage(purposes), False
        yield x509.SubjectKeyIdentifier.from_public_key(public), False
        yield x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), False
        yield _alternative_names(names, _OF_ROLE.get(names.identity.role, ())), False


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new secret key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PKCS#8 in PEM, not encrypted: keep the file 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request(key: ec.EllipticCurvePrivateKey, names: Names) -> bytes:
    """A PKCS#10 request for a certificate with these names, in PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names.identity.id)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    return pem(builder.add_extension(_alternative_names(names), critical=False).sign(key, hashes.SHA256()))


def read_request(text: bytes) -> tuple[Names, ec.EllipticCurvePublicKey]:
    """What a PKCS#10 request asks for. Raises InvalidInputError naming what is wrong with it."""
    try:
        found = x509.load_pem_x509_csr(text)
        public = found.public_key()
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise InvalidInputError(
            f"the certificate request cannot be read: {error}",
            hint="send PKCS#10 in PEM with the URI name spiffe://aimesh/<role>/<id>",
        ) from None
    if not found.is_signature_valid:
        raise InvalidInputError("the certificate request is not signed by its own key")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InvalidInputError(
            "the certificate request's key is not ECDSA on P-256", hint="make it with aimesh enroll"
        )
    return _names(alternative), public


def names_of(certificate: x509.Certificate) -> Names:
    """What a certificate says. Raises InvalidInputError when it is none of the mesh's."""
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InvalidInputError(
            "the certificate has no alternative names", hint="make it with aimesh ca issue"
        ) from None
    return _names(alternative, leave_out=(ETCD_CLIENT, ETCD_MEMBER, COORDINATOR_NAME))


def issued_at(certificate: x509.Certificate) -> datetime:
    """When the mesh's authority made it, to the second."""
    return certificate.not_valid_before_utc + _CLOCKS_APART


def parse_certificate(text: bytes) -> x509.Certificate:
    """The first certificate in PEM text. Raises InvalidInputError when there is none."""
    try:
        return x509.load_pem_x509_certificate(text)
    except ValueError as error:
        raise InvalidInputError(f"no certificate in PEM: {error}") from None


def make_names(identity: Identity, ips: Iterable[str], dns: Iterable[str]) -> Names:
    """Names as people give them. Raises InvalidInputError naming the address that is none, or the reserved name."""
    found, hosts = [], tuple(dict.fromkeys(dns))
    for host in hosts:
        if f".{host}".lower().rstrip(".").endswith(f".{_RESERVED}"):
            raise InvalidInputError(
                f"the host name {host!r} cannot be asked for", hint=f"names below {_RESERVED} come with a role"
            )
    for ip in ips:
        try:
            found.append(str(ipaddress.ip_address(ip)))
        except ValueError:
            raise InvalidInputError(f"{ip!r} is no IP address", hint="host names go with --dns") from None
    return Names(identity, tuple(dict.fromkeys(found)), hosts)


def pem(thing: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """In PEM."""
    return thing.public_bytes(serialization.Encoding.PEM)


def _builder(
    issuer: x509.Name, subject: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
    return builder.not_valid_before(now - _CLOCKS_APART).not_valid_after(ends)


def _names(alternative: x509.SubjectAlternativeName, leave_out: Container[str] = ()) -> Names:
    uris = alternative.get_values_for_type(x509.UniformResourceIdentifier)
    identity = Identity.parse(uris[0]) if len(uris) == 1 else None
    if identity is None:
        raise InvalidInputError(
            f"URI names {uris} do not say who this is", hint="one of the form spiffe://aimesh/<role>/<id> is needed"
        )
    ips: list[str] = [str(ip) for ip in alternative.get_values_for_type(x509.IPAddress)]
    hosts = [host for host in alternative.get_values_for_type(x509.DNSName) if host not in leave_out]
    return make_names(identity, ips, hosts)


def _alternative_names(names: Names, of_role: Iterable[str] = ()) -> x509.SubjectAlternativeName:
    general: list[x509.GeneralName] = [x509.UniformResourceIdentifier(names.identity.uri)]
    general += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in names.ips]
    general += [x509.DNSName(name) for name in (*names.dns, *of_role)]
    return x509.SubjectAlternativeName(general)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _parse_key(text: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"no secret key in PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInputError("the authority's key is not ECDSA", hint="make one with aimesh ca init")
    return key
