from __future__ import annotations

import asyncio
import threading

import pytest

from meshkit.threads import uninterrupted
from tests.processes import eventually


async def test_the_result_and_the_error_come_back() -> None:
    assert await uninterrupted(int, "7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await uninterrupted(int, "x")


async def test_however_often_it_is_cancelled_it_ends_after_its_thread() -> None:
    started, go_on = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(10)

    task = asyncio.create_task(uninterrupted(work))
    try:
        await eventually(started.is_set)
        for _ in range(3):
            task.cancel()
            for _ in range(5):  # rounds of the event loop: time enough for a task that gives in
                await asyncio.sleep(0)
            assert not task.done()
    finally:
        go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
