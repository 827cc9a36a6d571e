"""What a client does in a round: trains the model on its own data, and says how it changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from aimesh.training.v1 import federated_pb2
from meshkit.errors import InvalidInputError
from training.data.order import Indices, Order
from training.data.samples import Subset
from training.federated.wire import CONTROL, Array, Tensors
from training.run.course import on_device
from training.run.group import Group
from training.run.reporting import shown
from training.run.seeds import seed_step
from training.trainer import Entry


class StoppedError(Exception):
    """Training was broken off because the process is to end."""


@dataclass(frozen=True)
class Trained:
    """What came of a round on one client."""

    difference: Tensors
    """To the round's model."""
    control: Tensors
    """With SCAFFOLD the client's new control variate, by parameter."""
    loss: float
    """Mean over all steps' samples."""
    steps: int
    values: Mapping[str, float] = field(default_factory=dict)
    """Measured on held-out samples before the round."""


def travelling(model: nn.Module) -> dict[str, Array]:
    """What of a model goes to clients and back: trained parameters, and buffers that hold fractions.

    FP64 stays; all else travels as FP32. Whole-number buffers and frozen parameters stay as every client makes them.
    """
    frozen = {name for name, one in model.named_parameters(remove_duplicate=False) if not one.requires_grad}
    return {
        name: _array(tensor)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and name not in frozen
    }


def trained_names(model: nn.Module) -> list[str]:
    """The parameters that are trained, one name each."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def load(model: nn.Module, tensors: Tensors) -> None:
    """Puts what travelled into a model."""
    own = model.state_dict()
    with torch.no_grad():
        for name, array in tensors.items():
            own[name].copy_(torch.from_numpy(array))


def train(
    entry: Entry,
    model: nn.Module,
    samples: Subset,
    said: federated_pb2.Round,
    given: Tensors,
    own_control: Tensors,
    group: Group,
    seen: Callable[[int, Indices], bool] | None = None,
) -> Trained:
    """Trains a round's model over local_epochs of a client's samples, with an optimizer that begins anew.

    `given` is what the round brought; `own_control` is the client's variate. `seen` is called before each step with its
    number, from 1, and its samples' numbers in the job's data; True from it breaks off with StoppedError.

    SCAFFOLD's option II, c+ = c_i - c + (x - y) / (K lr), is for plain gradient descent the mean of the steps'
    gradients before correction; as that mean it also holds for other optimizers. Raises InvalidInputError (NOT_FINITE).
    """
    start = {name: array for name, array in given.items() if not name.startswith(CONTROL)}
    load(model, start)
    model.train()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    step_of = _Step(entry, trained, said, given, own_control)
    optimizer = entry.optimizer(list(trained.values()))
    scheduler = entry.scheduler(optimizer)
    order = Order(said.seed, len(samples), entry.job.batch_size)
    steps = order.steps_per_epoch * said.local_epochs
    losses = 0.0
    for step in range(steps):
        batch = order.batch(step)
        numbers = samples.indices[batch]
        if seen is not None and seen(step + 1, numbers):
            raise StoppedError
        seed_step(said.seed, step, 0)
        optimizer.zero_grad(set_to_none=True)
        loss = entry.loss(model, on_device(samples.batch(batch), group))
        torch.autograd.backward(loss)
        value = loss.item()
        if not np.isfinite(value):
            raise _not_finite(said.number, step + 1, value, numbers)
        step_of.correct()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses += value * len(batch)
    after = travelling(model)
    return Trained(
        difference={name: after[name] - start[name] for name in start},
        control=step_of.control(steps),
        loss=losses / (len(samples) * said.local_epochs),
        steps=steps,
    )


def with_values(trained: Trained, values: Mapping[str, float]) -> Trained:
    """The same with what was measured before the round."""
    return replace(trained, values=values)


class _Step:
    """What happens to the gradients of a step between the way back and the optimizer."""

    def __init__(
        self,
        entry: Entry,
        trained: Mapping[str, nn.Parameter],
        said: federated_pb2.Round,
        given: Tensors,
        own_control: Tensors,
    ) -> None:
        self._clip = entry.clip_norm
        self._trained = trained
        self._proximal = said.proximal
        self._start = [one.detach().clone() for one in trained.values()] if said.proximal else []
        self._sums = [torch.zeros_like(one) for one in trained.values()] if said.scaffold else []
        self._corrections = [
            torch.from_numpy(given[CONTROL + name] - own_control[name]).to(one.device, one.dtype)
            for name, one in (trained.items() if said.scaffold else ())
        ]

    def correct(self) -> None:
        """Clips, then adds FedProx's and SCAFFOLD's terms."""
        if self._clip is not None:
            nn.utils.clip_grad_norm_(list(self._trained.values()), self._clip)
        for place, parameter in enumerate(self._trained.values()):
            gradient = parameter.grad
            if gradient is None:
                continue
            if self._sums:
                self._sums[place] += gradient
                gradient += self._corrections[place]
            if self._start:
                gradient.add_(parameter.detach() - self._start[place], alpha=self._proximal)

    def control(self, steps: int) -> dict[str, Array]:
        """The client's new control variate."""
        return {name: _array(total / steps) for name, total in zip(self._trained, self._sums, strict=False)}


def _array(tensor: Any) -> Array:
    wide = tensor.dtype == torch.float64
    kept: Array = tensor.detach().to("cpu", torch.float64 if wide else torch.float32, copy=True).numpy()
    return kept


def _not_finite(number: int, step: int, value: float, numbers: Indices) -> InvalidInputError:
    return InvalidInputError(
        f"in round {number}, step {step}, samples {shown(numbers)}: the loss is {value}",
        hint="look at these samples; a lower lr, clip_norm, or a loss without log(0) may help",
        reason="NOT_FINITE",
    )
