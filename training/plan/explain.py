"""Who does what under a plan: the shares that each worker computes for itself, for showing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.parallel.stages import stage_ranges
from training.plan.federated import clients_of
from training.plan.ranges import ranges


@dataclass(frozen=True)
class Share:
    """What one worker does. Ranges are half-open."""

    rank: int
    node: str
    batch: tuple[int, int]
    """Its positions in the order of each full batch. The whole batch, where workers share layers."""
    samples: int
    """Samples that it is given in an epoch; of a federated job with private data 0: only the node knows."""
    layers: tuple[str, ...] = ()
    """Of a pipeline: the parts of the model that it has."""
    clients: tuple[int, int] | None = None
    """Of a federated job: the clients for which it speaks."""


def explain(
    spec: training_pb2.JobSpec, plan: training_pb2.JobPlan, workers: Sequence[training_pb2.Worker] = ()
) -> list[Share]:
    """Each worker's share under a plan, by rank; without workers, of `plan.workers` that are all alike.

    Raises InvalidInputError for more pipeline stages than layers, and more clients than nodes can have.
    """
    those = list(workers) or [training_pb2.Worker(rank=rank) for rank in range(plan.workers or 1)]
    if plan.strategy == training_pb2.STRATEGY_FEDERATED:
        return _federated(spec, plan, those)
    if plan.strategy in (training_pb2.STRATEGY_TENSOR, training_pb2.STRATEGY_PIPELINE):
        return _whole_batch(spec, plan, those)
    speeds = [one.speed for one in those]
    batch = spec.batch_size or 32
    per_epoch = _epoch(batch, plan.samples, speeds)
    return [
        Share(one.rank, one.node, span, samples)
        for one, span, samples in zip(those, ranges(batch, speeds), per_epoch, strict=True)
    ]


def _epoch(batch: int, samples: int, speeds: Sequence[float]) -> list[int]:
    """Samples of each worker in an epoch: of each full batch its share, and of what is left at the end."""
    full, rest = divmod(samples, batch)
    return [
        (last - first) * full + end - start
        for (first, last), (start, end) in zip(ranges(batch, speeds), ranges(rest, speeds), strict=True)
    ]


def _whole_batch(
    spec: training_pb2.JobSpec, plan: training_pb2.JobPlan, those: Sequence[training_pb2.Worker]
) -> list[Share]:
    spans = [(0, 0)] * len(those)
    if plan.strategy == training_pb2.STRATEGY_PIPELINE:
        layers = plan.model.layers
        spans = stage_ranges([one.flops for one in layers], [one.parameters for one in layers], len(those))
    names = [layer.name for layer in plan.model.layers]
    whole = (0, spec.batch_size or 32)
    return [
        Share(one.rank, one.node, whole, plan.samples, layers=tuple(names[first:last]))
        for one, (first, last) in zip(those, spans, strict=True)
    ]


def _federated(
    spec: training_pb2.JobSpec, plan: training_pb2.JobPlan, those: Sequence[training_pb2.Worker]
) -> list[Share]:
    asked = spec.federated
    clients = clients_of(asked.clients, len(those), asked.clients_per_node or 1)
    total = clients[-1].stop
    if total < 1:
        raise InvalidInputError("a federated job without clients trains nothing")
    per_client = plan.samples // total if not spec.data.path else 0
    return [
        Share(
            one.rank,
            one.node,
            (0, spec.batch_size or 32),
            per_client * len(mine),
            clients=(mine.start, mine.stop),
        )
        for one, mine in zip(those, clients, strict=True)
    ]
