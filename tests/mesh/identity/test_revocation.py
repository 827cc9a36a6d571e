"""Certificates that were revoked: what runs with them ends, nothing begins, and new ones to the same name are good."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from aimesh.membership.v1 import membership_pb2, membership_pb2_grpc
from coordinator.xds.snapshot import CDS
from meshkit import scopes
from meshkit.certificates import Names, new_key, request
from meshkit.tls import Identity, TlsSettings
from tests.mesh.coordinator.conftest import agent
from tests.mesh.identity.conftest import Secure, refused, secure_coordinator
from tests.processes import EtcdServer, eventually

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


async def revoke(secure: Secure, role: str, name: str, *, force: bool = False) -> identity_pb2.Revocation:
    asked = identity_pb2.RevokeCertificatesRequest(role=role, id=name, force=force)
    answer: identity_pb2.RevokeCertificatesResponse = await secure.call("RevokeCertificates", asked)
    return answer.revocation


async def renew(secure: Secure, tls: TlsSettings, name: str) -> None:
    csr = request(new_key(), Names(Identity("node", name))).decode()
    async with secure.caller(tls) as channel:
        stub: Any = identity_pb2_grpc.RenewalServiceStub(channel)
        await stub.Renew(identity_pb2.RenewRequest(csr=csr), timeout=15)


def join(channel: grpc.aio.Channel, name: str) -> Any:
    async def messages() -> AsyncIterator[membership_pb2.AgentMessage]:
        yield membership_pb2.AgentMessage(hello=agent("127.0.0.1:1", name).hello)
        await asyncio.sleep(60)

    return membership_pb2_grpc.MembershipServiceStub(channel).Join(messages(), timeout=60)


def subscribe(channel: grpc.aio.Channel) -> Any:
    async def requests() -> AsyncIterator[discovery_pb2.DiscoveryRequest]:
        yield discovery_pb2.DiscoveryRequest(type_url=CDS)
        await asyncio.sleep(60)

    stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
    return stub.StreamAggregatedResources(requests(), timeout=60)


async def ends(stream: Any) -> tuple[grpc.StatusCode, float]:
    """With which code a stream ends, and when."""

    async def read() -> None:
        async for _ in stream:
            pass

    return await refused(read()), time.monotonic()


async def test_what_runs_with_a_revoked_certificate_ends_within_a_second(secure: Secure, etcd: EtcdServer) -> None:
    """At another coordinator than the one that was told; what is issued afterwards is taken."""
    stolen = secure.authority.issue("node", "n1")
    async with secure_coordinator(etcd, secure.authority, "c2") as other:
        async with other.caller(stolen) as channel:
            streams = join(channel, "n1"), subscribe(channel)
            for stream in streams:
                await anext(aiter(stream))
            endings = [asyncio.create_task(ends(stream)) for stream in streams]
            telling = asyncio.create_task(revoke(secure, "node", "n1"))
            await eventually(lambda: _known(secure), what="the revocation")
            known = time.monotonic()
            for code, at in await asyncio.gather(*endings):
                assert (code, at - known < 1.0) == (UNAUTHENTICATED, True)
            assert await refused(renew(other, stolen, "n1")) == UNAUTHENTICATED
            for begun in (join(channel, "n1"), subscribe(channel)):
                assert (await ends(begun))[0] == UNAUTHENTICATED
        assert await refused(other.call("WhoAmI", identity_pb2.WhoAmIRequest(), stolen)) == UNAUTHENTICATED
        assert (await telling).revoked_by == "admin:root"
        fresh = secure.authority.issue("node", "n1")
        await renew(other, fresh, "n1")
        assert (await other.call("WhoAmI", identity_pb2.WhoAmIRequest(), fresh)).actor == "node:n1"
        await renew(other, secure.authority.issue("node", "n2"), "n2")
    (event,) = [event for event in await secure.events() if event.target == "revoked/node/n1"]
    assert (event.actor, event.before, '"revoked_at"' in event.after) == ("admin:root", "", True)


async def test_nobody_revokes_himself_by_mistake(secure: Secure) -> None:
    assert await refused(revoke(secure, "admin", "root")) == grpc.StatusCode.FAILED_PRECONDITION
    for role, name in (("etcd", "etcd-1"), ("king", "k"), ("node", "a/b")):
        assert await refused(revoke(secure, role, name)) == grpc.StatusCode.INVALID_ARGUMENT
    key = await secure.key("mine", scopes.READ)  # a call with a key ends with the key only
    own = secure.authority.issue("admin", "root")
    async with secure.caller(own, key) as channel:  # `secure.call` has a new certificate made for each call
        stub: Any = identity_pb2_grpc.IdentityServiceStub(channel)
        asked = identity_pb2.RevokeCertificatesRequest(role="admin", id="root", force=True)
        first = (await stub.RevokeCertificates(asked, timeout=15)).revocation
        assert await refused(stub.WhoAmI(identity_pb2.WhoAmIRequest(), timeout=15)) == UNAUTHENTICATED
    again = await revoke(secure, "admin", "root", force=True)
    assert again.revoked_at.seconds > first.revoked_at.seconds


async def test_the_commands(secure: Secure) -> None:
    """As an administrator types them."""
    assert "No certificates" in (await _aimesh(secure, "ca", "revoked")).stdout
    done = await _aimesh(secure, "ca", "revoke", "node", "n1")
    assert "Tritons still take them" in done.stdout, done.stderr
    assert '"n1"' in (await _aimesh(secure, "ca", "revoked", "--json")).stdout
    own = await _aimesh(secure, "ca", "revoke", "admin", "root")
    assert (own.returncode, "--force" in own.stderr) == (5, True), own.stderr


async def _known(secure: Secure) -> bool:
    return bool((await secure.call("ListRevocations", identity_pb2.ListRevocationsRequest())).revocations)


async def _aimesh(secure: Secure, *arguments: str) -> subprocess.CompletedProcess[str]:
    tls = secure.authority.issue("admin", "root")
    shown = {"AIMESH_TLS_CA": str(tls.ca), "AIMESH_TLS_CERT": str(tls.cert), "AIMESH_TLS_KEY": str(tls.key)}
    environ = {**os.environ, "AIMESH_COORDINATORS": secure.settings.address, **shown}
    command = [sys.executable, "-m", "tools.cli.main", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
