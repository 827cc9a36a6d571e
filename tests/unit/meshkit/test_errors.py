"""The error catalogue: complete, unambiguous, and the same on both ends of a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.channel import aio_channel
from meshkit.errors import LEAVES, AimeshError, ConflictError, ExhaustedError, NotFoundError
from meshkit.grpc_errors import from_call, to_status
from meshkit.server import MeshServer


def test_every_leaf_has_codes_of_its_own() -> None:
    assert set(LEAVES) == set(AimeshError.__subclasses__()) - _outside_the_catalogue()
    assert len({leaf.code for leaf in LEAVES}) == len({leaf.exit_code for leaf in LEAVES}) == len(LEAVES)
    assert all(leaf.__doc__ for leaf in LEAVES)


def _outside_the_catalogue() -> set[type[AimeshError]]:
    """Leaves that a room keeps to itself and that never cross a boundary."""
    return {kind for kind in AimeshError.__subclasses__() if not kind.__module__.startswith("meshkit")}


def test_a_status_carries_reason_and_hint() -> None:
    status = to_status(ConflictError("v1 exists", hint="push v2", reason="VERSION_EXISTS"))
    assert (status.code, status.message, len(status.details)) == (
        grpc.StatusCode.ALREADY_EXISTS.value[0],
        "v1 exists",
        2,
    )


class Refusing(MeshServer):
    """A server with one unary and one streaming method that refuse, two that break, and one that ends its call."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:0", ["test.Refusing"])

        async def unary(request: bytes, context: Any) -> bytes:
            raise NotFoundError("model 'm' does not exist", hint="see the list", reason="MODEL_NOT_FOUND")

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield b"one"
            raise ExhaustedError("no more")

        async def broken_unary(request: bytes, context: Any) -> bytes:
            raise ValueError("nobody expected this")

        async def broken_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield b"one"
            raise ValueError("nor this")

        async def aborting(request: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.ABORTED, "on purpose")
            return b""

        handlers = {
            "BrokenUnary": grpc.unary_unary_rpc_method_handler(broken_unary),
            "BrokenStream": grpc.unary_stream_rpc_method_handler(broken_stream),
            "Aborting": grpc.unary_unary_rpc_method_handler(aborting),
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "Stream": grpc.unary_stream_rpc_method_handler(stream),
        }
        self.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Refusing", handlers),))


async def test_errors_cross_a_call_whole() -> None:
    server = Refusing()
    await server.start()
    async with aio_channel(f"127.0.0.1:{server.port}") as channel:
        calls: Any = channel
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await calls.unary_unary("/test.Refusing/Unary")(b"", timeout=5)
        error = from_call(refused.value)
        assert isinstance(error, NotFoundError)
        assert (error.message, error.hint, error.reason) == (
            "model 'm' does not exist",
            "see the list",
            "MODEL_NOT_FOUND",
        )
        answers = aiter(calls.unary_stream("/test.Refusing/Stream")(b"", timeout=5))
        assert await anext(answers) == b"one"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(answers)
        assert isinstance(from_call(refused.value), ExhaustedError)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await calls.unary_unary("/test.Refusing/Nothing")(b"", timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    await server.stop(0)


async def test_what_nobody_expected_is_logged_with_its_traceback_and_ends_the_call() -> None:
    server = Refusing()
    await server.start()
    async with aio_channel(f"127.0.0.1:{server.port}") as channel:
        calls: Any = channel
        with structlog.testing.capture_logs() as logged:
            with pytest.raises(grpc.aio.AioRpcError, match="nobody expected this") as failed:
                await calls.unary_unary("/test.Refusing/BrokenUnary")(b"", timeout=5)
            assert failed.value.code() == grpc.StatusCode.UNKNOWN
            with pytest.raises(grpc.aio.AioRpcError, match="nor this"):
                [each async for each in calls.unary_stream("/test.Refusing/BrokenStream")(b"", timeout=5)]
            with pytest.raises(grpc.aio.AioRpcError, match="on purpose"):
                await calls.unary_unary("/test.Refusing/Aborting")(b"", timeout=5)
    assert [(each["event"], each["method"], each["exc_info"]) for each in logged] == [
        ("rpc.failed", "/test.Refusing/BrokenUnary", True),
        ("rpc.failed", "/test.Refusing/BrokenStream", True),
    ]
    await server.stop(0)


async def test_every_server_answers_health_and_refuses_a_taken_port() -> None:
    server = MeshServer("127.0.0.1:0", ["test.Nothing"])
    await server.start()
    async with aio_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="test.Nothing"), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await server.set_serving(False)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(ExhaustedError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        await MeshServer(f"127.0.0.1:{server.port}", []).start()
    await server.stop(0)
    await asyncio.sleep(0)
