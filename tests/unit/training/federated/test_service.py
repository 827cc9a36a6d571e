"""Updates that break off, come too slowly or twice at once: nothing of them stays, and none is half in the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimesh.training.v1 import federated_pb2
from meshkit.errors import SupersededError
from tests.processes import eventually
from tests.unit.training.federated.support import MODEL, desk, update
from training.federated.rounds import Desk
from training.federated.service import FederatedRounds
from training.federated.state import fresh
from training.federated.updates import Update
from training.federated.wire import PART_BYTES, Array, Tensors, parts_of

LARGE: dict[str, Array] = {"a": np.zeros(PART_BYTES, np.float32)}
"""Large enough to be added in a thread."""


class Slow(Desk):
    """A desk that adds an update when it is let to."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.adding, self.go_on = threading.Event(), threading.Event()

    def add(self, update: Update) -> int:
        self.adding.set()
        assert self.go_on.wait(20)
        return super().add(update)


async def requests(client: int, tensors: Tensors) -> AsyncIterator[federated_pb2.SendUpdateRequest]:
    header = federated_pb2.UpdateHeader(job="j", client=client, round=1, samples=10, loss=1.0)
    yield federated_pb2.SendUpdateRequest(header=header)
    for part in parts_of(tensors):
        yield federated_pb2.SendUpdateRequest(part=part)


async def test_a_client_that_goes_while_its_update_is_added_counts_whole(tmp_path: Path) -> None:
    settings = desk(tmp_path, clients=2).settings
    slow = Slow(settings, fresh(LARGE, list(LARGE), settings), list(LARGE), tmp_path, np.random.default_rng(0))
    rounds = FederatedRounds(slow, ["", ""])
    for client in range(2):
        slow.take(client, 10, 0.0)
    gone = asyncio.create_task(rounds.SendUpdate(requests(0, update(1.0, LARGE)), None))
    assert await asyncio.to_thread(slow.adding.wait, 20)
    gone.cancel()
    other = asyncio.create_task(rounds.SendUpdate(requests(1, update(2.0, LARGE)), None))
    slow.go_on.set()
    assert (await other).received == 2
    with pytest.raises(asyncio.CancelledError):
        await gone
    closed = await rounds.close()
    assert closed.clients == 2
    np.testing.assert_array_equal(closed.state.model["a"], np.full(PART_BYTES, 1.5, np.float32))
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir())), "no update's file is left"


async def test_a_client_that_goes_while_its_update_waits_for_a_thread_leaves_no_file(tmp_path: Path) -> None:
    settings = desk(tmp_path, clients=2).settings
    slow = Slow(settings, fresh(LARGE, list(LARGE), settings), list(LARGE), tmp_path, np.random.default_rng(0))
    rounds = FederatedRounds(slow, ["", ""])
    for client in range(2):
        slow.take(client, 10, 0.0)
    with ThreadPoolExecutor(1) as one:
        asyncio.get_running_loop().set_default_executor(one)
        calls = [asyncio.create_task(rounds.SendUpdate(requests(at, update(1.0, LARGE)), None)) for at in range(2)]
        await eventually(slow.adding.is_set)
        await eventually(lambda: not rounds._coming, what="both have come, and one waits for the thread")
        calls[1].cancel()
        await asyncio.sleep(0)
        slow.go_on.set()
        assert isinstance((await asyncio.gather(*calls, return_exceptions=True))[1], asyncio.CancelledError)
        assert len(slow.taken) == 2
        await rounds.close()
        assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))


async def test_the_round_is_not_closed_while_an_update_is_added(tmp_path: Path) -> None:
    settings = desk(tmp_path, clients=1).settings
    slow = Slow(settings, fresh(LARGE, list(LARGE), settings), list(LARGE), tmp_path, np.random.default_rng(0))
    rounds = FederatedRounds(slow, [""])
    slow.take(0, 10, 0.0)
    gone = asyncio.create_task(rounds.SendUpdate(requests(0, update(1.0, LARGE)), None))
    assert await asyncio.to_thread(slow.adding.wait, 20)
    gone.cancel()
    closing = asyncio.create_task(rounds.close())
    await asyncio.wait({closing}, timeout=0.1)
    assert not closing.done()
    slow.go_on.set()
    closed = await closing  # it came before its call was broken off, and is added when the round is closed already
    assert closed.clients == 0
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir())), "no update's file is left"


class Slowly:
    """An update that comes as it is put."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[federated_pb2.SendUpdateRequest] = asyncio.Queue()

    async def requests(self) -> AsyncIterator[federated_pb2.SendUpdateRequest]:
        while True:
            yield await self.coming.get()
            self.coming.task_done()  # the next is asked for: this one was taken

    async def put(self, requests: Sequence[federated_pb2.SendUpdateRequest]) -> None:
        for request in requests:
            self.coming.put_nowait(request)
        await self.coming.join()


async def test_an_update_that_can_no_longer_count_is_broken_off_at_its_next_part(tmp_path: Path) -> None:
    made = desk(tmp_path, clients=2)
    rounds = FederatedRounds(made, ["", ""])
    for client in range(2):
        made.take(client, 10, 0.0)
    whole = [request async for request in requests(0, update(1.0, MODEL))]
    slow, late = Slowly(), Slowly()
    first = asyncio.create_task(rounds.SendUpdate(slow.requests(), None))
    await slow.put(whole[:2])
    assert (await rounds.SendUpdate(requests(0, update(1.0, MODEL)), None)).received == 1
    slow.coming.put_nowait(whole[2])
    with pytest.raises(SupersededError, match="sent anew"):
        await first

    whole[0].header.client = 1
    second = asyncio.create_task(rounds.SendUpdate(late.requests(), None))
    await late.put(whole[:2])
    rounds.advance(await rounds.close())
    late.coming.put_nowait(whole[2])
    with pytest.raises(SupersededError, match="round 1 is over"):
        await second
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir())), "no update's file is left"
