"""What the built-in tasks have in common: optimizer, schedule, clipping, and starting from a version's weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meshkit.errors import InvalidInputError
from training.data.samples import ArraySamples
from training.tasks.settings import Settings
from training.trainer import Job

_FLOOR = 0.1
"""What is left of the learning rate when it has decayed."""


class BuiltIn:
    """A trainer whose loss is a function of the model's outputs and the batch; so it can be cut into a pipeline."""

    name = ""

    def __init__(self, job: Job) -> None:
        self.job = job
        settings = Settings(self.name, job.hyperparameters)
        self._optimizer = settings.choice("optimizer", "adamw", ("adamw", "sgd"))
        self._lr = settings.number("lr", 1e-3 if self._optimizer == "adamw" else 0.1, 0, 100)
        self._weight_decay = settings.number("weight_decay", 0.0, 0, 10)
        self._momentum = settings.number("momentum", 0.9, 0, 1)
        self._warmup_steps = settings.whole("warmup_steps", 0, 0, 1 << 40)
        self._decay_steps = settings.whole("decay_steps", 0, 0, 1 << 40)
        clip = settings.number("clip_norm", 0.0, 0, 1e12)
        self.clip_norm = clip or None
        self.limit = settings.number("limit", 0.0, 0, 1e300) or None
        self.setup(settings)
        settings.done()

    def setup(self, settings: Settings) -> None:
        """Reads the task's own hyperparameters and looks at the data. Raises InvalidInputError."""
        raise NotImplementedError

    def network(self) -> nn.Module:
        """A new model with first weights."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """A new model; with the weights of the version to start from where there is one."""
        network = self.network()
        if self.job.base is not None and not next(network.parameters()).is_meta:
            start_from(self.job.base, network)
        return network

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """See Trainer."""
        return self.output_loss(model(self.inputs(batch)), batch)

    def inputs(self, batch: Any) -> torch.Tensor:
        """What the model is given of a batch."""
        x: torch.Tensor = batch[0]
        return x

    def output_loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """The mean loss from the model's outputs."""
        raise NotImplementedError

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW, or SGD with momentum."""
        if self._optimizer == "sgd":
            return torch.optim.SGD(parameters, self._lr, self._momentum, weight_decay=self._weight_decay)
        return torch.optim.AdamW(parameters, self._lr, weight_decay=self._weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Linear warm-up, then a cosine down to a tenth over decay_steps; constant when neither is set."""
        if not self._warmup_steps and not self._decay_steps:
            return None
        return torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        if step < self._warmup_steps:
            return (step + 1) / self._warmup_steps
        if not self._decay_steps:
            return 1.0
        gone = min(1.0, (step - self._warmup_steps) / self._decay_steps)
        return _FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * gone)) / 2


def arrays_of(job: Job, task: str, *names: str) -> ArraySamples:
    """The job's data, which must have these arrays. Raises InvalidInputError (BAD_DATA)."""
    has = job.samples.names if isinstance(job.samples, ArraySamples) else ()
    if not isinstance(job.samples, ArraySamples) or any(name not in has for name in names):
        raise InvalidInputError(
            f"task {task} learns from {' and '.join(names)}; the job's data has {', '.join(has) or 'no samples'}",
            hint="name data.builtin, data.shards or data.path with samples of that form",
            reason="BAD_DATA",
        )
    return job.samples


def start_from(base: Path, network: nn.Module) -> None:
    """Copies the weights of a version's torch.export program into a model. Raises InvalidInputError."""
    programs = sorted(base.rglob("*.pt2"))
    if len(programs) != 1:
        raise _base(f"the base model's files hold {len(programs)} torch.export programs, not one", "take another base")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # whatever the file asks for, no pickle is run
    weights = torch.export.load(programs[0]).state_dict
    # What was exported wraps the model, so its names begin with the wrapper's.
    named = {name.removeprefix("model."): value for name, value in weights.items()}
    own = network.state_dict()
    wrong = [name for name in own.keys() | named.keys() if _shape(own, name) != _shape(named, name)]
    if wrong:
        name = sorted(wrong)[0]
        raise _base(
            f"the base model does not fit: {name} is {_shape(named, name)} there and {_shape(own, name)} here",
            "give the same sizes as hyperparameters, or take another base",
        )
    network.load_state_dict(named)


def _shape(tensors: dict[str, Any], name: str) -> str:
    return f"of shape {list(tensors[name].shape)}" if name in tensors else "missing"


def _base(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, reason="BAD_BASE_MODEL")
