"""gRPC servers, all made alike: health, reflection, channelz, typed errors, keepalive."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import structlog
from grpc_channelz.v1 import channelz
from grpc_health.v1 import _async, health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from meshkit.channel import MAX_MESSAGE_BYTES
from meshkit.errors import AimeshError, ExhaustedError
from meshkit.grpc_errors import to_status
from meshkit.interceptors import Around, rewrap

log = structlog.get_logger()
if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""Limit on one message to a server of ours; blobs come in chunks of 1 MiB. It is taken in whole before anyone can ask
who sends it, and through a gateway callers need no certificate."""

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),  # for TCP: a host that has vanished
    ("grpc.http2.ping_timeout_ms", 5_000),  # for HTTP/2: a process that stands still; a minute when not set
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Two servers on one port would take turns; a taken port must be an error.
    ("grpc.so_reuseport", 0),
]


class MeshServer:
    """A grpc.aio server with what every server of the mesh has. Register services on `.grpc`, then `await start()`."""

    def __init__(
        self,
        address: str,
        services: Sequence[str],
        described: Sequence[str] = (),
        *,
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),  # type: ignore[type-arg]  # generic in the stubs only
    ) -> None:
        """`address` is host:port, port 0 for any free one; `services` are full names for reflection and health.

        `described` are services that others serve behind the same gateway: reflection tells of them too. Plain text
        without `credentials`; `interceptors` run inside the one that translates errors.
        """
        self.grpc = grpc.aio.server(interceptors=[ErrorInterceptor(), *interceptors], options=_OPTIONS)
        self._credentials = credentials
        self._address = address
        self._services = tuple(services)
        self._described = tuple(described)
        self._health = _async.HealthServicer()
        self.port = 0

    async def start(self, *, serving: bool = True) -> None:
        """Binds and serves; health says NOT_SERVING until told otherwise when not `serving`.

        Raises ExhaustedError when the port is taken.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        channelz.add_channelz_servicer(cast("grpc.Server", self.grpc))
        names = (
            *self._services,
            *self._described,
            health.SERVICE_NAME,
            "grpc.channelz.v1.Channelz",
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, self.grpc)
        try:
            self.port = self._bind()
        except RuntimeError:
            raise ExhaustedError(
                f"cannot listen on {self._address}: the port is taken, or the address is not this machine's",
                hint="choose another port, or end the program that has it (see: ss -ltnp)",
                reason="PORT_TAKEN",
            ) from None
        await self.set_serving(serving)
        await self.grpc.start()

    def _bind(self) -> int:
        if self._credentials is None:
            return self.grpc.add_insecure_port(self._address)
        return self.grpc.add_secure_port(self._address, self._credentials)

    async def set_serving(self, serving: bool) -> None:
        """Answers health checks (for the server and for each service) with SERVING or NOT_SERVING."""
        await self.set_health(dict.fromkeys(("", *self._services), serving))

    async def set_health(self, serving: Mapping[str, bool]) -> None:
        """Answers health checks of these names: services, conditions of this process, or "" for all of it."""
        for name, well in serving.items():
            status = health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Stops taking calls, gives those in flight grace_s seconds, then ends them."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_s)


class ErrorInterceptor(Around):
    """Turns an AimeshError that leaves a handler into its gRPC status with details; logs everything else that does."""

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler whose errors are told."""
        return rewrap(handler, lambda inner: _wrap_unary(inner, method), lambda inner: _wrap_streaming(inner, method))


def _wrap_unary(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except AimeshError as error:
            await _abort(context, error, method)
        except grpc.aio.AbortError:  # the handler's own answer
            raise
        except Exception:
            log.exception("rpc.failed", method=method)
            raise

    return call


def _wrap_streaming(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            answers = behaviour(request, context)
            if not hasattr(answers, "__aiter__"):  # a handler that writes through the context
                await answers
                return
            async with contextlib.aclosing(answers):  # a client that goes away ends the handler now, not at collection
                async for answer in answers:
                    yield answer
        except AimeshError as error:
            await _abort(context, error, method)
        except grpc.aio.AbortError:
            raise
        except Exception:
            log.exception("rpc.failed", method=method)
            raise

    return call


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: AimeshError, method: str) -> None:
    log.info("rpc.refused", method=method, code=error.code.name, reason=error.reason, message=error.message)
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
