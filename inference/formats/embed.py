"""Sentence-transformers directories with a BERT encoder."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from aimesh.registry.v1 import registry_pb2
from inference.formats.source import MIB, Description, Source, Wishes, check_keys, refuse_tensors, whole_number
from inference.self_test import text_request
from inference.signature import tensor
from meshkit.errors import InvalidInputError

WEIGHTS = "model.safetensors"
REQUIRED = (WEIGHTS, "config.json", "tokenizer.json")
OPTIONAL = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
PARAMETERS = ("batch_size",)
POOLING = ("mean_tokens", "cls_token", "max_tokens")
ACTIVATIONS = ("gelu", "relu")
MODULES = ("Transformer", "Pooling", "Normalize")
_RUNTIME_BYTES = 110 * MIB
_ELEMENT_TYPES = ("F32", "F16")


def recognises(source: Source) -> bool:
    """Whether the files are those of a sentence-transformers model."""
    return all(name in source.files for name in REQUIRED)


def describe(source: Source, wishes: Wishes) -> Description:
    """Reads the configuration and the weights' header. Raises InvalidInputError when the runtime cannot run it.

    Memory: the weights as float32, and the stub with NumPy, tokenizer and a batch's activations.
    """
    refuse_tensors(wishes, "embed")
    check_keys(wishes.parameters, PARAMETERS, "embed")
    whole_number(wishes.parameters, "batch_size", 1, 1, 4096)
    config = _json(source, "config.json")
    _check_config(config)
    _check_modules(source)
    elements = _read_weights(source.path(WEIGHTS))
    return Description(
        files=tuple(name for name in source.files if name in REQUIRED + OPTIONAL),
        signature=registry_pb2.Signature(
            inputs=[tensor("text", "BYTES", [-1])],
            outputs=[tensor("embedding", "FP32", [-1, int(config["hidden_size"])])],
        ),
        requirements=registry_pb2.Requirements(memory_bytes=4 * elements + _RUNTIME_BYTES),
        parameters={**wishes.parameters, "entry": WEIGHTS},
        self_test=text_request(text="Hello"),
    )


def _check_config(config: Any) -> None:
    wanted = {
        "model_type": ("bert",),
        "hidden_act": ACTIVATIONS,
        "position_embedding_type": ("absolute",),
    }
    for key, known in wanted.items():
        value = config.get(key, "absolute" if key == "position_embedding_type" else None)
        if value not in known:
            raise InvalidInputError(
                f"config.json: {key} = {value!r} is not supported", hint=f"supported: {', '.join(known)}"
            )
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "layer_norm_eps"):
        if not isinstance(config.get(key), int | float):
            raise InvalidInputError(f"config.json: {key} must be a number, not {config.get(key)!r}")


def _check_modules(source: Source) -> None:
    modules = _json(source, "modules.json") if "modules.json" in source.files else []
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in MODULES:
            raise InvalidInputError(
                f"modules.json: module {kind} is not supported", hint=f"supported: {', '.join(MODULES)}"
            )
    if "1_Pooling/config.json" not in source.files:
        return
    modes = [
        key.removeprefix("pooling_mode_") for key, on in _json(source, "1_Pooling/config.json").items() if on is True
    ]
    if len(modes) != 1 or modes[0] not in POOLING:
        raise InvalidInputError(
            f"1_Pooling/config.json: pooling by {' and '.join(modes) or 'nothing'} is not supported",
            hint=f"supported, one at a time: {', '.join(POOLING)}",
        )


def _read_weights(path: Path) -> int:
    """Elements in a safetensors file whose tensors are all there, from its header (8 bytes of length, then JSON)."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < size else {}
        tensors = {name: spec for name, spec in header.items() if name != "__metadata__"}
        end = max(spec["data_offsets"][1] for spec in tensors.values())
        elements = sum(int(math.prod(spec["shape"])) for spec in tensors.values())
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"{WEIGHTS} is no safetensors file: {error}", hint="copy or download it again"
        ) from None
    if 8 + length + end != size:
        raise InvalidInputError(
            f"{WEIGHTS} is cut short or too long: {size} bytes, its header says {8 + length + end}",
            hint="copy or download it again",
        )
    for name, spec in tensors.items():
        if spec["dtype"] not in _ELEMENT_TYPES and not name.endswith("position_ids"):
            raise InvalidInputError(f"{WEIGHTS}: {name} is {spec['dtype']}", hint="convert the weights to F32 or F16")
    return elements


def _json(source: Source, name: str) -> Any:
    try:
        return json.loads(source.path(name).read_text())
    except ValueError as error:
        raise InvalidInputError(f"{name} is not valid JSON: {error}") from None
