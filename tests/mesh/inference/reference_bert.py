"""Sentence vectors in PyTorch, straight from the BERT and Sentence-BERT papers: what the embed runtime must match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional


def embed(home: Path, texts: list[str]) -> npt.NDArray[np.float64]:
    """[n texts] -> [n, width], one text at a time, in double precision: no batches, no padding, no mask."""
    weights = {name: value.double() for name, value in load_file(home / "model.safetensors").items()}
    config = json.loads((home / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(json.loads((home / "sentence_bert_config.json").read_text())["max_seq_length"])
    with torch.inference_mode():
        rows = [_one(weights, config, tokenizer.encode(text).ids) for text in texts]
        return functional.normalize(torch.stack(rows)).numpy()


def _one(weights: dict[str, torch.Tensor], config: dict[str, int], ids: list[int]) -> torch.Tensor:
    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        size = (config["hidden_size"],)
        return functional.layer_norm(
            x, size, weights[f"{name}.weight"], weights[f"{name}.bias"], config["layer_norm_eps"]
        )

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        query, key, value = (
            linear(x, f"{layer}.attention.self.{part}")
            .view(len(ids), config["num_attention_heads"], -1)
            .transpose(0, 1)
            for part in ("query", "key", "value")
        )
        context = functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        x = norm(x + linear(context, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        hidden = functional.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x.mean(dim=0)
