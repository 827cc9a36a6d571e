"""Blocking work in threads that a cancelled task does not leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def uninterrupted(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Runs `work` in a thread. A cancellation takes effect when it has finished: a thread cannot be stopped, and what
    comes next must not meet it on the disk.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():  # also when it is cancelled again meanwhile
            with suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        raise
