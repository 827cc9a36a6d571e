"""First and new certificates over the network: the calls of `aimesh enroll` and `aimesh ca renew`."""

from __future__ import annotations

from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from meshkit.certificates import Names, names_of, new_key, parse_certificate, request
from meshkit.channel import coordinator_channel
from meshkit.errors import AimeshError, InvalidInputError, PreconditionError, UnavailableError
from meshkit.grpc_errors import from_call
from meshkit.settings import load_settings
from meshkit.tls import TlsSettings, channel_credentials
from tools.certificates import replace_identity, write_identity
from tools.cli.client import CALL_TIMEOUT_S
from tools.cli.target import find_mesh


def tls_of(config: Path, role: str) -> tuple[TlsSettings, tuple[str, ...]]:
    """A process's certificate files, and the coordinators that its configuration names.

    Raises InvalidInputError for a role that renews nothing, PreconditionError without TLS.
    """
    from coordinator.settings import CoordinatorSettings
    from node_agent.settings import AgentSettings

    if role == "agent":
        agent = load_settings(AgentSettings, "agent", config)
        tls, addresses = agent.tls, agent.coordinators
    elif role == "coordinator":
        coordinator = load_settings(CoordinatorSettings, "coordinator", config)
        tls, addresses = coordinator.tls, (coordinator.address,)
    else:
        raise InvalidInputError(f"the certificate of role {role!r} is not renewed here", hint="use: aimesh ca issue")
    if not tls.on:
        raise PreconditionError(f"{config} has no [{role}.tls]", hint="get a first certificate: aimesh enroll --help")
    return tls, addresses


async def renew_files(tls: TlsSettings, addresses: tuple[str, ...], state_dir: Path | None) -> x509.Certificate:
    """Replaces a certificate and its key by new ones from the first coordinator that gives them.

    Without `addresses` the mesh that the environment names is asked. Raises what the coordinator answers.
    """
    assert tls.cert is not None
    assert tls.key is not None
    assert tls.ca is not None
    names, key = names_of(parse_certificate(tls.cert.read_bytes())), new_key()
    csr = request(key, names).decode()
    for address in addresses or find_mesh(state_dir).coordinators:
        async with coordinator_channel(address, credentials=channel_credentials(tls)) as channel:
            try:
                answer = await identity_pb2_grpc.RenewalServiceStub(channel).Renew(
                    identity_pb2.RenewRequest(csr=csr), timeout=CALL_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as error:
                failure = error
                continue
        files = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
        replace_identity(files, key, answer.certificate.encode(), answer.ca.encode())
        return parse_certificate(answer.certificate.encode())
    raise failure


def _unreached(error: AimeshError, address: str) -> AimeshError:
    """What to look at when nothing trustworthy answered there; every other error as it is."""
    if not isinstance(error, UnavailableError) or error.hint:
        return error
    hint = f"is {address} a coordinator's enrolment port (coordinator.enroll_port), and --ca its authority's ca.pem?"
    return UnavailableError(error.message, hint=hint, reason=error.reason)


async def enroll(address: str, ca: bytes, token: str, names: Names, out: Path) -> x509.Certificate:
    """Gets a first certificate for a join token and writes it. Raises what the coordinator answers."""
    key: ec.EllipticCurvePrivateKey = new_key()
    csr = request(key, names).decode()
    async with coordinator_channel(address, credentials=grpc.ssl_channel_credentials(ca)) as channel:
        # Not tried again: a token is good once, and the answer may be what was lost.
        try:
            answer = await identity_pb2_grpc.EnrollmentServiceStub(channel).Enroll(
                identity_pb2.EnrollRequest(token=token, csr=csr), timeout=CALL_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise _unreached(from_call(error), address) from None
    write_identity(out, key, answer.certificate.encode(), answer.ca.encode())
    return parse_certificate(answer.certificate.encode())
