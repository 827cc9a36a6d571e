"""gRPC channels, all made alike: keepalive, message limits, no retries hidden in the channel."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Limit on one message, the same on every link of ours, the gateway and Triton clients included."""

_KEEPALIVE: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A machine's http_proxy is never meant for the mesh.
    ("grpc.enable_http_proxy", 0),
    # Peers that come back are tried again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # in C-core also the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


def aio_channel(
    target: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: list[tuple[str, int | str]] | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """An asyncio channel to `host:port`, or any other gRPC target; plain text unless credentials are given."""
    merged = [*_KEEPALIVE, *(options or [])]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=merged, interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options=merged, interceptors=interceptors)
