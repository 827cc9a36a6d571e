"""Load through one path: a fixed number of callers, each asking again as soon as it is answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton

from tools.bench.cost import cpu_seconds

ASKED = np.arange(16, dtype=np.float32)
CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Path:
    """One way to the model."""

    name: str
    target: str
    """host:port, or an xds:/// target."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One path, one concurrency, one round."""

    path: str
    concurrency: int
    requests: int
    seconds: float
    latencies_ms: Sequence[float]
    cpu_us: Mapping[str, float]
    """Microseconds of CPU a request, by process."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class WrongAnswerError(Exception):
    """A path gave another answer than the model's: no figure of it counts."""


async def unary(path: Path, concurrency: int, seconds: float, pids: Mapping[str, int]) -> Sample:
    """Asks `addone` for `seconds` after a short warm-up; every answer is checked."""
    async with triton.InferenceServerClient(path.target) as client:
        await _callers(client, path, concurrency, min(0.5, seconds / 4))
        before, began = cpu_seconds(pids), time.monotonic()
        latencies = await _callers(client, path, concurrency, seconds)
        took, after = time.monotonic() - began, cpu_seconds(pids)
    cpu_us = {name: (after[name] - before[name]) / len(latencies) * 1e6 for name in after}
    return Sample(path.name, concurrency, len(latencies), took, latencies, cpu_us)


async def _callers(client: Any, path: Path, concurrency: int, seconds: float) -> list[float]:
    until = time.monotonic() + seconds
    latencies: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(_caller(client, path, until, latencies))
    return latencies


async def _caller(client: Any, path: Path, until: float, latencies: list[float]) -> None:
    asked = triton.InferInput("INPUT0", list(ASKED.shape), "FP32")
    asked.set_data_from_numpy(ASKED)
    while (began := time.monotonic()) < until:
        answer = await client.infer("addone", [asked], headers=dict(path.headers), client_timeout=CALL_TIMEOUT_S)
        latencies.append((time.monotonic() - began) * 1e3)
        if not np.array_equal(answer.as_numpy("OUTPUT0"), ASKED + 1):
            raise WrongAnswerError(f"{path.name}: {answer.as_numpy('OUTPUT0')}")


@dataclass(frozen=True)
class StreamSample:
    """Streamed tokens through one path."""

    path: str
    streams: int
    tokens: int
    seconds: float
    first_token_ms: float
    """Median over the streams."""
    text: str
    """The first stream's answer."""

    @property
    def rate(self) -> float:
        """Tokens a second, all streams together."""
        return self.tokens / self.seconds


async def streaming(path: Path, streams: int, tokens: int) -> StreamSample:
    """Each stream asks the language model the same question and takes `tokens` tokens, greedily chosen."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_stream(path, tokens)) for _ in range(streams)]
    took = time.monotonic() - began
    answers = [task.result() for task in running]
    firsts = sorted(first for _, first, _ in answers)
    counted = sum(count for count, _, _ in answers)
    return StreamSample(path.name, streams, counted, took, firsts[len(firsts) // 2], answers[0][2])


async def _stream(path: Path, tokens: int) -> tuple[int, float, str]:
    sampling = json.dumps({"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True})
    inputs = [
        _bytes_input("text_input", b"Once upon a time there was a machine that"),
        _bytes_input("sampling_parameters", sampling.encode()),
        triton.InferInput("stream", [1], "BOOL"),
        triton.InferInput("exclude_input_in_output", [1], "BOOL"),
    ]
    for flag in inputs[2:]:
        flag.set_data_from_numpy(np.array([True]))

    async def requests() -> Any:
        yield {"model_name": "smollm2", "inputs": inputs, "enable_empty_final_response": True}

    began, first, parts = time.monotonic(), 0.0, []
    async with triton.InferenceServerClient(path.target) as client:
        answers = client.stream_infer(requests(), stream_timeout=300, headers=dict(path.headers))
        async for answer, error in answers:
            if error is not None:
                raise error
            found = answer.as_numpy("text_output")
            if found is not None and found.size:
                first = first or (time.monotonic() - began) * 1e3
                parts.append(found.reshape(-1)[0].decode())
            if answer.get_response().parameters["triton_final_response"].bool_param:
                break
    return len(parts), first, "".join(parts)


def _bytes_input(name: str, value: bytes) -> Any:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value], dtype=np.object_))
    return tensor
