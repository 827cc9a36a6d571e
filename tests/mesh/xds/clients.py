"""Stock Triton clients, and what they were answered, as plain values."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException


def own_xds(target: str) -> list[tuple[str, str]] | None:
    """Channel options for a target: an xDS client of the channel's own.

    Otherwise channels of one process share one by target, with the bootstrap of whoever came first: another test's.
    """
    if not target.startswith("xds:"):
        return None
    bootstrap = Path(os.environ["GRPC_XDS_BOOTSTRAP"]).read_text()
    return [("grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config", bootstrap)]


@contextlib.contextmanager
def triton_client(target: str) -> Iterator[Any]:
    client = tritonclient.grpc.InferenceServerClient(target, channel_args=own_xds(target))
    try:
        yield client
    finally:
        client.close()


def one_input(count: int = 4, module: Any = tritonclient.grpc) -> list[Any]:
    """INPUT0 with 0, 1, 2, ..."""
    tensor = module.InferInput("INPUT0", [count], "FP32")
    tensor.set_data_from_numpy(np.arange(count, dtype=np.float32))
    return [tensor]


def add_one(client: Any, model: str = "addone", count: int = 4, **call: Any) -> None:
    """Infers and checks the answer."""
    answer = client.infer(model, one_input(count), **call).as_numpy("OUTPUT0")
    np.testing.assert_array_equal(answer, np.arange(count, dtype=np.float32) + 1)


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """(gRPC code, message) of a call that must fail."""
    try:
        answer = call()
    except InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode."), str(error.message())
    raise AssertionError(f"was answered: {answer}")


@dataclass
class LoadResult:
    """What a load saw."""

    answers: int = 0
    errors: list[str] = field(default_factory=list)
    worst_s: float = 0.0


async def load(target: str, seconds: float, after: Callable[[], None], width: int = 16) -> LoadResult:
    """Calls add-one `width` wide for that long; calls `after` a third of the way in, on another thread."""
    result = LoadResult()
    client = tritonclient.grpc.aio.InferenceServerClient(target, channel_args=own_xds(target))
    started = time.monotonic()

    async def caller() -> None:
        while time.monotonic() < started + seconds:
            before = time.monotonic()
            try:
                answer = await client.infer("addone", one_input(module=tritonclient.grpc.aio))
            except InferenceServerException as error:
                result.errors.append(f"{error.status()} {error.message()}")
                continue
            assert answer.as_numpy("OUTPUT0").tolist() == [1, 2, 3, 4]
            result.answers += 1
            result.worst_s = max(result.worst_s, time.monotonic() - before)

    async def event() -> None:
        await asyncio.sleep(seconds / 3)  # in the middle of the load, not a wait for something
        await asyncio.to_thread(after)

    async with asyncio.TaskGroup() as group:
        group.create_task(event())
        for _ in range(width):
            group.create_task(caller())
    await client.close()
    return result
