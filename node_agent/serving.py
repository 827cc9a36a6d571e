"""The agent's own server: what other agents, and coordinators that lost a blob, fetch from this node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.training.v1 import node_pb2_grpc
from meshkit.auth import AuthInterceptor, identify
from meshkit.blobs import CHUNK_BYTES, pieces
from meshkit.server import MeshServer
from meshkit.tls import server_credentials
from node_agent.bandwidth import Limit
from node_agent.settings import AgentSettings
from node_agent.store import ModelStore
from node_agent.training.service import SERVICE as TRAINING
from node_agent.training.service import NodeTraining

SERVICE = "aimesh.artifacts.v1.ArtifactsService"


class NodeArtifacts(artifacts_pb2_grpc.ArtifactsServiceServicer):
    """Gives whole blobs, and of others the chunks that are here and verified. Takes nothing."""

    def __init__(self, store: ModelStore, limit: Limit) -> None:
        """`limit` is for all that is sent."""
        self._store = store
        self._limit = limit

    async def StatBlob(self, request: artifacts_pb2.StatBlobRequest, context: Any) -> artifacts_pb2.StatBlobResponse:  # noqa: N802
        """What is held of a blob."""
        received = await asyncio.to_thread(self._store.received, request.digest)
        return artifacts_pb2.StatBlobResponse(complete=request.digest in self._store.held(), received=received)

    async def DownloadBlob(  # noqa: N802
        self, request: artifacts_pb2.DownloadBlobRequest, context: Any
    ) -> AsyncIterator[artifacts_pb2.DownloadBlobResponse]:
        """Sends what is asked for when all of it is here."""
        file = await asyncio.to_thread(self._store.open_range, request.digest, request.offset, request.length)
        with file:
            found = pieces(file, request.length, self._limit.piece(CHUNK_BYTES))
            while piece := await asyncio.to_thread(next, found, b""):
                await self._limit.take(len(piece))
                yield artifacts_pb2.DownloadBlobResponse(data=piece)

    async def UploadBlob(  # noqa: N802
        self, request_iterator: AsyncIterator[artifacts_pb2.UploadBlobRequest], context: Any
    ) -> artifacts_pb2.UploadBlobResponse:
        """UNIMPLEMENTED."""
        return await _only_coordinators(context, "UploadBlob")  # type: ignore[no-any-return]

    async def LocateChunks(  # noqa: N802
        self, request: artifacts_pb2.LocateChunksRequest, context: Any
    ) -> artifacts_pb2.LocateChunksResponse:
        """UNIMPLEMENTED."""
        return await _only_coordinators(context, "LocateChunks")  # type: ignore[no-any-return]


def node_server(settings: AgentSettings, store: ModelStore, training: NodeTraining | None = None) -> MeshServer:
    """The server, not yet started; with `training` it tells of jobs too.

    With TLS it asks for a certificate of the mesh and goes by its role.

    Raises PreconditionError when a certificate cannot be read.
    """
    server = MeshServer(
        f"{_bracketed(settings.listen or settings.address)}:{settings.port}",
        (SERVICE, TRAINING) if training is not None else (SERVICE,),
        credentials=server_credentials(settings.tls),
        interceptors=[AuthInterceptor(partial(identify, tls=settings.tls.on, check_key=None))],
    )
    service = NodeArtifacts(store, Limit(settings.serve_bytes_per_second))
    artifacts_pb2_grpc.add_ArtifactsServiceServicer_to_server(service, server.grpc)
    if training is not None:
        node_pb2_grpc.add_NodeTrainingServiceServicer_to_server(training, server.grpc)
    return server


async def _only_coordinators(context: Any, method: str) -> Any:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is for coordinators: this is a node's agent")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
