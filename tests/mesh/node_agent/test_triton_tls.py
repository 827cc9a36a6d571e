"""TLS on every link of an agent: to its coordinator, to its Triton, from clients; and certificates that are renewed."""

from __future__ import annotations

import asyncio
import urllib.request
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aimesh.membership.v1 import membership_pb2
from meshkit.errors import AimeshError
from meshkit.tls import TlsSettings
from node_agent.plan import READY
from node_agent.triton.client import TritonClient
from node_agent.triton.supervisor import ManagedTriton
from tests.certificates import TestAuthority
from tests.mesh.node_agent.nodes import running_node
from tests.mesh.node_agent.support import add_model, int32_answer, int32_request
from tests.processes import eventually as holds_within

eventually = partial(holds_within, within_s=120.0)


async def _live(address: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a client with these credentials gets an answer."""
    options = [("grpc.ssl_target_name_override", "127.0.0.1")] if credentials else []
    channel = (
        grpc.aio.secure_channel(address, credentials, options=options)
        if credentials
        else grpc.aio.insecure_channel(address)
    )
    async with channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return bool((await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=20)).live)
        except grpc.aio.AioRpcError:
            return False


async def test_triton_answers_those_with_a_certificate_only_and_takes_a_renewed_one(tmp_path: Path) -> None:
    authority, strangers = TestAuthority(tmp_path / "ca"), TestAuthority(tmp_path / "other")
    tls, outsider = authority.issue("node", "node-1"), strangers.issue("node", "node-1")
    # The certificate names 127.0.0.1, and Triton listens on another address.
    async with running_node(tmp_path / "data", tls, authority.issue("coordinator", "c1"), listen="127.0.0.2") as node:
        triton, coordinator = node.agent.triton, node.coordinator
        assert isinstance(triton, ManagedTriton)
        version = coordinator.blobs.version("plus", "1.0.0", add_model(1))
        await coordinator.assign(version)
        await eventually(lambda: coordinator.states().get(("plus", "1.0.0")) == READY)
        assert coordinator.downloads, "fetched over TLS as well"
        address, ports = triton.client.address, node.agent.settings.triton
        assert await _live(address, _credentials(tls))
        assert not await _live(address, None)
        assert not await _live(address, grpc.ssl_channel_credentials(tls.read()[0])), "no certificate shown"
        assert not await _live(address, _credentials(outsider)), "of another authority"
        assert coordinator.reports[-1].triton.http_port == 0, "in no route"
        url = f"http://127.0.0.1:{ports.http_port}/v2/health/live"
        with await asyncio.to_thread(urllib.request.urlopen, url, timeout=20) as answer:
            assert answer.status == 200
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(urllib.request.urlopen, url.replace("127.0.0.1", "127.0.0.2"), timeout=20)

        # Renewed: the session is joined again at once, and Triton goes on with the old one until it is time.
        seen, first = len(coordinator.reports), triton.status.pid
        authority.issue("node", "node-1")
        await eventually(lambda: len(coordinator.hellos) == 2)
        assert [model.state for model in coordinator.hellos[1].report.models] == [READY]
        await eventually(lambda: "until it is started anew, at" in coordinator.reports[-1].triton.message)
        assert all(report.triton.state == membership_pb2.TRITON_STATE_READY for report in coordinator.reports[seen:])
        assert coordinator.leaving == []
        assert int32_answer(await triton.client.infer(int32_request("plus", 1), 20)) == [2]
        assert triton.status.pid == first

        triton.now = lambda: datetime.now(UTC) + timedelta(minutes=58)
        await eventually(lambda: coordinator.reports[-1].triton.pid not in (0, first))
        await eventually(lambda: coordinator.states().get(("plus", "1.0.0")) == READY)
        assert "started anew for its renewed certificates" in " ".join(r.triton.message for r in coordinator.reports)
        assert coordinator.reports[-1].triton.message == "", "nothing more is planned"
        assert int32_answer(await triton.client.infer(int32_request("plus", 1), 20)) == [2]


def _credentials(tls: TlsSettings) -> grpc.ChannelCredentials:
    ca, cert, key = tls.read()
    return grpc.ssl_channel_credentials(ca, key, cert)


async def test_without_tls_what_changes_a_triton_is_its_agents_alone(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await asyncio.wait_for(node.agent.triton.wait_ready(), 120)
        anybody = TritonClient(node.agent.triton.client.address)
        assert await anybody.version()
        assert await anybody.counters(20) == {}
        for call in (anybody.index(), anybody.load("x", 20), anybody.unload("x")):
            with pytest.raises(AimeshError, match="restricted"):
                await call
        await anybody.close()
        url = f"http://127.0.0.1:{node.agent.settings.triton.http_port}/v2/repository/index"
        with pytest.raises(OSError, match="403"):
            await asyncio.to_thread(urllib.request.urlopen, url, b"{}", timeout=20)
