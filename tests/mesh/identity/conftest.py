"""Coordinators with TLS in this process, over a real etcd, and callers with each kind of credentials."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from coordinator.identity.signing import create_key_file
from coordinator.main import serve
from coordinator.settings import AuthSettings, CoordinatorSettings, EtcdSettings
from meshkit.certificates import key_pem
from meshkit.credentials import ClientCredentials
from meshkit.scopes import Scope
from meshkit.shutdown import Shutdown
from meshkit.tls import TlsSettings
from tests.certificates import TestAuthority
from tests.processes import EtcdServer, etcd_server, eventually, free_ports


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path / "etcd") as started:
        yield started


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    return TestAuthority(tmp_path / "pki")


@dataclass(frozen=True)
class Secure:
    """A coordinator that runs, and callers of it."""

    settings: CoordinatorSettings
    authority: TestAuthority
    task: asyncio.Task[None]

    @contextlib.asynccontextmanager
    async def caller(self, tls: TlsSettings | None = None, api_key: str = "") -> AsyncIterator[grpc.aio.Channel]:
        """A channel that shows a certificate (an administrator's when none is named), and an API key."""
        tls = tls or self.authority.issue("admin", "root")
        credentials = ClientCredentials(tls.ca, tls.cert, tls.key, api_key)
        async with credentials.coordinator_channel(self.settings.address) as channel:
            yield channel

    async def call(self, method: str, request: Any, tls: TlsSettings | None = None, api_key: str = "") -> Any:
        """One call of IdentityService."""
        async with self.caller(tls, api_key) as channel:
            return await getattr(identity_pb2_grpc.IdentityServiceStub(channel), method)(request, timeout=15)

    async def key(self, name: str, *scopes: Scope) -> str:
        """A new API key's text."""
        answer = await self.call("CreateKey", identity_pb2.CreateKeyRequest(name=name, scopes=scopes))
        return str(answer.secret)

    async def events(self) -> list[identity_pb2.AuditEvent]:
        """The audit log."""
        return list((await self.call("ListAuditEvents", identity_pb2.ListAuditEventsRequest())).events)

    async def status(self, tls: TlsSettings | None = None, api_key: str = "") -> cluster_pb2.Status:
        async with self.caller(tls, api_key) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            return (await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=15)).status


@contextlib.asynccontextmanager
async def secure_coordinator(
    server: EtcdServer, authority: TestAuthority, name: str = "c1", **changes: object
) -> AsyncIterator[Secure]:
    """Serves with TLS, keys, and a port for enrolment, until the block ends."""
    ca_key = authority.folder / "ca.key"
    ca_key.write_bytes(key_pem(authority.authority.key))
    main, enrolment = free_ports(2)
    values: dict[str, object] = {
        "id": name,
        "data_dir": authority.folder.parent / name,
        "port": main,
        "enroll_port": enrolment,
        "leader_ttl_s": 2,
        "drain_s": 0.2,
        "etcd": EtcdSettings(endpoints=(server.address,)),
        "tls": authority.issue("coordinator", name),
        "auth": AuthSettings(ca_key=ca_key, key_file=authority.folder / "api-keys.pem"),
        **changes,
    }
    settings = CoordinatorSettings(**values)  # type: ignore[arg-type]
    shutdown = Shutdown()
    running = asyncio.create_task(serve(settings, shutdown))
    started = Secure(settings, authority, running)
    try:
        await eventually(lambda: _leads(started), within_s=60, what="a leader")
        yield started
    finally:
        shutdown.requested.set()
        async with asyncio.timeout(30):
            await running


@pytest.fixture
async def secure(etcd: EtcdServer, authority: TestAuthority) -> AsyncIterator[Secure]:
    create_key_file(authority.folder / "api-keys.pem")
    async with secure_coordinator(etcd, authority) as started:
        yield started


async def _leads(started: Secure) -> bool:
    if started.task.done():
        started.task.result()
    try:
        return any(c.leader for c in (await started.status()).coordinators)
    except grpc.aio.AioRpcError:
        return False


async def refused(call: Any) -> grpc.StatusCode:
    """The code with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code()


async def stream_refused(call: Callable[[], Any]) -> grpc.StatusCode:
    """The code with which a call that streams its requests fails.

    grpc.aio says INTERNAL itself when the stream ends while a message is being written: then it is called again.
    """
    while (code := await refused(call())) == grpc.StatusCode.INTERNAL:
        pass
    return code
