"""A coordinator with a large blob, and the fetching part of agents that are in its mesh."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from meshkit.channel import aio_channel
from meshkit.chunks import CHUNK, digests_of
from meshkit.server import MeshServer
from node_agent.bandwidth import Limit
from node_agent.fetch import Fetcher
from node_agent.serving import node_server
from node_agent.settings import AgentSettings
from node_agent.store import ModelStore
from tests.mesh.coordinator.conftest import Agent, RunningCoordinator, agent, model
from tools.cli.upload import upload_pieces

MIB = 1 << 20


def blob_of(folder: Path, size: int, seed: int = 0) -> Path:
    """A file in which no two chunks are the same."""
    path = folder / f"blob-{seed}-{size}"
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            block = hashlib.sha256(f"{seed}/{start}".encode()).digest() * (MIB // 32)
            file.write(block[: min(MIB, size - start)])
    return path


async def pushed(c1: RunningCoordinator, path: Path, name: str = "m") -> registry_pb2.ModelFile:
    """A file as a version's, uploaded with its chunk list as `aimesh models push` does."""
    (digest, listed), size = digests_of(path), path.stat().st_size  # noqa: ASYNC240  # a small file of a test
    stub = artifacts_pb2_grpc.ArtifactsServiceStub(c1.channel)
    with path.open("rb") as content:
        await stub.UploadBlob(upload_pieces(content, digest, 0, size, lambda _: None), timeout=60)
    file = registry_pb2.ModelFile(path="1/model.py", digest=digest, size=size)
    if listed:
        file.chunks = hashlib.sha256(listed).hexdigest()
        head = artifacts_pb2.UploadBlobRequest(digest=file.chunks, size=len(listed), data=listed)
        await stub.UploadBlob(iter([head]), timeout=10)
    version = model(name)
    version.files[0].CopyFrom(file)
    registry = registry_pb2_grpc.RegistryServiceStub(c1.channel)
    await registry.CreateVersion(registry_pb2.CreateVersionRequest(version=version), timeout=10)
    return file


@dataclass
class Receiver:
    """One agent's store, its server, its fetcher, and its session."""

    name: str
    store: ModelStore
    server: MeshServer
    fetcher: Fetcher
    session: Agent
    seen: list[int] = field(default_factory=list)
    """Progress, as told."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def fetch(self, file: registry_pb2.ModelFile) -> None:
        await self.fetcher.fetch(file, (), self.seen.append)

    def report(self) -> None:
        """Tells what it holds whole."""
        self.session.hello.report.ClearField("blobs")
        self.session.hello.report.blobs.extend(sorted(self.store.held()))
        self.session.report()

    def whole(self, file: registry_pb2.ModelFile) -> bool:
        return self.store.verify(file.digest)


@contextlib.asynccontextmanager
async def receiver(
    folder: Path,
    name: str,
    coordinators: Callable[[], Sequence[str]],
    server: Callable[[AgentSettings, ModelStore], MeshServer] = node_server,
    *,
    joined: bool = True,
    parallel: int = 4,
    limit: Limit | None = None,
    serves: int = 0,
) -> AsyncIterator[Receiver]:
    """A node that can fetch and, with `server`, lets others fetch; in session while the block lasts."""
    store = ModelStore(folder / name, 1 << 40)
    listening = server(AgentSettings(node_id=name, data_dir=folder / name, serve_bytes_per_second=serves), store)
    await listening.start()
    session = agent(coordinators()[0], name, f"instance-{name}")
    session.hello.port = listening.port
    if joined:
        await session.join()
    fetcher = Fetcher(store, coordinators, node_id=name, parallel=parallel, limit=limit)
    try:
        yield Receiver(name, store, listening, fetcher, session)
    finally:
        await session.stop()
        await listening.stop(0)


@contextlib.asynccontextmanager
async def receivers(folder: Path, c1: RunningCoordinator, count: int) -> AsyncIterator[list[Receiver]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(receiver(folder, f"n{number}", lambda: [c1.settings.address]))
            for number in range(count)
        ]


def sent(nodes: Sequence[Receiver]) -> int:
    """Bytes that the coordinators sent to these nodes."""
    return sum(node.fetcher.traffic.from_coordinators for node in nodes)


def flip_byte(path: Path, offset: int) -> None:
    """What a disk may do."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def chunk_count(file: registry_pb2.ModelFile) -> int:
    return -(-file.size // CHUNK)


async def download(address: str, request: artifacts_pb2.DownloadBlobRequest) -> bytes:
    async with aio_channel(address) as channel:
        call = artifacts_pb2_grpc.ArtifactsServiceStub(channel).DownloadBlob(request, timeout=10)
        return b"".join([piece.data async for piece in call])


async def all_fetch(nodes: Sequence[Receiver], file: registry_pb2.ModelFile) -> None:
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            tasks.create_task(node.fetch(file))
