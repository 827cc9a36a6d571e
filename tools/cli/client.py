"""Calls to the mesh's services, with errors in the catalogue's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.errors import UnavailableError
from meshkit.grpc_errors import from_call
from tools.cli.target import Mesh, require_gateway

Result = TypeVar("Result")

CALL_TIMEOUT_S = 15.0
"""Deadline of one short call."""
CONNECT_TIMEOUT_S = 3.0
"""How long an address may take to accept a connection."""
_HEALTH_TIMEOUT_S = 1.0


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a command's coroutine; a failed call leaves as the catalogue's error."""

    async def translated() -> Result:
        try:
            return await work
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from None

    return asyncio.run(translated())


@asynccontextmanager
async def connect(mesh: Mesh, what: Literal["coordinator", "gateway"]) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the gateway, or to the coordinator that accepts first. Raises UnavailableError when none does.

    Coordinators ask callers for a certificate. Who has only a key reaches them through the gateway.
    """
    only_key = mesh.credentials.ca is not None and mesh.credentials.cert is None and mesh.gateway != ""
    direct = what == "coordinator" and not only_key
    addresses = mesh.coordinators if direct else (require_gateway(mesh),)
    to = mesh.credentials.coordinator_channel if direct else mesh.credentials.gateway_channel
    channels = [to(address) for address in addresses]
    try:
        chosen = await _first_ready(channels)
        if chosen is None:
            raise UnavailableError(
                f"no {what} answers at {', '.join(addresses)}",
                hint=f"see: aimesh status; or start the mesh again: aimesh up{_about_tls(mesh)}",
                reason=f"{what.upper()}_UNREACHABLE",
            )
        yield chosen
    finally:
        for channel in channels:
            await channel.close(None)


def _about_tls(mesh: Mesh) -> str:
    """What else may keep a call from arriving: gRPC does not say why a handshake failed."""
    shown = mesh.credentials
    if shown.ca is None:
        return "; if it uses TLS, name a certificate: aimesh --tls-dir DIR ..."
    if shown.cert is None and not mesh.gateway:
        return "; coordinators ask for a certificate: with an API key alone, set AIMESH_GATEWAY=host:port"
    return "; or the certificates here are not of its authority, or have expired: aimesh ca show FILE"


async def _first_ready(channels: Sequence[grpc.aio.Channel]) -> grpc.aio.Channel | None:
    """The channel connected first, to a process that says it is well if there is one; None when none is in time.

    A dead coordinator costs nothing, and one that has lost etcd is asked only when all have.
    """
    tries = {asyncio.ensure_future(_is_well(channel)): channel for channel in channels}
    unwell: grpc.aio.Channel | None = None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            pending = set(tries)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    if each.result():
                        return tries[each]
                    unwell = unwell or tries[each]
    except TimeoutError:
        pass  # what is connected by now is what there is
    finally:
        for attempt in tries:
            attempt.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
    return unwell


async def _is_well(channel: grpc.aio.Channel) -> bool:
    """What health says, once the channel is connected; a server without health is well."""
    await channel.channel_ready()
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
