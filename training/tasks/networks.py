"""Small networks of the built-in tasks. Each is a sequence of parts, so that it can be cut for a pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


def mlp(inputs: Sequence[int], hidden: Sequence[int], outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between; [batch, *inputs] -> [batch, outputs]."""
    parts: list[nn.Module] = [nn.Flatten()]
    width = math.prod(inputs)
    for size in hidden:
        parts += [nn.Linear(width, size), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        width = size
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def cnn(image: tuple[int, int, int], channels: Sequence[int], outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """3 x 3 convolutions with ReLU, halved after each while they can be; [batch, ...image] -> [batch, outputs].

    Normalised by group, not by batch: the same however a batch is shared out.
    """
    depth, height, width = image
    parts: list[nn.Module] = [nn.Flatten(), nn.Unflatten(1, image)]
    for size in channels:
        parts += [nn.Conv2d(depth, size, 3, padding=1), nn.GroupNorm(1, size), nn.ReLU()]
        depth = size
        if min(height, width) >= 4:
            parts.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    parts += [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*parts, nn.Linear(depth * height * width, outputs))


class Embedding(nn.Module):
    """Bytes and their places; [batch, time] INT64 -> [batch, time, width]."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.places = nn.Embedding(context, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See the class."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        embedded: torch.Tensor = self.tokens(tokens) + self.places(place)
        return embedded


class Attention(nn.Module):
    """Causal attention. The number of heads is read from the width that q gives: a worker may hold some of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width], both ways."""
        q, k, v = (self._heads(part(x)) for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        split: torch.Tensor = x.reshape(*x.shape[:2], -1, self.head_width)
        return split.transpose(1, 2)


class Block(nn.Module):
    """One layer of a transformer, normalised before each half (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width], both ways."""
        x = x + self.dropout(self.attention(self.before_attention(x)))
        added: torch.Tensor = x + self.dropout(self.mlp(self.before_mlp(x)))
        return added


def transformer(context: int, width: int, layers: int, heads: int, dropout: float = 0.0) -> nn.Sequential:
    """[batch, time] bytes as INT64 -> [batch, time, 256] scores of the next byte."""
    blocks = [Block(width, heads, dropout) for _ in range(layers)]
    return nn.Sequential(Embedding(context, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 256))
