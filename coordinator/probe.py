"""Asks a node's Triton itself whether it is ready, when the node's agent says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aimesh.membership.v1 import membership_pb2
from meshkit.channel import aio_channel
from meshkit.errors import PreconditionError, UnavailableError
from meshkit.tls import TlsSettings, channel_credentials

Probe: TypeAlias = membership_pb2.Probe.ValueType
Ask = Callable[[membership_pb2.Node], Awaitable[Probe]]

DEADLINE_S = 0.3
"""For one question; one that gets no answer is asked once more."""
AT_ONCE = 256
"""Nodes asked at the same time."""
_SEEN_ALIVE = ("refused", "reset", "closed")
"""Words of gRPC for a host that is there and has nobody who listens, or has just lost him."""


class TritonProbe:
    """Asks KServe's ServerReady, and ModelReady of a model. Called with a node; safe to call for many at once."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, node: membership_pb2.Node) -> Probe:
        """What the node's Triton does, within twice the deadline once it is its turn.

        Raises UnavailableError when this coordinator cannot ask, which says nothing about the node.
        """
        async with self._turns:
            try:
                credentials = channel_credentials(self._tls)
            except PreconditionError as error:
                raise UnavailableError(f"Triton of node {node.id} cannot be asked: {error.message}") from None
            found = await self._ask(node, credentials)
            return await self._ask(node, credentials) if found == membership_pb2.PROBE_SILENT else found

    async def _ask(self, node: membership_pb2.Node, credentials: grpc.ChannelCredentials | None) -> Probe:
        host = f"[{node.address}]" if ":" in node.address else node.address
        # A connection of its own: a shared one may be waiting out the failure of a question before.
        channel = aio_channel(
            f"{host}:{node.report.triton.grpc_port}",
            credentials=credentials,
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        try:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answer = await stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=DEADLINE_S)
            for model in _reported_ready(node):
                if answer.ready:
                    answer = await stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return judge(error.code(), error.details() or "")
        finally:
            await channel.close(None)
        return membership_pb2.PROBE_ANSWERS if answer.ready else membership_pb2.PROBE_REFUSED


def _reported_ready(node: membership_pb2.Node) -> list[str]:
    """The models that the node served when its agent was heard last.

    A Triton that was started since is ready before they are loaded, and until then answers their requests with
    NOT_FOUND, which nobody tries again.
    """
    return [model.name for model in node.report.models if model.state == membership_pb2.MODEL_STATE_READY]


def judge(code: grpc.StatusCode, details: str) -> Probe:
    """What a failed question says: REFUSED is proof that no Triton is ready there, SILENT proves nothing."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return membership_pb2.PROBE_SILENT
    if code is grpc.StatusCode.UNAVAILABLE and not any(word in details.lower() for word in _SEEN_ALIVE):
        return membership_pb2.PROBE_SILENT  # no route, no name, no handshake: the network's word, not the host's
    return membership_pb2.PROBE_REFUSED
