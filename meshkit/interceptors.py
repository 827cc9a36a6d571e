"""What server interceptors have in common: putting a function around a handler of any of gRPC's four kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

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
