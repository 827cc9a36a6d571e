"""Connections of one fetch: to coordinators and to other agents, each opened when it is first needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from meshkit.channel import aio_channel, coordinator_channel
from meshkit.errors import DataLossError, DeadlineError
from meshkit.grpc_errors import from_call
from meshkit.tls import TlsSettings, channel_credentials
from node_agent.bandwidth import Limit

MESSAGE_TIMEOUT_S = 10.0
"""How long one may take for the next piece."""
CHUNK_TIMEOUT_S = 600.0
"""How long one may take for a whole chunk, without the time for which this node's own limit held it up."""
LOCATE_TIMEOUT_S = 3.0


@dataclass
class Traffic:
    """Bytes that came, refused ones included."""

    from_coordinators: int = 0
    from_peers: int = 0

    def add(self, other: Traffic) -> None:
        """Counts what another counted."""
        self.from_coordinators += other.from_coordinators
        self.from_peers += other.from_peers


class Links:
    """A context that closes them. A coordinator must show a coordinator's certificate, an agent one of the mesh's own
    for its address."""

    def __init__(self, tls: TlsSettings, limit: Limit) -> None:
        """`limit` is for all that comes in."""
        self._tls = tls
        self._limit = limit
        self._channels: dict[tuple[str, bool], grpc.aio.Channel] = {}
        self.traffic = Traffic()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()

    async def read(
        self, address: str, request: artifacts_pb2.DownloadBlobRequest, *, peer: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """A blob's bytes, from a coordinator or, with `peer`, from another agent. Raises what the call failed with,
        DeadlineError also when a part of a blob comes byte by byte."""
        call, waited_s = self._stub(address, peer=peer).DownloadBlob(request), 0.0
        try:
            while True:
                began = time.monotonic()
                if (piece := await _next_piece(call, address)) is None:
                    return
                waited_s += time.monotonic() - began
                if request.length and waited_s > CHUNK_TIMEOUT_S:
                    raise DeadlineError(f"{address} took more than {CHUNK_TIMEOUT_S:g} s for {request.length} bytes")
                if peer:
                    self.traffic.from_peers += len(piece)
                else:
                    self.traffic.from_coordinators += len(piece)
                await self._limit.take(len(piece))
                yield piece
        finally:
            call.cancel()

    async def read_chunk(
        self, address: str, request: artifacts_pb2.DownloadBlobRequest, *, peer: bool = False
    ) -> bytearray:
        """All that the request asks for at once. Raises DataLossError when less or more comes, and what `read` does."""
        data = bytearray()
        async with aclosing(self.read(address, request, peer=peer)) as found:
            async for piece in found:
                data += piece
                if len(data) > request.length:
                    break
        if len(data) != request.length:
            raise DataLossError(f"{address} sent {len(data)} bytes where {request.length} were asked for")
        return data

    async def locate(
        self, address: str, request: artifacts_pb2.LocateChunksRequest
    ) -> artifacts_pb2.LocateChunksResponse:
        """What a coordinator knows of chunks. Raises what the call failed with."""
        try:
            answer: artifacts_pb2.LocateChunksResponse
            answer = await self._stub(address, peer=False).LocateChunks(request, timeout=LOCATE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from None
        return answer

    def _stub(self, address: str, *, peer: bool) -> Any:
        if (address, peer) not in self._channels:
            connect = aio_channel if peer else coordinator_channel
            self._channels[address, peer] = connect(address, credentials=channel_credentials(self._tls))
        return artifacts_pb2_grpc.ArtifactsServiceStub(self._channels[address, peer])


async def _next_piece(call: Any, address: str) -> bytes | None:
    """None at the end."""
    try:
        async with asyncio.timeout(MESSAGE_TIMEOUT_S):
            message = await call.read()
    except TimeoutError:
        raise DeadlineError(f"{address} sent nothing for {MESSAGE_TIMEOUT_S:g} s") from None
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from None
    return message.data if isinstance(message, artifacts_pb2.DownloadBlobResponse) else None
