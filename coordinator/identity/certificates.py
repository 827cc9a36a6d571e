"""Certificates given by a coordinator: a machine's first for a join token, and new ones for those that have one."""

from __future__ import annotations

import ipaddress
import json
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from coordinator import keys
from coordinator.etcd import Etcd
from coordinator.hello import check_node_id
from coordinator.identity.join_tokens import JoinTokens
from coordinator.identity.outbox import Outbox
from coordinator.identity.revocations import Revocations
from coordinator.mirror import Mirror
from coordinator.settings import CoordinatorSettings
from coordinator.state import State
from meshkit.auth import act_as, current_principal
from meshkit.certificates import Authority, Names, names_of, parse_certificate, pem, read_request
from meshkit.errors import AimeshError, InvalidInputError, PermissionDeniedError, PreconditionError, SupersededError

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Issuer:
    """Signs with the authority's key, read anew each time so that it may be replaced."""

    settings: CoordinatorSettings
    now: Clock = lambda: datetime.now(UTC)

    def issue(self, names: Names, public: Any) -> tuple[bytes, bytes]:
        """(certificate, authority's certificates) in PEM. Raises PreconditionError without a key to sign with."""
        ca, _, _ = self.settings.tls.read()
        lifetime = timedelta(days=self.settings.auth.certificate_days)
        return self._authority(ca).issue(names, public, self.now(), lifetime), ca

    def _authority(self, ca: bytes) -> Authority:
        """The one of the authority's certificates that the key belongs to."""
        path = self.settings.auth.ca_key
        if path is None:
            raise PreconditionError(
                "this coordinator gives no certificates",
                hint="set coordinator.auth.ca_key on one, or use: aimesh ca issue",
            )
        try:
            key = path.read_bytes()
        except OSError as error:
            raise PreconditionError(f"cannot read coordinator.auth.ca_key {path}: {error.strerror}") from None
        failure: AimeshError = InvalidInputError("no certificate")
        for certificate in x509.load_pem_x509_certificates(ca):
            try:
                return Authority.load(pem(certificate), key)
            except InvalidInputError as error:
                failure = error
        raise PreconditionError(
            f"coordinator.auth.ca_key and coordinator.tls.ca do not fit: {failure.message}",
            hint="name the key and the certificate that one `aimesh ca init` made",
        )


@dataclass
class EnrollmentService(identity_pb2_grpc.EnrollmentServiceServicer):
    """Serves the one rpc that needs no certificate."""

    mirror: Mirror
    tokens: JoinTokens
    issuer: Issuer

    async def Enroll(self, request: identity_pb2.EnrollRequest, context: Any) -> identity_pb2.EnrollResponse:  # noqa: N802
        """A machine's first certificate; see identity.proto."""
        held, token = await self.tokens.find(request.token)
        act_as(f"token:{token.id}")
        names, public = read_request(request.csr.encode())
        _check_identity(names, token, self.mirror.state)
        _check_names(names, token.names, _peer_ip(context.peer()))
        certificate, ca = self.issuer.issue(names, public)
        await self.tokens.use_up(held, names)
        return identity_pb2.EnrollResponse(certificate=certificate.decode(), ca=ca.decode())


@dataclass
class RenewalService(identity_pb2_grpc.RenewalServiceServicer):
    """Serves those that come with a certificate of their own."""

    etcd: Etcd
    outbox: Outbox
    issuer: Issuer
    revocations: Revocations

    async def Renew(self, request: identity_pb2.RenewRequest, context: Any) -> identity_pb2.RenewResponse:  # noqa: N802
        """A new certificate for the caller's identity; see identity.proto."""
        caller = current_principal()
        if caller.identity is None:
            raise PreconditionError("the connection has no certificate to renew", hint="call with TLS")
        if caller.identity.role == "gateway":
            raise PermissionDeniedError(
                "a gateway's certificate is not renewed over the network: users' calls come with it",
                hint=f"run: aimesh ca issue gateway {caller.identity.id}",
            )
        current = names_of(parse_certificate(caller.certificate))
        names, public = read_request(request.csr.encode())
        if not current.covers(names):
            raise PermissionDeniedError(
                f"the request asks for more than {current.identity.uri} has", hint="ask for the same identity and names"
            )
        unrevoked = await self.revocations.unrevoked(caller)
        certificate, ca = self.issuer.issue(names, public)
        given = json.dumps({"certificate": [names.identity.uri, *names.ips, *names.dns]}).encode()
        target = f"{keys.ROOT}certificates/{names.identity.role}/{names.identity.id}"
        if await self.etcd.txn([unrevoked], [await self.outbox.event(target, None, given)]) is None:
            raise SupersededError(f"certificates of {names.identity.uri} were revoked meanwhile", hint="try again")
        return identity_pb2.RenewResponse(certificate=certificate.decode(), ca=ca.decode())


def _check_identity(names: Names, token: identity_pb2.JoinToken, state: State) -> None:
    identity = names.identity
    if identity.role != "node":
        raise PermissionDeniedError(f"a join token is for nodes, not for {identity.uri}", hint="use: aimesh ca issue")
    check_node_id(identity.id)
    if token.node_id and token.node_id != identity.id:
        raise PermissionDeniedError(f"the join token is for node {token.node_id!r}, not {identity.id!r}")
    if not token.node_id and (identity.id in state.nodes or identity.id in state.members):
        raise PermissionDeniedError(
            f"node {identity.id!r} is known already, and the join token names no node",
            hint=f"make a token for it: aimesh tokens create --node-id {identity.id}; or aimesh forget it first",
        )


def _check_names(names: Names, allowed: Iterable[str], peer: str) -> None:
    """A node may be reached where it calls from, and where the token says; else it could pass for another machine."""
    may = {"localhost", peer, *allowed}
    wrong = [ip for ip in names.ips if ip not in may and not ipaddress.ip_address(ip).is_loopback]
    wrong += [name for name in names.dns if name not in may]
    if wrong:
        raise PermissionDeniedError(
            f"the join token does not allow the names {', '.join(wrong)}; the request came from {peer}",
            hint="allow them in the token: aimesh tokens create --name ...",
            reason="NAME_NOT_ALLOWED",
        )


def _peer_ip(peer: str) -> str:
    """The address in gRPC's form of a peer, ipv4:1.2.3.4:5 or ipv6:%5B::1%5D:5."""
    address = urllib.parse.unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return peer
