"""What a person writes to have a model trained: a class with a model and a loss. Everything else has a default.

    class Trainer:
        def __init__(self, job: Job): ...            # job.hyperparameters, job.samples, job.base, job.seed
        def model(self) -> nn.Module: ...            # new weights; called under the job's seed
        def loss(self, model, batch) -> Tensor: ...  # mean over the batch's samples

`batch` is (x, y) of the job's data, or x alone where it has no y; of `data()`, what that gives, stacked. Metrics,
batches, devices, other workers, checkpoints and the export are the mesh's affair: there is no loop to write. Optional,
found by name:

    data() -> map-style dataset, array, tuple or dict of arrays      instead of the job's data
    optimizer(parameters) -> Optimizer                               AdamW, lr = hyperparameter "lr" or 1e-3
    scheduler(optimizer) -> LRScheduler                              stepped after each optimizer step; none
    evaluate(model, batch) -> {name: mean over the batch}            on held-out samples, beside the loss
    served(model) -> nn.Module                                       what is exported; the model itself
    example(batch) -> tuple of forward's tensors                     for the export; the batch's x
    clip_norm: float                                                 longest gradient; not clipped
    unused_parameters: bool                                          whether a step may leave parameters out; False
    limit: float                                                     a loss beyond it stops the job
    tensor_plan(model) -> {module name: ParallelStyle}               of tensor jobs; found from the layers
    cuts(model) -> [module name, ...]                                of pipeline jobs: its parts, in order; found
    inputs(batch) -> Tensor, output_loss(outputs, batch) -> Tensor   of pipeline jobs, in place of loss

A worker may be given few samples of a batch, or one: how many depends on the workers and their speed. So a layer that
looks across samples (batch norm) gives other numbers with other workers, fails on one sample where it needs two, and
keeps the running means of rank 0; norms of a sample (GroupNorm, LayerNorm) give the same with any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from meshkit.errors import InvalidInputError
from training.entry import calling

if TYPE_CHECKING:
    import torch
    from torch import nn

    from training.data.samples import Samples


@dataclass(frozen=True)
class Job:
    """What a trainer is told."""

    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """As JSON has them."""
    samples: Samples | None = None
    """The job's data; None for a job without."""
    base: Path | None = None
    """Folder with the files of the version to start from."""
    seed: int = 0
    batch_size: int = 32
    """Samples of one step, over all workers."""
    folder: Path | None = None
    """The worker's own, for files of its own; gone with the attempt."""


class Trainer(Protocol):
    """What every trainer has. See the module for what it may have besides."""

    def model(self) -> nn.Module:
        """A new model."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The mean loss of a batch, a scalar with a gradient."""
        ...


class Entry:
    """A trainer with every optional part filled in: what the mesh calls. `name` is for messages."""

    def __init__(self, trainer: Any, job: Job, name: str, code: Path | None = None) -> None:
        self._trainer = trainer
        self.job = job
        self.name = name
        self._code = code

    def has(self, part: str) -> bool:
        """Whether the trainer has an optional part itself."""
        return getattr(self._trainer, part, None) is not None

    def model(self) -> nn.Module:
        """A new model with weights as the job's seed gives them, in training mode. Raises InvalidInputError."""
        import torch
        from torch import nn

        torch.manual_seed(self.job.seed)
        with calling(f"trainer {self.name}: model", self._code):
            model = self._trainer.model()
        if not isinstance(model, nn.Module):
            raise self.wrong("model", f"gave {type(model).__name__}, not a torch.nn.Module", "return the module")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise self.wrong("model", "gave a module without a trainable parameter", "leave some requires_grad")
        return model.train()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The mean loss of a batch. Raises InvalidInputError when it is not a scalar with a gradient."""
        loss: torch.Tensor = self._trainer.loss(model, batch)
        self._check_loss("loss", loss)
        return loss

    def samples(self) -> Samples | None:
        """What the job learns from: the trainer's own data or the job's; None when there is neither."""
        from training.data.samples import as_samples

        if not self.has("data"):
            return self.job.samples
        with calling(f"trainer {self.name}: data", self._code):
            data = self._trainer.data()
        return as_samples(data, self.name)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of some parameters. Raises InvalidInputError when the trainer gives something else."""
        import torch

        if not self.has("optimizer"):
            return torch.optim.AdamW(list(parameters), lr=float(self.job.hyperparameters.get("lr", 1e-3)))
        with calling(f"trainer {self.name}: optimizer", self._code):
            optimizer = self._trainer.optimizer(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise self.wrong("optimizer", f"gave {type(optimizer).__name__}", "return a torch.optim.Optimizer")
        return optimizer

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
        """The schedule of learning rates, or None. Raises InvalidInputError for what cannot be stepped by itself."""
        from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

        if not self.has("scheduler"):
            return None
        with calling(f"trainer {self.name}: scheduler", self._code):
            scheduler = self._trainer.scheduler(optimizer)
        if scheduler is not None and (
            not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau)
        ):
            hint = "return a torch.optim.lr_scheduler.LRScheduler that goes by the number of steps"
            raise self.wrong("scheduler", f"gave {type(scheduler).__name__}", hint)
        return scheduler

    def evaluate(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """Means over a held-out batch by name: the loss and what the trainer measures."""
        import torch

        with torch.no_grad():
            more = self._trainer.evaluate(model, batch) if self.has("evaluate") else {}
            loss = self.loss(model, batch)
        return {"loss": float(loss), **{name: float(value) for name, value in more.items()}}

    def served(self, model: nn.Module) -> nn.Module:
        """What is exported."""
        served: nn.Module = self._trainer.served(model) if self.has("served") else model
        return served

    def example(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """Arguments of the served module's forward for a batch."""
        if self.has("example"):
            example = self._trainer.example(batch)
            return tuple(example) if isinstance(example, tuple | list) else (example,)
        first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch
        return (first[0] if isinstance(first, tuple | list) else first,)

    @property
    def clip_norm(self) -> float | None:
        """The longest gradient that is let through; None for any."""
        value = getattr(self._trainer, "clip_norm", None)
        return None if value is None else float(value)

    @property
    def unused_parameters(self) -> bool:
        """Whether a step may leave parameters out."""
        return bool(getattr(self._trainer, "unused_parameters", False))

    @property
    def limit(self) -> float | None:
        """The loss beyond which the job is stopped; None for the mesh's own rule."""
        value = getattr(self._trainer, "limit", None)
        return None if value is None else float(value)

    def tensor_plan(self, model: nn.Module) -> Mapping[str, Any] | None:
        """The trainer's own plan for tensor parallelism, or None."""
        return self._trainer.tensor_plan(model) if self.has("tensor_plan") else None

    def cuts(self, model: nn.Module) -> Sequence[str] | None:
        """Names of the modules that are a pipeline's parts, in order, or None when they are to be found.

        A pipeline is cut between them, and one after the other they must give what the model gives.
        """
        return self._trainer.cuts(model) if self.has("cuts") else None

    def inputs(self, batch: Any) -> torch.Tensor:
        """What the first stage of a pipeline is given: by default the batch's x."""
        if self.has("inputs"):
            inputs: torch.Tensor = self._trainer.inputs(batch)
            return inputs
        return self.example(batch)[0]

    def output_loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        """The mean loss from the last stage's outputs. Raises InvalidInputError for a trainer without it."""
        if not self.has("output_loss"):
            raise self.wrong("output_loss", "is missing, which a pipeline needs", "add it, or take another strategy")
        loss: torch.Tensor = self._trainer.output_loss(outputs, batch)
        self._check_loss("output_loss", loss)
        return loss

    def wrong(self, method: str, what: str, hint: str) -> InvalidInputError:
        """An error that names the trainer's method."""
        return InvalidInputError(f"trainer {self.name}: {method} {what}", hint=hint, reason="BAD_TRAINER")

    def _check_loss(self, method: str, loss: Any) -> None:
        import torch

        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise self.wrong(method, f"gave {what}, not a scalar tensor", "return the mean over the batch")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise self.wrong(method, "gave a loss without a gradient", "compute it from the model's outputs")
