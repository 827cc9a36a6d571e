"""Large blobs among agents: each chunk leaves the coordinator about once, whatever dies, lies or rots."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from meshkit.channel import aio_channel
from meshkit.chunks import CHUNK
from meshkit.errors import (
    DataLossError,
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from meshkit.server import MeshServer
from meshkit.tls import TlsSettings
from node_agent import links
from node_agent.bandwidth import Limit
from node_agent.links import Links
from node_agent.serving import NodeArtifacts, node_server
from node_agent.settings import AgentSettings
from node_agent.store import ModelStore
from tests.certificates import TestAuthority
from tests.mesh.coordinator.conftest import RunningCoordinator, coordinator, model
from tests.mesh.node_agent.distribution import (
    MIB,
    all_fetch,
    blob_of,
    download,
    flip_byte,
    pushed,
    receiver,
    receivers,
    sent,
)
from tests.processes import EtcdServer, etcd_server, eventually


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path / "etcd") as started:
        yield started


@pytest.fixture
async def c1(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with coordinator(etcd, tmp_path, node_ttl_s=10) as started:
        yield started


async def test_many_agents_cost_the_coordinator_about_one_copy(c1: RunningCoordinator, tmp_path: Path) -> None:
    file = await pushed(c1, blob_of(tmp_path, 64 * MIB - 5))
    async with receivers(tmp_path, c1, 6) as nodes:
        await all_fetch(nodes, file)
        assert all(node.whole(file) for node in nodes)
        assert sent(nodes) <= 1.3 * file.size
        assert sent(nodes) + sum(node.fetcher.traffic.from_peers for node in nodes) >= 6 * file.size
        for node in nodes:
            assert node.seen == sorted(node.seen)
            assert node.seen[-1] == file.size
            node.report()
        async with receiver(tmp_path, "late", lambda: [c1.settings.address]) as late:
            await eventually(lambda: _reported(c1, "n0", file.digest), what="what the nodes hold")
            await late.fetch(file)
            assert late.fetcher.traffic.from_coordinators == 32 * 8, "the chunk list alone"


async def _reported(c1: RunningCoordinator, node_id: str, digest: str) -> bool:
    node = await c1.node(node_id)
    return node is not None and digest in node.report.blobs


async def test_a_fetch_that_is_cut_goes_on_and_trusts_only_what_it_verified(
    c1: RunningCoordinator, tmp_path: Path
) -> None:
    file = await pushed(c1, blob_of(tmp_path, 48 * MIB))
    async with receiver(tmp_path, "n1", lambda: [c1.settings.address], parallel=1) as node:
        fetching = asyncio.create_task(node.fetch(file))
        await eventually(lambda: node.seen and node.seen[-1] >= 2 * CHUNK, what="two chunks")
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        came = node.seen[-1] // CHUNK
    partial = tmp_path / "n1" / "chunked" / file.digest
    again = ModelStore(tmp_path / "n1", 1 << 40)
    digests = [again.path(file.chunks).read_bytes()[start : start + 32] for start in range(0, 6 * 32, 32)]
    held = sorted(again.coming(file.digest, file.size, digests).held())
    assert len(held) >= came, "also after the process is gone"
    flip_byte(partial, held[0] * CHUNK + 77)
    async with receiver(tmp_path, "n1", lambda: [c1.settings.address]) as node:
        await node.fetch(file)
        assert node.whole(file)
        assert node.fetcher.traffic.from_coordinators == (6 - len(held) + 1) * CHUNK


async def test_without_coordinators_agents_go_on_as_far_as_they_can(etcd: EtcdServer, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as nodes:
        async with coordinator(etcd, tmp_path, "c1", node_ttl_s=10) as c1:
            port, address = c1.settings.port, c1.settings.address
            file = await pushed(c1, blob_of(tmp_path, 64 * MIB))
            slow = Limit(32 * MIB)
            first, second = [
                await nodes.enter_async_context(receiver(tmp_path, name, lambda: [address], parallel=2, limit=slow))
                for name in ("n1", "n2")
            ]
            fetching = [asyncio.create_task(each.fetch(file)) for each in (first, second)]
            await eventually(lambda: min(len(first.seen), len(second.seen)) >= 2, what="a chunk each")
        ended = await asyncio.gather(*fetching, return_exceptions=True)
        assert all(isinstance(each, UnavailableError) for each in ended), ended

        async def level() -> bool:
            await asyncio.gather(*(each.fetch(file) for each in (first, second)), return_exceptions=True)
            return first.store._coming[file.digest].held() == second.store._coming[file.digest].held()

        await eventually(level, what="each has what either had")
        async with coordinator(etcd, tmp_path, "c1", port=port):
            await all_fetch([first, second], file)
        assert first.whole(file)
        assert second.whole(file)
        assert sent([first, second]) <= 1.6 * file.size


class Liar(NodeArtifacts):
    """Sends other bytes than it has."""

    async def DownloadBlob(  # noqa: N802
        self, request: artifacts_pb2.DownloadBlobRequest, context: object
    ) -> AsyncIterator[artifacts_pb2.DownloadBlobResponse]:
        async for answer in super().DownloadBlob(request, context):
            yield artifacts_pb2.DownloadBlobResponse(data=bytes(len(answer.data)))


def liar_server(told: list[int], settings: AgentSettings, store: ModelStore) -> MeshServer:
    class Counting(Liar):
        async def DownloadBlob(  # noqa: N802
            self, request: artifacts_pb2.DownloadBlobRequest, context: object
        ) -> AsyncIterator[artifacts_pb2.DownloadBlobResponse]:
            told.append(request.offset)
            async for answer in super().DownloadBlob(request, context):
                yield answer

    server = MeshServer(f"{settings.address}:0", ("aimesh.artifacts.v1.ArtifactsService",))
    artifacts_pb2_grpc.add_ArtifactsServiceServicer_to_server(Counting(store, Limit()), server.grpc)
    return server


async def test_a_peer_that_lies_is_refused_and_asked_no_more(c1: RunningCoordinator, tmp_path: Path) -> None:
    file = await pushed(c1, blob_of(tmp_path, 40 * MIB))
    asked: list[int] = []
    coordinators = lambda: [c1.settings.address]  # noqa: E731
    async with (
        receiver(tmp_path, "liar", coordinators, functools.partial(liar_server, asked)) as liar,
        receiver(tmp_path, "n1", coordinators, parallel=1) as first,
        receiver(tmp_path, "n2", coordinators, parallel=1) as second,
        receiver(tmp_path, "n3", coordinators, parallel=1) as third,
    ):
        await liar.fetch(file)
        for node in (first, second):
            await node.fetch(file)
            assert node.whole(file)
        assert len(asked) <= 2, "once by each"
        asked.clear()
        await third.fetch(file)
        assert third.whole(file)
        assert asked == [], "two complaints are believed"


async def test_a_byte_that_flips_on_any_disk_is_found_and_repaired(c1: RunningCoordinator, tmp_path: Path) -> None:
    files = [await pushed(c1, blob_of(tmp_path, size), f"m{size}") for size in (24 * MIB + 1, 5 * MIB)]
    coordinators = lambda: [c1.settings.address]  # noqa: E731
    async with (
        receiver(tmp_path, "n1", coordinators, joined=False) as first,
        receiver(tmp_path, "n2", coordinators) as second,
    ):
        for file in files:
            await first.fetch(file)
            # 1. An agent's copy: found before it is used, and fetched again.
            flip_byte(first.store.path(file.digest), 3 * MIB)
            await first.fetch(file)
            assert first.whole(file)
            # 2. The coordinator's only one: refused by an agent, which complains.
            flip_byte(tmp_path / "c1" / "blobs" / file.digest, 3 * MIB)
            with pytest.raises((DataLossError, NotFoundError)):
                await second.fetch(file)
            await eventually(lambda: not (tmp_path / "c1" / "blobs" / file.digest).exists(), what="a discarded blob")  # noqa: B023
        # 3. As soon as an agent that has a good copy can be reached, it is everybody's again.
        await first.session.join()
        first.report()
        for file in files:
            await eventually(lambda: _sound(c1, file.digest), what="the coordinator's repair")  # noqa: B023
            await second.fetch(file)
            assert second.whole(file)


async def _sound(c1: RunningCoordinator, digest: str) -> bool:
    request = artifacts_pb2.DownloadBlobRequest(digest=digest, held_here=True)
    with contextlib.suppress(grpc.aio.AioRpcError):
        return hashlib.sha256(await download(c1.settings.address, request)).hexdigest() == digest
    return False


async def test_an_agents_server_gives_verified_bytes_and_nothing_else(c1: RunningCoordinator, tmp_path: Path) -> None:
    file = await pushed(c1, blob_of(tmp_path, 20 * MIB))
    async with receiver(tmp_path, "n1", lambda: [c1.settings.address]) as node, aio_channel(node.address) as channel:
        stub = artifacts_pb2_grpc.ArtifactsServiceStub(channel)
        for request in (
            artifacts_pb2.DownloadBlobRequest(digest=file.digest),
            artifacts_pb2.DownloadBlobRequest(digest="a" * 64, offset=5, length=7),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await download(node.address, request)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        await node.fetch(file)
        got = await download(node.address, artifacts_pb2.DownloadBlobRequest(digest=file.digest, offset=3, length=9))
        assert got == (tmp_path / f"blob-0-{20 * MIB}").read_bytes()[3:12]
        stat = await stub.StatBlob(artifacts_pb2.StatBlobRequest(digest=file.digest), timeout=5)
        assert (stat.complete, stat.received) == (True, file.size)
        for call in (
            stub.LocateChunks(artifacts_pb2.LocateChunksRequest(digest=file.digest), timeout=5),
            stub.UploadBlob(iter([artifacts_pb2.UploadBlobRequest(digest="a" * 64, data=b"x")]), timeout=5),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_with_tls_only_the_meshs_own_are_served(tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path / "pki")
    tls = authority.issue("node", "n1")
    content = b"weights"
    store = ModelStore(tmp_path / "n1", 1 << 30)
    digest = hashlib.sha256(content).hexdigest()
    store.append(digest, content)
    store.commit(digest)
    server = node_server(AgentSettings(node_id="n1", data_dir=tmp_path / "n1", tls=tls), store)
    await server.start()
    request = artifacts_pb2.DownloadBlobRequest(digest=digest, length=len(content))
    address = f"127.0.0.1:{server.port}"

    async def read(shown: TlsSettings) -> bytes:
        async with Links(shown, Limit()) as links:
            return bytes(await links.read_chunk(address, request, peer=True))

    try:
        for shown in (authority.issue("node", "n2"), authority.issue("coordinator", "c1")):
            assert await read(shown) == content
        with pytest.raises(PermissionDeniedError):
            await read(authority.issue("client", "someone"))
        for stranger in (TlsSettings(), TestAuthority(tmp_path / "other").issue("node", "n2")):
            with pytest.raises(UnavailableError):
                await read(stranger)
    finally:
        await server.stop(0)
    with pytest.raises(InvalidInputError, match=r"agent\.listen = '0\.0\.0\.0' would be reachable"):
        AgentSettings(node_id="n1", data_dir=tmp_path, listen="0.0.0.0").check_bindings()


class Trickle(NodeArtifacts):
    """Sends a byte now and then, without end."""

    async def DownloadBlob(  # noqa: N802
        self, request: artifacts_pb2.DownloadBlobRequest, context: object
    ) -> AsyncIterator[artifacts_pb2.DownloadBlobResponse]:
        while True:
            yield artifacts_pb2.DownloadBlobResponse(data=b"x")
            await asyncio.sleep(0.02)


async def test_one_that_sends_byte_by_byte_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "CHUNK_TIMEOUT_S", 0.2)
    server = MeshServer("127.0.0.1:0", ("aimesh.artifacts.v1.ArtifactsService",))
    trickle = Trickle(ModelStore(tmp_path, 1 << 30), Limit())
    artifacts_pb2_grpc.add_ArtifactsServiceServicer_to_server(trickle, server.grpc)
    await server.start()
    request = artifacts_pb2.DownloadBlobRequest(digest="a" * 64, length=CHUNK)
    try:
        async with Links(TlsSettings(), Limit()) as some:
            with pytest.raises(DeadlineError, match=r"took more than 0\.2 s"):
                await some.read_chunk(f"127.0.0.1:{server.port}", request, peer=True)
    finally:
        await server.stop(0)


async def test_a_cap_holds_for_all_that_is_sent(c1: RunningCoordinator, tmp_path: Path) -> None:
    file = await pushed(c1, blob_of(tmp_path, 16 * MIB))
    rate = 16 * MIB
    coordinators = lambda: [c1.settings.address]  # noqa: E731
    async with (
        receiver(tmp_path, "n1", coordinators, serves=rate) as first,
        receiver(tmp_path, "n2", coordinators) as second,
    ):
        await first.fetch(file)
        began = asyncio.get_running_loop().time()
        await second.fetch(file)
        assert second.fetcher.traffic.from_peers == file.size
        assert asyncio.get_running_loop().time() - began >= 0.7


async def test_questions_and_lists_that_make_no_sense_are_refused(c1: RunningCoordinator, tmp_path: Path) -> None:
    file = await pushed(c1, blob_of(tmp_path, 9 * MIB))
    stub = artifacts_pb2_grpc.ArtifactsServiceStub(c1.channel)

    async def refused(**changes: object) -> grpc.StatusCode:
        values = {"digest": file.digest, "node_id": "n1", "wanted": [0], "total": 2, **changes}
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.LocateChunks(artifacts_pb2.LocateChunksRequest(**values), timeout=5)  # type: ignore[arg-type]
        return error.value.code()

    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert await refused(digest="f" * 64) is grpc.StatusCode.NOT_FOUND
    for changes in (
        {"total": 3},
        {"wanted": [2]},
        {"held": [9]},
        {"wanted": [0] * 65},
        {"digest": "x"},
        {"node_id": ""},
    ):
        assert await refused(**changes) is invalid, changes
    registry = registry_pb2_grpc.RegistryServiceStub(c1.channel)
    for listed in ("e" * 64, file.digest):
        version = model("other")
        version.files[0].CopyFrom(file)
        version.files[0].chunks = listed
        with pytest.raises(grpc.aio.AioRpcError, match="chunk list") as error:
            await registry.CreateVersion(registry_pb2.CreateVersionRequest(version=version), timeout=10)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
