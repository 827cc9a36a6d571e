"""Several coordinators: any of them shows every load, serves every blob, and takes every write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc

from aimesh.artifacts.v1 import artifacts_pb2
from tests.mesh.coordinator.conftest import RunningCoordinator, agent, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, target
from tests.processes import EtcdServer, eventually
from tools.cli.status_command import get_status
from tools.cli.target import Mesh


async def test_loads_and_blobs_of_another_coordinator(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path, "c1") as c1, coordinator(etcd, tmp_path, "c2") as c2:
        n1 = agent(c1.settings.address)
        await n1.join()
        await eventually(lambda: _cpu(c2), what="a load that the other coordinator holds")
        first, second = Api(c1), Api(c2)
        await first.upload(CONTENT)
        stat = await second.artifacts.StatBlob(artifacts_pb2.StatBlobRequest(digest=DIGEST), timeout=5)
        assert (stat.complete, stat.received) == (True, 0), "nobody need upload it again"
        await second.push(model(digest=DIGEST))
        await second.deploy("m", target())
        await eventually(lambda: n1.models() == {"m:1.0.0"}, what="a follower's write carried out")
        assert await _download(second, 5) == CONTENT[5:]
        for name in ("c1", "c2"):
            await eventually((tmp_path / name / "blobs" / DIGEST).exists, what=f"a copy on {name}")
        await n1.vanish()
    async with coordinator(etcd, tmp_path, "c2") as c2:
        assert await _download(Api(c2), 0) == CONTENT, "losing a coordinator loses no model"


async def _download(api: Api, offset: int) -> bytes:
    request = artifacts_pb2.DownloadBlobRequest(digest=DIGEST, offset=offset)
    return b"".join([part.data async for part in api.artifacts.DownloadBlob(request, timeout=10)])


async def _cpu(c2: RunningCoordinator) -> bool:
    return any(entry.load.cpu_utilization == 0.5 for entry in (await c2.status()).nodes)


async def test_a_coordinator_that_alone_lost_etcd_sends_its_agents_away(etcd: EtcdServer, tmp_path: Path) -> None:
    async with cut_link(etcd.address) as (through, cut):
        far = EtcdServer(through, etcd.process)
        async with coordinator(far, tmp_path, "c1") as c1, coordinator(etcd, tmp_path, "c2") as c2:
            n1 = agent(c1.settings.address)
            await n1.join()
            await cut()
            # grpc.aio says INTERNAL itself when the stream ends while a heartbeat is being written.
            assert await n1.call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
            again = agent(c2.settings.address)
            await again.join()
            assert await c2.node_state("n1") == "READY"
            await eventually(lambda: _leads(c2), what="another leader")
            for order in ((c1, c2), (c2, c1)):
                mesh = Mesh(tuple(each.settings.address for each in order), "", None, None)
                assert not (await get_status(mesh)).frozen, "commands go to the one that is well"
            await n1.stop()
            await again.vanish()


@contextlib.asynccontextmanager
async def cut_link(address: str) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """A way to an address that can be cut for good."""
    host, _, port = address.rpartition(":")
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)

    async def cut() -> None:
        server.close()
        for writer in writers:
            writer.close()

    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
    finally:
        await cut()


async def _leads(c2: RunningCoordinator) -> bool:
    return [each.id for each in (await c2.status()).coordinators if each.leader] == ["c2"]
