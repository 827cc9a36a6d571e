"""Waits until nobody asks any more: an endpoint that left the routes is used until every client has been told."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from meshkit.errors import AimeshError
from node_agent.triton.client import TritonClient

_QUIET_S = 0.5
"""When no request has come for this long, clients have taken in that the endpoint is gone."""
_MOST_S = 5.0
_POLL_S = 0.1


async def until_quiet(client: TritonClient, most_s: float, model: str = "") -> None:
    """Waits until no request is answered any more, by one model or by all, at most most_s seconds and never over 5.

    What is still in flight then is Triton's to finish. A Triton that does not answer serves nobody.
    """
    with suppress(TimeoutError, AimeshError):
        async with asyncio.timeout(min(_MOST_S, most_s)):
            seen, quiet_s = -1, 0.0
            while quiet_s < _QUIET_S:
                count = await client.executions(model)
                quiet_s = quiet_s + _POLL_S if count == seen else 0.0
                seen = count
                await asyncio.sleep(_POLL_S)
