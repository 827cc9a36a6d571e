"""Placement beside the event loop: in a large mesh a decision takes longer than anybody may wait for a heartbeat."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from coordinator.placement import Placement, place
from coordinator.state import State

_ONE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="placement")
"""One at a time: who asks for the same state as another one gets the answer that is kept."""


async def placed(state: State) -> Placement:
    """What `place` says of a state, which never changes."""
    return await asyncio.get_running_loop().run_in_executor(_ONE, place, state)
