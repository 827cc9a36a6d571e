"""Tasks on arrays: classifier, regressor, autoencoder."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from meshkit.errors import InvalidInputError
from training.data.samples import ArraySamples
from training.tasks.base import BuiltIn, arrays_of
from training.tasks.networks import cnn, mlp
from training.tasks.settings import Settings


class _OnArrays(BuiltIn):
    """A task whose model is given x as FP32, whatever numbers it is kept as (images are often bytes)."""

    def inputs(self, batch: Any) -> torch.Tensor:
        """See BuiltIn: [batch, ...] with one feature at least. Labels, where there are any, are not looked at."""
        x: torch.Tensor = (batch[0] if isinstance(batch, tuple) else batch).float()
        return x if x.dim() > 1 else x[:, None]

    def example(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """What the model is given."""
        return (self.inputs(batch),)


class Classifier(_OnArrays):
    """Labels from arrays, by a multi-layer perceptron or a small convolutional net.

    Hyperparameters: kind ("mlp", "cnn"), hidden ([64]), channels ([16, 32]), image ([channels, height, width], of flat
    arrays), dropout, classes (found from the labels), and those of all tasks.
    """

    name = "classifier"

    def setup(self, settings: Settings) -> None:
        """See BuiltIn."""
        samples = arrays_of(self.job, self.name, "x", "y")
        self._shape = samples.shape("x")
        self._kind = settings.choice("kind", "mlp", ("mlp", "cnn"))
        self._hidden = settings.sizes("hidden", (64,))
        self._channels = settings.sizes("channels", (16, 32))
        self._dropout = settings.number("dropout", 0.0, 0, 0.99)
        image = settings.sizes("image", self._shape)
        self._image = (1, *image) if len(image) == 2 else image
        if self._kind == "cnn" and (len(self._image) != 3 or math.prod(self._image) != math.prod(self._shape)):
            raise settings.wrong("image", list(image), f"[channels, height, width] of {math.prod(self._shape)} values")
        self._classes = _classes(samples, settings.whole("classes", 0, 0, 1 << 20))

    def network(self) -> nn.Module:
        """See BuiltIn."""
        if self._kind == "cnn":
            depth, height, width = self._image
            return cnn((depth, height, width), self._channels, self._classes, self._dropout)
        return mlp(self._shape, self._hidden, self._classes, self._dropout)

    def output_loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Cross entropy."""
        return functional.cross_entropy(outputs, batch[1].long())

    def evaluate(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """The share of labels that are found."""
        return {"accuracy": (model(self.inputs(batch)).argmax(-1) == batch[1]).double().mean().item()}

    def served(self, model: nn.Module) -> nn.Module:
        """Probabilities and the label."""
        return _Classes(model)


class _Classes(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.model(x)
        return {"probabilities": scores.softmax(-1), "label": scores.argmax(-1)}


class Regressor(_OnArrays):
    """Numbers from arrays, by a multi-layer perceptron. Hyperparameters: hidden ([64]), dropout, and those of all."""

    name = "regressor"

    def setup(self, settings: Settings) -> None:
        """See BuiltIn."""
        samples = arrays_of(self.job, self.name, "x", "y")
        self._shape = samples.shape("x")
        self._outputs = math.prod(samples.shape("y"))
        self._hidden = settings.sizes("hidden", (64,))
        self._dropout = settings.number("dropout", 0.0, 0, 0.99)

    def network(self) -> nn.Module:
        """See BuiltIn."""
        return mlp(self._shape, self._hidden, self._outputs, self._dropout)

    def output_loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Mean squared error."""
        return functional.mse_loss(outputs, batch[1].to(outputs.dtype).reshape(outputs.shape))

    def evaluate(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """Mean absolute error."""
        outputs = model(self.inputs(batch))
        return {"absolute_error": functional.l1_loss(outputs, batch[1].to(outputs.dtype).reshape(outputs.shape)).item()}

    def served(self, model: nn.Module) -> nn.Module:
        """The number, or numbers."""
        return _Value(model)


class _Value(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"value": self.model(x)}


class Autoencoder(_OnArrays):
    """Arrays through a narrow code and back. Hyperparameters: hidden ([64]), code (8), dropout, and those of all."""

    name = "autoencoder"

    def setup(self, settings: Settings) -> None:
        """See BuiltIn."""
        self._shape = arrays_of(self.job, self.name, "x").shape("x")
        self._hidden = settings.sizes("hidden", (64,))
        self._code = settings.whole("code", 8, 1, 1 << 16)
        self._dropout = settings.number("dropout", 0.0, 0, 0.99)

    def network(self) -> nn.Module:
        """See BuiltIn."""
        widths = (*self._hidden, self._code, *reversed(self._hidden))
        return mlp(self._shape, widths, math.prod(self._shape), self._dropout)

    def output_loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Mean squared error of the array that comes back."""
        return functional.mse_loss(outputs, self.inputs(batch).flatten(1))

    def served(self, model: nn.Module) -> nn.Module:
        """The array that comes back, and how far it is from what went in."""
        return _Back(model)


class _Back(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = self.model(x)
        return {"reconstruction": flat.reshape(x.shape), "error": (flat - x.flatten(1)).square().mean(1)}


def _classes(samples: ArraySamples, stated: int) -> int:
    """How many labels there are, at least 2. Raises InvalidInputError that names the sample whose label is none."""
    y = samples.whole("y")
    if y.ndim != 1 or y.dtype.kind not in "iub":
        odd = ~(np.abs(y) < 2**53) | (y != np.floor(y)) if y.ndim == 1 and y.dtype.kind == "f" else [True]
        first = int(np.argmax(odd))
        what = f"{y[first]}" if y.ndim == 1 else f"of shape {list(y.shape[1:])}"
        raise _label(f"label y of {samples.where(first)} is {what} ({y.dtype}), not one whole number")
    classes = stated or max(int(y.max()) + 1, 2)
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        known = f"there are {classes} classes" if stated else "labels begin at 0"
        raise _label(f"label {int(y[wrong[0]])} of {samples.where(int(wrong[0]))} is out of range: {known}")
    if y.max() >= len(y) and not stated:
        where = samples.where(int(y.argmax()))
        raise _label(f"label {int(y.max())} of {where} is out of range: there are only {len(y)} samples")
    return classes


def _label(message: str) -> InvalidInputError:
    return InvalidInputError(
        message, hint="labels are whole numbers from 0, below hyperparameter classes", reason="BAD_DATA"
    )
