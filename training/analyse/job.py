"""Analyses a job: its model by a pass without numbers, its pace by a few real steps, its data by counting."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.analyse.analysis import Analysis
from training.analyse.measure import Pace, pace
from training.analyse.module import Parts, profile_and_flops
from training.analyse.parts import pairs_of, parts_of, planned_pairs, units_of, unsharded
from training.contract import Folder
from training.data.order import held
from training.data.samples import Samples
from training.entry import calling
from training.plan.tensor import Pair
from training.run.group import device_of
from training.strategy.model import BASE_BYTES, CPU_FLOPS, GPU_FLOPS, LOOP_S, OVERHEAD_S, Basis, Network
from training.strategy.network import network_to
from training.trainer import Entry

BUDGET_S = 2.0
"""How long real steps are measured."""
MOST_MEASURED = 50_000_000
"""Parameters of the largest model that is measured: a larger one is slow to make, and would need its memory here."""
_LATER_BYTES = 100 << 20
"""What a worker loads besides: torch.distributed, its checkpoints, torch.export."""
_META = torch.device("meta")


@dataclass(frozen=True)
class _Built:
    """A model with a batch that it was shown, and what was seen."""

    model: nn.Module
    parts: Parts
    profile: training_pb2.ModelProfile
    flops: Mapping[str, float]
    """Of linear layers, a sample, by name."""


def analyse_job(
    spec: training_pb2.JobSpec,
    entry: Entry,
    nodes: Sequence[training_pb2.Worker],
    budget_s: float | None = None,
    links: Sequence[training_pb2.Link] = (),
) -> Analysis:
    """Everything that planning needs to know of a job; real steps are measured for `budget_s`, 2 s when not said.

    `links` is what jobs have measured of the network between workers.

    Raises InvalidInputError (BAD_DATA, BAD_TRAINER).
    """
    base_bytes = max(BASE_BYTES, psutil.Process().memory_info().rss + _LATER_BYTES)
    samples = _samples(entry)
    kept = held(len(samples), spec.data.holdout)
    built = _profile(entry, samples)
    pairs = tuple(_pairs(entry, built.model))
    units, unit_bytes = units_of(built.parts, built.model)
    return Analysis(
        profile=built.profile,
        samples=(len(samples) - kept) * _sets(spec, nodes),
        holdout=kept,
        pairs=pairs,
        places=_places(pairs, built.flops),
        refused=_refused(entry, built),
        optimizer_slots=_slots(entry, built.model),
        units=units,
        unit_bytes=unit_bytes,
        base_bytes=base_bytes,
        basis=_basis(
            spec,
            entry,
            samples,
            built.profile,
            network_to(nodes, links, gpu=spec.resources.gpus > 0),
            BUDGET_S if budget_s is None else budget_s,
        ),
    )


def _samples(entry: Entry) -> Samples:
    with calling("data", _code(entry)):
        samples = entry.samples()
    if samples is None or not len(samples):
        raise InvalidInputError(
            f"job of trainer {entry.name} has no samples to learn from",
            hint="name data.builtin, data.shards or data.path, or write data() in the trainer",
            reason="BAD_DATA",
        )
    return samples


def _sets(spec: training_pb2.JobSpec, nodes: Sequence[training_pb2.Worker]) -> int:
    """How many sets like this node's there are: private data lies on each node, and only this one's can be counted."""
    private = spec.HasField("federated") and bool(spec.data.path) and not spec.data.HasField("partition")
    return max(len(nodes), 1) if private else 1


def _profile(entry: Entry, samples: Samples) -> _Built:
    """On "meta" where the trainer's code allows it, else with real numbers."""
    count = min(2, len(samples))
    batch = samples.batch(np.arange(count))
    try:
        # A copy, so that nothing it keeps for later has no numbers.
        other = Entry(copy.copy(entry._trainer), entry.job, entry.name)
        with calling("a pass without numbers"), _META:
            return _pass(other, moved(batch, _META), count, "computed from the module, by one pass without numbers")
    except InvalidInputError:
        with calling("a pass over two samples", _code(entry)):
            return _pass(entry, batch, count, "computed from the module, by one pass over two samples")


def _pass(entry: Entry, batch: Any, count: int, source: str) -> _Built:
    model = entry.model()
    parts = parts_of(model, entry.cuts(model))
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    profile, flops = profile_and_flops(model, lambda: entry.loss(model, batch), count, parts, linear, source=source)
    return _Built(model, parts, profile, flops)


def _pairs(entry: Entry, model: nn.Module) -> list[Pair]:
    with calling("tensor_plan", _code(entry)):
        plan = entry.tensor_plan(model)
    return pairs_of(model) if plan is None else planned_pairs(model, plan)


def _places(pairs: Sequence[Pair], flops: Mapping[str, float]) -> float:
    """How often a sample goes through the layers of the pairs, on the mean over their operations."""
    steps = [step for pair in pairs for step in (pair.first, pair.second)]
    once = 2.0 * sum(step.inputs * step.outputs for step in steps)
    return sum(flops.get(step.name, 0) for step in steps) / once or 1.0 if once else 1.0


def _refused(entry: Entry, built: _Built) -> dict[int, str]:
    refused: dict[int, str] = {}
    if why := unsharded(built.model):
        refused[training_pb2.STRATEGY_FSDP] = why
    if not entry.has("output_loss"):
        refused[training_pb2.STRATEGY_PIPELINE] = "the trainer has no output_loss, which a pipeline needs"
    elif not built.parts:
        refused[training_pb2.STRATEGY_PIPELINE] = "the model is no torch.nn.Sequential, and the trainer has no cuts"
    return refused


def _slots(entry: Entry, model: nn.Module) -> float:
    """Numbers that the optimizer keeps for each parameter, seen in a step without numbers; 2 where that cannot be."""
    own = [one for one in model.parameters() if one.requires_grad]
    try:
        with calling("an optimizer's step without numbers"):
            optimizer = entry.optimizer(own)
            for one in own:
                one.grad = torch.empty_like(one)
            optimizer.step()
    except InvalidInputError:
        return 2.0
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(one.numel() for one in kept if one.dim()) / sum(one.numel() for one in own)


def _basis(
    spec: training_pb2.JobSpec,
    entry: Entry,
    samples: Samples,
    profile: training_pb2.ModelProfile,
    known: tuple[Network, str],
    budget_s: float,
) -> Basis:
    network, words = known
    assumed = GPU_FLOPS if spec.resources.gpus else CPU_FLOPS
    if profile.parameters > MOST_MEASURED or budget_s <= 0:
        return Basis(assumed, OVERHEAD_S, network, f"speed assumed; {words}")
    if spec.resources.gpus and device_of().type != "cuda":
        return Basis(assumed, OVERHEAD_S, network, f"speed assumed, this node shows no GPU; {words}")
    found = _pace(entry, samples, spec.batch_size or 32, budget_s)
    return Basis(
        found.flops_per_s(profile.flops) or assumed, found.overhead_s + LOOP_S, network, f"speed measured; {words}"
    )


def _pace(entry: Entry, samples: Samples, most: int, budget_s: float) -> Pace:
    """A few real steps: what fails here would fail in every worker."""
    device = device_of()
    with calling("a first step", _code(entry)):
        model = entry.model().to(device)
        optimizer = entry.optimizer([one for one in model.parameters() if one.requires_grad])
        entry.scheduler(optimizer)

        def batch_of(size: int) -> Any:
            return moved(samples.batch(np.arange(size) % len(samples)), device)

        def loss(batch: Any) -> torch.Tensor:
            return entry.loss(model, batch)

        return pace(model, optimizer, loss, batch_of, most, budget_s)


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device, in the form that it has."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def _code(entry: Entry) -> Path | None:
    return Folder(entry.job.folder).code if entry.job.folder else None
