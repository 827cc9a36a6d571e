"""Puts a set to two versions in turns, and notes what came, how long it took and what the nodes were doing."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator.evaluation.ask import Asker, value_of
from coordinator.evaluation.dataset import Question
from coordinator.experiments.configuration import infer_parameter
from coordinator.rollout.meter import price_of, share_of
from coordinator.state import State, serving_nodes
from meshkit.errors import InvalidInputError, PreconditionError, UnavailableError

SAMPLE_S = 1.0
"""How often nodes are looked at while they answer."""
MODEL_ERROR = "MODEL_ERROR"
UNREADABLE = "UNREADABLE"
_NOT_THE_MODEL = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.NOT_FOUND,
)
Loads = Callable[[], Awaitable[Mapping[str, membership_pb2.Load]]]


@dataclass(frozen=True)
class Asked:
    """What one request came to."""

    answer: Any
    """As JSON has it; None for none."""
    seconds: float
    error: str = ""
    """The gRPC status code's name, MODEL_ERROR or UNREADABLE; empty for an answer."""
    parts: int = 0
    """Responses of a model that answers in parts: tokens, for a language model."""


@dataclass(frozen=True)
class Sample:
    """What a replica and its node did at a moment; None where it is not known."""

    memory_bytes: float | None
    gpu_memory_bytes: float | None
    cpu_cores: float | None
    """Busy cores of the whole node: those of one model's processes are not reported."""
    gpu_utilization: float | None


@dataclass
class Taken:
    """All that one version came to."""

    version: registry_pb2.ModelVersion
    nodes: tuple[str, ...] = ()
    rounds: list[list[Asked]] = field(default_factory=list)
    """One a repeat, each in the questions' order."""
    seconds: list[float] = field(default_factory=list)
    """Each round's."""
    samples: list[Sample] = field(default_factory=list)
    price_an_hour: float | None = None
    """Of the replicas, by the nodes' label cost_per_hour; None when a node has none."""

    def all(self) -> list[Asked]:
        """Every request."""
        return [each for one in self.rounds for each in one]


@dataclass(frozen=True)
class TimedAsker(Asker):
    """As the evaluation's, but each answer is an Asked."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    tell: Callable[[], None] = lambda: None
    """Called after each request."""

    async def _one(
        self, stub: Any, version: registry_pb2.ModelVersion, request: service_pb2.ModelInferRequest, output: str
    ) -> Any:
        for name, value in self.parameters.items():
            request.parameters[name].CopyFrom(infer_parameter(value))
        began = time.perf_counter()
        try:
            if version.signature.decoupled:
                answer, parts, error = await self._parts(stub, request, output)
            else:
                answer, parts, error = value_of(await stub.ModelInfer(request, timeout=self.deadline_s), output), 0, ""
        except grpc.aio.AioRpcError as failure:
            if failure.code() in _NOT_THE_MODEL:
                raise UnavailableError(
                    f"{version.name}:{version.version} cannot be asked: {failure.details()}"
                ) from None
            answer, parts, error = None, 0, failure.code().name
        except ValueError:  # of a type that has no JSON: what the signature promised was something else
            answer, parts, error = None, 0, UNREADABLE
        self.tell()
        return Asked(answer, time.perf_counter() - began, error, parts)

    async def _parts(self, stub: Any, request: service_pb2.ModelInferRequest, output: str) -> tuple[Any, int, str]:
        parts: list[Any] = []
        async for message in stub.ModelStreamInfer(_once(request), timeout=self.deadline_s):
            if message.error_message:
                return None, len(parts), MODEL_ERROR
            value = value_of(message.infer_response, output)
            parts.extend(value if isinstance(value, list) else [value] if value is not None else [])
        text = bool(parts) and all(isinstance(part, str) for part in parts)
        return ("".join(parts) if text else parts), len(parts), ""


def check_served(state: State, versions: Sequence[registry_pb2.ModelVersion]) -> None:
    """Raises PreconditionError naming the versions that no node answers for, and how to load them."""
    missing = [each for each in versions if not serving_nodes(state, each.name, each.version)]
    if missing:
        names = " and ".join(f"{each.name}:{each.version}" for each in missing)
        raise PreconditionError(
            f"no node answers for {names}",
            hint="load it with a weight of 0, which gets no requests, on a node of its own: "
            f"aimesh routes set {missing[0].name} --split VERSION=100 --split {missing[0].version}=0",
            reason="NOT_LOADED",
        )


async def take(
    state: Callable[[], State],
    loads: Loads,
    asker: TimedAsker,
    versions: tuple[registry_pb2.ModelVersion, registry_pb2.ModelVersion],
    output: str,
    questions: Sequence[Question],
    repeat: int,
) -> tuple[Taken, Taken]:
    """Asks both everything, `repeat` times, in turns: what slows the mesh down for a while slows both.

    Raises PreconditionError when a version is loaded nowhere, UnavailableError when a node cannot be asked,
    InvalidInputError when a question does not fit.
    """
    check_served(state(), versions)
    found = Taken(versions[0]), Taken(versions[1])
    for each in found:  # the first request of a model is slower than all others
        nodes = serving_nodes(state(), each.version.name, each.version.version)
        await asker.ask(each.version, output, questions[: 2 * len(nodes)], nodes)
    for number in range(repeat):
        for each in found if number % 2 == 0 else reversed(found):
            check_served(state(), [each.version])
            await _round(state(), loads, asker, each, output, questions)
    return found


async def _round(
    state: State, loads: Loads, asker: TimedAsker, taken: Taken, output: str, questions: Sequence[Question]
) -> None:
    key = (taken.version.name, taken.version.version)
    nodes = serving_nodes(state, *key)
    taken.nodes = tuple(sorted({*taken.nodes, *(node.id for node in nodes)}))
    began = time.perf_counter()
    async with _sampling(loads, taken, nodes):
        answers = await asker.ask(taken.version, output, questions, nodes)
    taken.seconds.append(time.perf_counter() - began)
    taken.rounds.append(answers)


@asynccontextmanager
async def _sampling(loads: Loads, taken: Taken, nodes: Sequence[membership_pb2.Node]) -> AsyncIterator[None]:
    async def look() -> None:
        while True:
            _sample(await loads(), taken, nodes)
            await asyncio.sleep(SAMPLE_S)

    looking = asyncio.create_task(look(), name="experiment-samples")
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    _sample(await loads(), taken, nodes)


def _sample(loads: Mapping[str, membership_pb2.Load], taken: Taken, nodes: Sequence[membership_pb2.Node]) -> None:
    prices: list[float | None] = []
    for node in nodes:
        load = loads.get(node.id, membership_pb2.Load())
        models = [each for each in load.models if (each.name, each.version) == _key(taken.version)]
        model = models[0] if models else membership_pb2.ModelLoad()
        busy = node.capacity.cpu_cores * load.cpu_utilization if node.id in loads else None
        gpus = [gpu.utilization for gpu in load.gpus]
        taken.samples.append(
            Sample(model.resident_bytes or None, model.gpu_memory_bytes or None, busy, max(gpus) if gpus else None)
        )
        price = price_of(node)
        prices.append(None if price is None else price * share_of(node, taken.version, model))
    known = [price for price in prices if price is not None and math.isfinite(price)]
    taken.price_an_hour = sum(known) if known and len(known) == len(prices) else None


def _key(version: registry_pb2.ModelVersion) -> tuple[str, str]:
    return version.name, version.version


async def _once(request: service_pb2.ModelInferRequest) -> AsyncIterator[service_pb2.ModelInferRequest]:
    yield request


def check_answers(taken: Taken, output: str) -> None:
    """Raises InvalidInputError when a version answered everything, and never with the output that is compared."""
    given = [each for each in taken.all() if not each.error]
    if given and all(each.answer is None for each in given):
        raise InvalidInputError(
            f"{taken.version.name}:{taken.version.version} gave no output {output!r} in {len(given)} answers",
            hint="name the output that holds the answer; see: aimesh models show",
            reason="BAD_GATES",
        )
