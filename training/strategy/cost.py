"""Seconds and bytes of one step under each strategy: what the rule decides on, and what learning is measured against.

A step of a batch on one worker takes overhead + batch * 3 * flops / speed: the way back costs twice the way forward.
All of the overhead but the loop's own is the optimizer's, which has the less to do the fewer parameters a worker has.
On top come the messages, by the alpha-beta model: n bytes take alpha + n / bandwidth, and a collective over p workers

    all-reduce in a ring              2 (p - 1) (alpha + n / p / bandwidth)
    all-gather, reduce-scatter          (p - 1) (alpha + n / p / bandwidth)

(Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005; Patarasuk and
Yuan, "Bandwidth optimal all-reduce algorithms", 2009). On GPUs the gradients travel while the way back goes on (Li et
al., "PyTorch Distributed", 2020); on CPUs the same cores do both, so nothing is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.parallel.stages import microbatches, stage_ranges
from training.plan.shares import split
from training.plan.tensor import usable
from training.strategy.memory import with_memory
from training.strategy.model import BACKWARD, OVERHEAD_S, Basis, Estimate, Machine, Network, Work

_GIB = 1 << 30


def estimate(strategy: int, work: Work, machines: Sequence[Machine], basis: Basis) -> Estimate:
    """What a strategy costs with one worker on each of these machines; with the reason when it cannot be used."""
    workers = len(machines)
    refused = (work.refused or {}).get(strategy, "") or _too_many(strategy, workers, work)
    if refused:
        return Estimate(strategy, workers, refused=refused)
    return _fitting(_MODELS[strategy](work, machines, basis), machines)


def ring(network: Network, workers: int, count: float) -> float:
    """Seconds of an all-reduce of so many bytes over a ring."""
    return 2 * gather(network, workers, count)


def gather(network: Network, workers: int, count: float) -> float:
    """Seconds of an all-gather, or a reduce-scatter, of so many bytes in all."""
    return (workers - 1) * network.message_s(count / workers) if workers > 1 else 0.0


def bubble(microbatches: int, stages: int) -> float:
    """By how much a pipeline takes longer than its slowest stage alone: (m + p - 1) / m (GPipe, section 2.3)."""
    return (microbatches + stages - 1) / microbatches


def _single(work: Work, machines: Sequence[Machine], basis: Basis) -> Estimate:
    seconds = basis.overhead_s + _compute(work, basis) * work.batch / machines[0].speed
    made = Estimate(training_pb2.STRATEGY_SINGLE, 1, compute_s=seconds)
    return with_memory(made, work, share=work.batch, held=1)


def _ddp(work: Work, machines: Sequence[Machine], basis: Basis) -> Estimate:
    compute, share = _shared(work, machines, basis)
    network = ring(basis.network, len(machines), work.parameter_bytes)
    made = Estimate(training_pb2.STRATEGY_DDP, len(machines), compute, _shown(network, compute, work))
    # Gradients lie in buckets besides, from which they are sent.
    return with_memory(made, work, share=share, held=1, extra=work.parameter_bytes)


def _fsdp(work: Work, machines: Sequence[Machine], basis: Basis) -> Estimate:
    """Parameters are gathered on the way there and back, gradients scattered: 1.5 times DDP's bytes (ZeRO, 7.2.2)."""
    workers = len(machines)
    compute, share = _shared(work, machines, basis, held=1 / workers)
    network = 3 * work.units * gather(basis.network, workers, work.parameter_bytes / work.units)
    made = Estimate(training_pb2.STRATEGY_FSDP, workers, compute, _shown(network, compute, work))
    # The piece at work and the next one are whole on each worker.
    return with_memory(made, work, share=share, held=1 / workers, extra=2 * work.unit_bytes)


def _tensor(work: Work, machines: Sequence[Machine], basis: Basis) -> Estimate:
    """Every worker has the whole batch and a part of some layers; each pair sums its output forward and its gradient
    back (Shoeybi et al., "Megatron-LM", 2019, section 3)."""
    workers = len(machines)
    pairs = usable(work.pairs, workers)
    shared = 2.0 * work.places * sum(pair.parameters for pair in pairs)  # 2 operations a weight
    part = min(shared / work.flops, 1.0) if work.flops else 0.0
    seconds = _compute(work, basis) * work.batch * (1 - part + part / workers)
    network = sum(
        ring(basis.network, workers, 4.0 * work.batch * work.places * width)
        for pair in pairs
        for width in (pair.second.outputs, pair.first.inputs)
    )
    numbers = sum(pair.parameters for pair in work.pairs) or 1
    spread = work.pairs_bytes * sum(pair.parameters for pair in pairs) / numbers
    held = 1 - spread / work.parameter_bytes * (1 - 1 / workers) if work.parameter_bytes else 1.0
    compute = _overhead(basis, held) + seconds / min(machine.speed for machine in machines)
    made = Estimate(training_pb2.STRATEGY_TENSOR, workers, compute, network)
    return with_memory(made, work, share=work.batch, held=held)


def _pipeline(work: Work, machines: Sequence[Machine], basis: Basis) -> Estimate:
    stages = len(machines)
    cut = _stages(work, stages)
    parts = sum(count for count, _ in microbatches(work.batch, stages))
    one = _compute(work, basis) * work.batch / parts
    whole = sum(part.flops for part in work.parts) or 1
    slowest = max(
        one * sum(part.flops for part in work.parts[first:last]) / whole / machine.speed
        for (first, last), machine in zip(cut, machines, strict=True)
    )
    handed = max((work.parts[last - 1].output_bytes for _, last in cut[:-1]), default=0) * work.batch / parts
    network = 2 * (parts + stages - 1) * basis.network.message_s(handed) if stages > 1 else 0.0
    held = max(sum(part.parameter_bytes for part in work.parts[first:last]) for first, last in cut)
    held /= work.parameter_bytes or 1
    busy = _overhead(basis, held) + slowest * parts
    made = Estimate(
        training_pb2.STRATEGY_PIPELINE, stages, busy, network, idle_s=slowest * parts * (bubble(parts, stages) - 1)
    )
    # One forward, one backward: as many parts of the batch wait for their way back as there are stages.
    return with_memory(made, work, share=math.ceil(work.batch * min(1.0, stages / parts)), held=held)


def _federated(work: Work, machines: Sequence[Machine], basis: Basis) -> Estimate:
    """A round: each node its own samples, then its model to the aggregator and the new one back, one link for all."""
    assert work.rounds is not None
    workers = len(machines)
    taking = max(1, round(workers * work.rounds.fraction))
    most = math.ceil(work.samples / workers)
    seconds = _compute(work, basis) * most * work.rounds.local_epochs / min(one.speed for one in machines)
    steps = math.ceil(most / work.batch) * work.rounds.local_epochs
    network = 2 * basis.network.message_s(work.parameter_bytes * taking)
    made = Estimate(training_pb2.STRATEGY_FEDERATED, workers, seconds + steps * basis.overhead_s, network)
    # The round's model is kept beside the one that is trained.
    return with_memory(made, work, share=min(work.batch, most), held=1, extra=work.parameter_bytes)


_MODELS: Mapping[int, Callable[[Work, Sequence[Machine], Basis], Estimate]] = {
    training_pb2.STRATEGY_SINGLE: _single,
    training_pb2.STRATEGY_DDP: _ddp,
    training_pb2.STRATEGY_FSDP: _fsdp,
    training_pb2.STRATEGY_TENSOR: _tensor,
    training_pb2.STRATEGY_PIPELINE: _pipeline,
    training_pb2.STRATEGY_FEDERATED: _federated,
}
STRATEGIES: tuple[int, ...] = tuple(_MODELS)
"""Every strategy that can be weighed, the simplest first."""


def _compute(work: Work, basis: Basis) -> float:
    """Seconds of one sample, there and back, on a worker of speed 1."""
    return (1 + BACKWARD) * work.flops / basis.flops_per_s


def _stages(work: Work, stages: int) -> list[tuple[int, int]]:
    """The parts of each stage, as the engine cuts them. Raises InvalidInputError for too many stages."""
    return stage_ranges([part.flops for part in work.parts], [int(one.parameter_bytes) for one in work.parts], stages)


def _overhead(basis: Basis, held: float) -> float:
    """Seconds of a step that do not depend on the batch, for a worker with this part of the parameters."""
    loop = min(basis.overhead_s, OVERHEAD_S)
    return loop + (basis.overhead_s - loop) * held


def _shared(work: Work, machines: Sequence[Machine], basis: Basis, held: float = 1.0) -> tuple[float, int]:
    """Seconds of the slowest worker when a batch is shared out by speed, and the largest share."""
    speeds = [machine.speed for machine in machines]
    shares = split(work.batch, speeds)
    slowest = max(share / speed for share, speed in zip(shares, speeds, strict=True))
    return _overhead(basis, held) + _compute(work, basis) * slowest, max(shares)


def _shown(network: float, compute: float, work: Work) -> float:
    """What of the messages is not hidden behind the way back."""
    return max(0.0, network - compute * BACKWARD / (1 + BACKWARD)) if work.gpu else network


def _too_many(strategy: int, workers: int, work: Work) -> str:
    """Why this number of workers cannot be, whatever the machines."""
    if strategy == training_pb2.STRATEGY_SINGLE:
        return "" if workers == 1 else f"one worker, not {workers}"
    if strategy == training_pb2.STRATEGY_FEDERATED:
        return "" if work.rounds else "its data is not private: a job says so with [federated]"
    if workers < 2:
        return "one worker has nothing to share out"
    if strategy in (training_pb2.STRATEGY_DDP, training_pb2.STRATEGY_FSDP) and workers > work.batch:
        return f"{workers} workers cannot share {work.batch} samples a step"
    if strategy == training_pb2.STRATEGY_TENSOR and not usable(work.pairs, workers):
        return f"no two linear layers follow each other with a width that {workers} workers divide"
    if strategy == training_pb2.STRATEGY_PIPELINE:
        try:
            _stages(work, workers)
        except InvalidInputError as error:
            return error.message
    return ""


def _fitting(made: Estimate, machines: Sequence[Machine]) -> Estimate:
    """The estimate, refused when a machine has less memory than its worker takes."""
    for needed, has, what in (
        (made.memory_bytes, [one.memory_bytes for one in machines], "memory"),
        (made.gpu_memory_bytes, [one.gpu_memory_bytes for one in machines], "GPU memory"),
    ):
        least = min((count for count in has if count), default=0)
        if least and needed > least:
            return replace(
                made,
                refused=f"needs {needed / _GIB:.2f} GiB of {what} a worker, a node has {least / _GIB:.2f} GiB free",
            )
    return made
