"""Keras models: .h5 (HDF5 with the configuration as an attribute) and .keras (a zip of configuration and weights)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.findings import DANGER, Findings, Tensor
from training.formats import hdf5
from training.formats.bounded import Window, parse_json, printable
from training.formats.zips import Archive

# Of optimizers and of layers' own counters (seeds, steps); the rest is the model's.
_NOT_WEIGHTS = ("optimizer_weights/", "optimizer/", "seed_generator/", "metrics/", "_metrics/")
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_MOST_LAYERS = 100_000
_TYPES = {
    "float16": "FP16", "bfloat16": "BF16", "float32": "FP32", "float64": "FP64", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "bool": "BOOL", "string": "BYTES",
}  # fmt: skip


def read_h5(window: Window, path: Path) -> Findings:
    """An .h5 file: a whole model when it has a model_config, weights alone otherwise. Raises InvalidInputError."""
    outline = hdf5.read_outline(path, 0, window.size)
    tensors = _weights(outline.datasets)
    if "model_config" not in outline.attributes:
        found = Findings("keras_h5", "keras" if "backend" in outline.attributes else "", tensors=tensors)
        return found.warn("it holds no Keras configuration: weights or other data alone")
    config = parse_json(outline.attributes["model_config"].encode(), f"{path.name}: model_config")
    return _of_config("keras_h5", config, tensors)


def is_keras(archive: Archive) -> bool:
    """Whether a zip archive is what Keras 3 writes."""
    return {_CONFIG, "metadata.json"} <= archive.members.keys()


def read_zip(archive: Archive, path: Path) -> Findings:
    """A .keras archive. Raises InvalidInputError."""
    config = parse_json(archive.read(_CONFIG), f"{path.name}: {_CONFIG}")
    if _WEIGHTS not in archive.members:
        return _of_config("keras", config, ()).warn(f"it holds no {_WEIGHTS}: parameters cannot be counted")
    place = archive.place(_WEIGHTS)
    if place is None:
        return _of_config("keras", config, ()).warn(f"{_WEIGHTS} is compressed: parameters cannot be counted")
    return _of_config("keras", config, _weights(hdf5.read_outline(path, *place).datasets))


def _weights(datasets: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one for one in datasets if not any(mark in f"{one.name}/" for mark in _NOT_WEIGHTS))


def _of_config(format_: str, config: Any, tensors: tuple[Tensor, ...]) -> Findings:
    """Architecture, layers and inputs. `config` is {class_name, config: {layers, ...}}, at any depth."""
    layers = list(_layers(config))
    name = config.get("class_name") if isinstance(config, dict) else None
    found = Findings(
        format_,
        "keras",
        name if isinstance(name, str) else "",
        tensors=tensors,
        operators=frozenset(layer["class_name"] for layer in layers),
        inputs=tuple(_inputs(layers)),
    )
    # A Lambda holds marshalled byte code; a class outside Keras is imported by its module's name.
    lambdas = any(layer["class_name"] == "Lambda" for layer in layers)
    foreign = sorted({module for layer in layers if (module := layer.get("module")) and not _is_own(module)})
    return replace(
        found,
        warnings=(
            *([f"{DANGER}it has a Lambda layer, whose Python code is run when the model is used"] if lambdas else []),
            *(f"{DANGER}it needs {printable(str(module))}, which loading it imports" for module in foreign[:10]),
        ),
    )


def _is_own(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in ("keras", "builtins", "tensorflow", "tf_keras")


def _layers(config: Any) -> Iterator[dict[str, Any]]:
    """Every {class_name: text, ...} in a configuration."""
    todo, count = [config], 0
    while todo and count < _MOST_LAYERS:
        value = todo.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str):
                count += 1
                yield value
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)


def _inputs(layers: list[dict[str, Any]]) -> Iterator[Tensor]:
    """InputLayers: Keras 3 calls the shape batch_shape, Keras 2 batch_input_shape."""
    for layer in layers:
        config = layer.get("config")
        if layer["class_name"] != "InputLayer" or not isinstance(config, dict):
            continue
        shape = config.get("batch_shape") or config.get("batch_input_shape") or ()
        dtype = config.get("dtype")
        if isinstance(shape, list) and all(
            size is None or (type(size) is int and 0 <= size < 1 << 62) for size in shape
        ):
            sizes = tuple(-1 if size is None else size for size in shape)
            yield Tensor(str(config.get("name", ""))[:200], _TYPES.get(str(dtype)[:20], ""), sizes)
