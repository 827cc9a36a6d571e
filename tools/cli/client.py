"""Calls to the mesh's services, with errors in the catalogue's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc.aio

from meshkit.channel import aio_channel
from meshkit.errors import UnavailableError
from meshkit.grpc_errors import from_call

Result = TypeVar("Result")

CALL_TIMEOUT_S = 15.0
"""Deadline of one short call."""
CONNECT_TIMEOUT_S = 3.0
"""How long one address may take to accept a connection."""


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs a command's coroutine; a failed call leaves as the catalogue's error."""

    async def translated() -> Result:
        try:
            return await work
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from None

    return asyncio.run(translated())


@asynccontextmanager
async def connect(addresses: tuple[str, ...], what: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the first address that accepts. Raises UnavailableError naming them all when none does."""
    for address in addresses:
        channel = aio_channel(address)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await channel.channel_ready()
        except TimeoutError:
            await channel.close(None)
            continue
        try:
            yield channel
        finally:
            await channel.close(None)
        return
    raise UnavailableError(
        f"no {what} answers at {', '.join(addresses)}",
        hint="see: aimesh status; or start the mesh again: aimesh up",
        reason=f"{what.upper()}_UNREACHABLE",
    )
