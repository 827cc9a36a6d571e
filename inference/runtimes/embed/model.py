"""Triton Python-backend model that turns sentences into vectors with a BERT encoder, in NumPy.

Reads a sentence-transformers directory: model.safetensors, config.json, tokenizer.json, and, where they are there,
modules.json (whether vectors are normalised), 1_Pooling/config.json and sentence_bert_config.json (where text is cut).
Input `text` BYTES [n] (UTF-8), output `embedding` FP32 [n, width], one row a text in the same order.

Sources: Devlin et al., "BERT", 2018 (the encoder); Reimers and Gurevych, "Sentence-BERT", 2019 (pooling).

Parameters (text): `entry` (the weights), `batch_size` (texts that run together, 16 unless given).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from safetensors.numpy import load_file
from scipy.special import erf
from tokenizers import Tokenizer

Array = npt.NDArray[np.float32]
MASKED = np.float32(-1e9)


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads weights and tokenizer."""
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        home = Path(args["model_repository"]) / args["model_version"] / parameters["entry"]
        self._embedder = Embedder.load(home.parent, int(parameters.get("batch_size", 16)))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        values = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        try:
            texts = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(f"text is not UTF-8: {error}", pb_utils.TritonError.INVALID_ARG)
            )
        return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", self._embedder.embed(texts))])


@dataclass(frozen=True)
class Embedder:
    """A sentence-transformers model: tokenizer, encoder, pooling, normalisation."""

    tokenizer: Tokenizer
    encoder: Encoder
    pool: Callable[[Array, Array], Array]
    normalize: bool
    batch_size: int

    @classmethod
    def load(cls, home: Path, batch_size: int) -> Embedder:
        """Reads the directory."""
        config = _json(home / "config.json", {})
        limit = _json(home / "sentence_bert_config.json", {}).get("max_seq_length")
        tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(min(limit or config["max_position_embeddings"], config["max_position_embeddings"]))
        modules = _json(home / "modules.json", [])
        pooling = _json(home / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
        mode = next(mode for mode in POOLING if pooling.get(f"pooling_mode_{mode}"))
        return cls(
            tokenizer,
            Encoder.load(home, config),
            POOLING[mode],
            any(module["type"].endswith(".Normalize") for module in modules),
            batch_size,
        )

    def embed(self, texts: list[str]) -> Array:
        """[n texts] -> [n, width]. Texts of like length run together, so that little of a batch is padding."""
        vectors = np.empty((len(texts), self.encoder.width), np.float32)
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            vectors[rows] = self._embed_batch([tokens[row] for row in rows])
        return vectors

    def _embed_batch(self, tokens: list[list[int]]) -> Array:
        longest = max(map(len, tokens))
        ids = np.zeros((len(tokens), longest), np.int64)
        mask = np.zeros((len(tokens), longest), np.float32)
        for row, sentence in enumerate(tokens):
            ids[row, : len(sentence)] = sentence
            mask[row, : len(sentence)] = 1
        vectors = self.pool(self.encoder.run(ids, mask), mask)
        if self.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


@dataclass(frozen=True)
class Norm:
    """Layer normalisation."""

    weight: Array
    bias: Array
    epsilon: float

    def run(self, x: Array) -> Array:
        """[..., width] -> [..., width], in place."""
        x -= x.mean(axis=-1, keepdims=True)
        variance = np.einsum("...i,...i->...", x, x) / np.float32(x.shape[-1])
        x *= (1 / np.sqrt(variance + np.float32(self.epsilon)))[..., None]
        x *= self.weight
        x += self.bias
        return x


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias, weight [in, out]."""

    weight: Array
    bias: Array

    def run(self, x: Array) -> Array:
        """[..., in] -> [..., out]."""
        y = x @ self.weight
        y += self.bias
        return y


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    heads: int
    qkv: Linear
    """Query (already divided by the root of a head's width), key and value side by side."""
    attended: Linear
    attended_norm: Norm
    up: Linear
    down: Linear
    norm: Norm
    activation: Callable[[Array], Array]

    def run(self, x: Array, bias: Array) -> Array:
        """x [batch * length, width], bias [batch, 1, 1, length] added to attention scores -> like x."""
        batch, length = bias.shape[0], bias.shape[3]
        query, key, value = self.qkv.run(x).reshape(batch, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        scores = query @ key.transpose(0, 1, 3, 2)
        scores += bias
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        context = (scores @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = self.attended_norm.run(x + self.attended.run(context))
        return self.norm.run(x + self.down.run(self.activation(self.up.run(x))))


@dataclass(frozen=True)
class Encoder:
    """BERT: embeddings and layers."""

    words: Array
    positions: Array
    """Position embeddings with the first token type's added."""
    norm: Norm
    layers: tuple[Layer, ...]

    @property
    def width(self) -> int:
        """Elements of a token's state."""
        return int(self.words.shape[1])

    @classmethod
    def load(cls, home: Path, config: Mapping[str, Any]) -> Encoder:
        """From model.safetensors and config.json."""
        weights = _weights(home / "model.safetensors")
        epsilon = float(config["layer_norm_eps"])
        return cls(
            weights["embeddings.word_embeddings.weight"],
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0],
            _norm(weights, "embeddings.LayerNorm", epsilon),
            tuple(_layer(weights, index, config) for index in range(config["num_hidden_layers"])),
        )

    def run(self, ids: npt.NDArray[np.int64], mask: Array) -> Array:
        """Token ids [batch, length] and mask (1 real, 0 padding) -> states [batch, length, width]."""
        batch, length = ids.shape
        x = self.norm.run(self.words[ids] + self.positions[:length]).reshape(batch * length, -1)
        bias = ((1 - mask) * MASKED)[:, None, None, :]
        for layer in self.layers:
            x = layer.run(x, bias)
        return x.reshape(batch, length, -1)


def gelu(x: Array) -> Array:
    """x * P(X <= x) for a standard normal X, in place. Source: Hendrycks and Gimpel, "GELUs", 2016."""
    share = erf(x * np.float32(np.sqrt(0.5)))
    share += 1
    x *= share
    x *= np.float32(0.5)
    return x


def relu(x: Array) -> Array:
    """max(x, 0), in place."""
    np.maximum(x, 0, out=x)
    return x


def mean_tokens(states: Array, mask: Array) -> Array:
    """[batch, length, width] -> [batch, width], the mean over real tokens."""
    total: Array = np.einsum("blw,bl->bw", states, mask)
    total /= mask.sum(axis=1, keepdims=True)
    return total


def max_tokens(states: Array, mask: Array) -> Array:
    """[batch, length, width] -> [batch, width], the largest over real tokens."""
    largest: Array = (states + ((1 - mask) * MASKED)[..., None]).max(axis=1)
    return largest


def cls_token(states: Array, mask: Array) -> Array:  # noqa: ARG001  # all pooling functions are called alike
    """[batch, length, width] -> [batch, width], the first token's."""
    return states[:, 0].copy()


POOLING = {"mean_tokens": mean_tokens, "cls_token": cls_token, "max_tokens": max_tokens}
ACTIVATIONS = {"gelu": gelu, "relu": relu}


def _layer(weights: Mapping[str, Array], index: int, config: Mapping[str, Any]) -> Layer:
    name, heads, epsilon = f"encoder.layer.{index}", int(config["num_attention_heads"]), float(config["layer_norm_eps"])
    query, key, value = (_linear(weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
    scale = np.float32(1 / np.sqrt(query.weight.shape[1] // heads))
    return Layer(
        heads,
        Linear(
            np.concatenate([query.weight * scale, key.weight, value.weight], axis=1),
            np.concatenate([query.bias * scale, key.bias, value.bias]),
        ),
        _linear(weights, f"{name}.attention.output.dense"),
        _norm(weights, f"{name}.attention.output.LayerNorm", epsilon),
        _linear(weights, f"{name}.intermediate.dense"),
        _linear(weights, f"{name}.output.dense"),
        _norm(weights, f"{name}.output.LayerNorm", epsilon),
        ACTIVATIONS[config["hidden_act"]],
    )


def _linear(weights: Mapping[str, Array], name: str) -> Linear:
    return Linear(np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"])


def _norm(weights: Mapping[str, Array], name: str, epsilon: float) -> Norm:
    return Norm(weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)


def _weights(path: Path) -> dict[str, Array]:
    """Tensors as float32, by their names without the model's own prefix."""
    tensors = load_file(path)
    return {name.removeprefix("bert."): value.astype(np.float32, copy=False) for name, value in tensors.items()}


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default
