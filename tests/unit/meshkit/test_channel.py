"""Channels notice a peer that stands still while its machine goes on acknowledging what it is sent."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.channel import aio_channel
from meshkit.server import MeshServer


async def test_a_peer_that_stands_still_is_left_in_the_time_that_the_channel_was_given() -> None:
    still = asyncio.Event()
    server = MeshServer("127.0.0.1:0", ())
    await server.start()
    ended: list[asyncio.Future[Any]] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if not still.is_set():
                    writer.write(data)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", server.port)
        ended.append(asyncio.gather(carry(reader, far_writer), carry(far_reader, writer)))
        await ended[-1]

    between = await asyncio.start_server(relay, "127.0.0.1", 0)
    options: list[tuple[str, int | str]] = [("grpc.keepalive_time_ms", 500), ("grpc.http2.ping_timeout_ms", 500)]
    async with aio_channel(f"127.0.0.1:{between.sockets[0].getsockname()[1]}", options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        call = stub.Watch(health_pb2.HealthCheckRequest())
        await call.read()
        still.set()
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as left:
            async with asyncio.timeout(30):
                await call.read()
        assert left.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - began < 8
    await server.stop(0)
    await asyncio.gather(*ended)
    between.close()
    await between.wait_closed()
