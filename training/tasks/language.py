"""The task "language": a small transformer that foretells the next byte of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from meshkit.errors import InvalidInputError
from training.data.order import Indices
from training.data.samples import ArraySamples
from training.tasks.base import BuiltIn, arrays_of
from training.tasks.networks import transformer
from training.tasks.settings import Settings


class Windows:
    """A text in windows of context + 1 bytes, each beginning at the last byte of the one before: a sample each."""

    def __init__(self, samples: ArraySamples, context: int) -> None:
        texts = [np.asarray(piece.arrays["text"]) for piece in samples.pieces]
        self._text = texts[0] if len(texts) == 1 else np.concatenate(texts)
        self._context = context

    def __len__(self) -> int:
        return max(len(self._text) - 1, 0) // self._context

    def batch(self, indices: Indices) -> torch.Tensor:
        """[len(indices), context + 1] INT64."""
        places = np.asarray(indices)[:, None] * self._context + np.arange(self._context + 1)
        return torch.from_numpy(self._text[places].astype(np.int64))


class Language(BuiltIn):
    """Bytes of .txt shards, or of "text" in .jsonl.

    Hyperparameters: context (64), width (64), layers (2), heads (4), dropout, and those of all tasks.
    """

    name = "language"

    def setup(self, settings: Settings) -> None:
        """See BuiltIn."""
        self._context = settings.whole("context", 64, 2, 1 << 16)
        self._width = settings.whole("width", 64, 1, 1 << 15)
        self._layers = settings.whole("layers", 2, 1, 1000)
        self._heads = settings.whole("heads", 4, 1, 1 << 10)
        self._dropout = settings.number("dropout", 0.0, 0, 0.99)
        if self._width % self._heads:
            raise settings.wrong("heads", self._heads, f"a divisor of width, which is {self._width}")
        samples = arrays_of(self.job, self.name, "text")
        self._windows = Windows(samples, self._context)
        if not len(self._windows):
            raise InvalidInputError(
                f"no samples: the text of {samples.where(0)} has {len(samples)} bytes, fewer than one window",
                hint=f"give more text, or a hyperparameter context below {self._context}",
                reason="BAD_DATA",
            )

    def data(self) -> Windows:
        """Windows, not bytes."""
        return self._windows

    def network(self) -> nn.Module:
        """See BuiltIn."""
        return transformer(self._context, self._width, self._layers, self._heads, self._dropout)

    def inputs(self, batch: Any) -> torch.Tensor:
        """All but the last byte."""
        tokens: torch.Tensor = batch[:, :-1]
        return tokens

    def output_loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Cross entropy of each next byte."""
        return functional.cross_entropy(outputs.flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """The share of bytes that are foretold."""
        return {"accuracy": (model(batch[:, :-1]).argmax(-1) == batch[:, 1:]).double().mean().item()}

    def example(self, batch: Any) -> tuple[torch.Tensor, ...]:
        """Tokens."""
        return (self.inputs(batch),)

    def served(self, model: nn.Module) -> nn.Module:
        """Probabilities of the byte that follows."""
        return _Next(model)


class _Next(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"probabilities": self.model(tokens)[:, -1].softmax(-1)}
