"""gRPC channels, all made alike: keepalive, message limits, no retries hidden in the channel."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio

from meshkit.tls import COORDINATOR_NAME

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Limit on one message, the same on every link of ours, the gateway and Triton clients included."""

_KEEPALIVE: list[tuple[str, int | str]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),  # for TCP: a host that has vanished
    ("grpc.http2.ping_timeout_ms", 5_000),  # for HTTP/2: a process that stands still; a minute when not set
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
    """An asyncio channel to `host:port`, or any other gRPC target; plain text unless credentials are given.

    `options` come before ours: of two with one name, gRPC takes the first.
    """
    merged = [*(options or []), *_KEEPALIVE]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=merged, interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options=merged, interceptors=interceptors)


def coordinator_channel(
    target: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, int | str]] = (),
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """The same to a coordinator. With TLS the server must show a coordinator's certificate, at whatever address."""
    name = [("grpc.ssl_target_name_override", COORDINATOR_NAME)] if credentials is not None else []
    return aio_channel(target, credentials=credentials, options=[*options, *name], interceptors=interceptors)
