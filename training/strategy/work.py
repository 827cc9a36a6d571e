"""A job in the cost model's words: how many workers, which machines, how much work."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from aimesh.training.v1 import training_pb2
from training.analyse.analysis import Analysis
from training.strategy.cost import STRATEGIES
from training.strategy.model import Machine, Part, Rounds, Work

Nodes = Sequence[training_pb2.Worker]


def bounds(spec: training_pb2.JobSpec) -> tuple[int, int]:
    """Fewest and most workers that a job asks for."""
    least = spec.resources.min_workers or 1
    return least, max(spec.resources.max_workers, least)


def machines_of(nodes: Nodes, most: int) -> list[Machine]:
    """The nodes as the cost model has them. A speed that is not known is the mean of the others."""
    if not nodes:
        return [Machine()] * most
    known = [node.speed for node in nodes if node.speed > 0]
    mean = fmean(known) if known else 1.0
    return [Machine((node.speed or mean) / mean, node.memory_bytes, node.gpu_memory_bytes) for node in nodes]


def work_of(spec: training_pb2.JobSpec, analysis: Analysis) -> Work:
    """The job as the cost model has it."""
    profile = analysis.profile
    each = profile.parameter_bytes / profile.parameters if profile.parameters else 4.0
    return Work(
        flops=profile.flops,
        parameter_bytes=profile.parameter_bytes,
        activation_bytes=profile.activation_bytes,
        batch=spec.batch_size or 32,
        samples=analysis.samples,
        parts=[Part(one.flops, one.parameters * each, one.output_bytes) for one in profile.layers],
        pairs=analysis.pairs,
        places=analysis.places,
        pairs_bytes=sum(pair.parameters for pair in analysis.pairs) * each,
        units=analysis.units,
        unit_bytes=analysis.unit_bytes or profile.parameter_bytes,
        optimizer_slots=analysis.optimizer_slots,
        base_bytes=analysis.base_bytes,
        refused=_ruled_out(spec, analysis),
        rounds=_rounds(spec),
        gpu=spec.resources.gpus > 0,
    )


def steps_of(spec: training_pb2.JobSpec, samples: int, strategy: int) -> int:
    """Optimizer steps in all; of a federated job, rounds: as many as make its epochs on the clients."""
    if spec.steps:
        return spec.steps
    if strategy == training_pb2.STRATEGY_FEDERATED:
        return -(-(spec.epochs or 1) // (spec.federated.local_epochs or 1))
    return (spec.epochs or 1) * -(-max(samples, 1) // (spec.batch_size or 32))


def _is_private(spec: training_pb2.JobSpec) -> bool:
    return spec.strategy == training_pb2.STRATEGY_FEDERATED or spec.HasField("federated")


def _rounds(spec: training_pb2.JobSpec) -> Rounds | None:
    if not _is_private(spec):
        return None
    return Rounds(spec.federated.local_epochs or 1, spec.federated.fraction or 1.0)


def _ruled_out(spec: training_pb2.JobSpec, analysis: Analysis) -> dict[int, str]:
    if not _is_private(spec):
        return dict(analysis.refused)
    others = [strategy for strategy in STRATEGIES if strategy != training_pb2.STRATEGY_FEDERATED]
    return dict.fromkeys(others, "the job's data may not leave its nodes")
