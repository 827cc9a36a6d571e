"""What server interceptors have in common: putting a function around a handler of any of gRPC's four kinds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
Behaviour = Callable[..., Any]


def rewrap(
    handler: Any, unary: Callable[[Behaviour], Behaviour], streaming: Callable[[Behaviour], Behaviour]
) -> Handler:
    """The handler with its function wrapped: by `unary` when it gives one answer, by `streaming` when it gives many."""
    if handler.response_streaming:
        wrapped = streaming(handler.stream_stream or handler.unary_stream)
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
    else:
        wrapped = unary(handler.stream_unary or handler.unary_unary)
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
    return make(wrapped, handler.request_deserializer, handler.response_serializer)


class Around(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """An interceptor that puts something around every handler there is."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The wrapped handler; of a method that does not exist nothing, and gRPC answers UNIMPLEMENTED."""
        handler: Any = await continuation(handler_call_details)
        return cast("Handler", handler) if handler is None else self.wrap(handler, handler_call_details.method)

    @abstractmethod
    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler that serves the calls of a method in place of `handler`."""
