"""Credentials that are expired, another mesh's, another node's or revoked; and certificates renewed while all runs."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.identity.v1 import identity_pb2
from aimesh.membership.v1 import membership_pb2, membership_pb2_grpc
from coordinator.identity.signing import create_key_file
from coordinator.settings import AuthSettings
from meshkit import scopes
from meshkit.certificates import parse_certificate
from meshkit.errors import InvalidInputError
from meshkit.tls import TlsSettings
from tests.certificates import TestAuthority
from tests.mesh.coordinator.conftest import agent, coordinator
from tests.mesh.identity.conftest import Secure, refused, secure_coordinator, stream_refused
from tests.processes import EtcdServer, eventually

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


async def test_no_connection_without_a_certificate_of_this_mesh_that_is_valid(secure: Secure, tmp_path: Path) -> None:
    other = TestAuthority(tmp_path / "other")
    stranger = other.issue("admin", "root")
    for tls in (
        secure.authority.issue("admin", "late", lives=timedelta(seconds=-1)),
        TlsSettings(ca=secure.authority.ca, cert=stranger.cert, key=stranger.key),
    ):
        assert await refused(secure.call("WhoAmI", identity_pb2.WhoAmIRequest(), tls)) == grpc.StatusCode.UNAVAILABLE
    async with grpc.aio.insecure_channel(secure.settings.address) as plain:
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(plain)
        assert await refused(stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=5)) == grpc.StatusCode.UNAVAILABLE
    assert (await secure.status()).coordinators


async def test_an_agent_speaks_for_its_own_node_only(secure: Secure) -> None:
    hello = agent("127.0.0.1:1", "n1").hello

    async def join(tls: TlsSettings) -> Any:
        async def messages() -> AsyncIterator[membership_pb2.AgentMessage]:
            yield membership_pb2.AgentMessage(hello=hello)
            await asyncio.sleep(60)

        async with secure.caller(tls) as channel:
            stub: Any = membership_pb2_grpc.MembershipServiceStub(channel)
            return await anext(aiter(stub.Join(messages(), timeout=20)))

    assert await stream_refused(lambda: join(secure.authority.issue("node", "n2"))) == DENIED
    assert await stream_refused(lambda: join(secure.authority.issue("admin", "n1"))) == DENIED
    assert (await join(secure.authority.issue("node", "n1"))).welcome.epoch > 0


async def test_a_revoked_key_ends_everywhere_at_once(secure: Secure, etcd: EtcdServer) -> None:
    """Also the calls that are being made with it, at another coordinator than the one that was told."""
    tls = secure.authority.issue("client", "program")
    key = await secure.key("reader", scopes.READ)
    async with secure_coordinator(etcd, secure.authority, "c2") as other, other.caller(tls, key) as channel:
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        watch = stub.WatchStatus(cluster_pb2.WatchStatusRequest(), timeout=60)
        await anext(aiter(watch))
        reader = asyncio.create_task(_end_of(watch))
        await secure.call("RevokeKey", identity_pb2.RevokeKeyRequest(name="reader"))
        revoked = time.monotonic()
        assert await reader == UNAUTHENTICATED
        assert await refused(stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=5)) == UNAUTHENTICATED
        assert time.monotonic() - revoked < 5.0, "no cache of keys is waited for"
        assert await refused(secure.status(tls, key)) == UNAUTHENTICATED
    missing = secure.call("RevokeKey", identity_pb2.RevokeKeyRequest(name="reader"))
    assert await refused(missing) == grpc.StatusCode.NOT_FOUND


async def test_a_key_ends_when_its_time_is_over(secure: Secure) -> None:
    request = identity_pb2.CreateKeyRequest(name="short", scopes=[scopes.READ])
    request.ttl.FromSeconds(2)
    key = (await secure.call("CreateKey", request)).secret
    tls = secure.authority.issue("client", "program")
    async with secure.caller(tls, key) as channel:
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        watch = stub.WatchStatus(cluster_pb2.WatchStatusRequest(), timeout=60)
        assert await _end_of(watch) == UNAUTHENTICATED
    assert await refused(secure.status(tls, key)) == UNAUTHENTICATED
    request.ClearField("ttl")
    await eventually(lambda: _created(secure, request), within_s=20, what="its name is free")


async def test_keys_are_kept_as_hashes_and_shown_once(secure: Secure) -> None:
    key = await secure.key("ci", scopes.DEPLOY)
    listed = (await secure.call("ListKeys", identity_pb2.ListKeysRequest())).keys
    assert [(item.name, item.hash, item.created_by) for item in listed] == [("ci", "", "admin:root")]
    again = secure.key("ci", scopes.READ)
    assert await refused(again) == grpc.StatusCode.ALREADY_EXISTS
    assert await refused(secure.key("nodes", scopes.NODE)) == grpc.StatusCode.INVALID_ARGUMENT
    stored = [path.read_bytes() for path in secure.settings.data_dir.rglob("*") if path.is_file()]
    assert not any(key.encode() in content for content in stored)


async def test_a_coordinator_with_another_key_file_says_so(secure: Secure, etcd: EtcdServer, tmp_path: Path) -> None:
    key = await secure.key("reader", scopes.READ)
    create_key_file(tmp_path / "other.pem")
    auth = AuthSettings(key_file=tmp_path / "other.pem")
    async with secure_coordinator(etcd, secure.authority, "c2", auth=auth, enroll_port=0) as other:
        precondition = grpc.StatusCode.FAILED_PRECONDITION
        assert await refused(other.status(api_key=key)) == precondition
        assert await refused(other.key("mine", scopes.READ)) == precondition


async def test_certificates_are_replaced_while_all_runs(secure: Secure) -> None:
    """New connections see the new certificate; calls that are being made go on."""
    async with secure.caller() as channel:
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(channel)
        watch = aiter(stub.WatchStatus(cluster_pb2.WatchStatusRequest(), timeout=60))
        await anext(watch)
        before = await _shown_by(secure)
        secure.authority.issue("coordinator", "c1")
        await eventually(lambda: _differs(secure, before), what="the new certificate")
        await secure.key("another", scopes.READ)
        await anext(watch)
    assert secure.settings.tls.key is not None
    secure.settings.tls.key.write_text("half a file")
    assert (await secure.status()).coordinators  # the pair read before stays in use


async def test_the_authority_is_replaced_while_all_runs(secure: Secure, tmp_path: Path) -> None:
    """Both are trusted for a while: certificates of the new one are shown and taken beside those of the old one."""
    new = TestAuthority(tmp_path / "new")
    secure.authority.ca.write_bytes(secure.authority.ca.read_bytes() + new.ca.read_bytes())
    client, server = new.issue("admin", "root"), new.issue("coordinator", "c1")
    both = TlsSettings(ca=secure.authority.ca, cert=client.cert, key=client.key)
    assert (await secure.status(both)).coordinators
    before = await _shown_by(secure)
    for shown, replaced in ((server.key, secure.settings.tls.key), (server.cert, secure.settings.tls.cert)):
        assert shown is not None
        assert replaced is not None
        replaced.write_bytes(shown.read_bytes())
    await eventually(lambda: _differs(secure, before), what="the new authority's certificate")
    assert (await secure.status()).coordinators


async def test_a_coordinator_is_not_bound_to_other_addresses_without_tls(tmp_path: Path, etcd: EtcdServer) -> None:
    with pytest.raises(InvalidInputError, match="without TLS"):
        async with coordinator(etcd, tmp_path, host="0.0.0.0"):
            raise AssertionError("it started")


async def _end_of(stream: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for _ in stream:
            pass
    return failure.value.code()


async def _created(secure: Secure, request: identity_pb2.CreateKeyRequest) -> bool:
    try:
        await secure.call("CreateKey", request)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.ALREADY_EXISTS:
            raise
        return False
    return True


async def _shown_by(secure: Secure) -> int:
    """The serial number of the certificate that a new connection is shown."""
    text = await asyncio.to_thread(_server_certificate, secure.settings.port, secure.authority.issue("client", "look"))
    return parse_certificate(text.encode()).serial_number


def _server_certificate(port: int, tls: TlsSettings) -> str:
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.load_cert_chain(str(tls.cert), str(tls.key))
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True) or b"")


async def _differs(secure: Secure, before: int) -> bool:
    return await _shown_by(secure) != before
