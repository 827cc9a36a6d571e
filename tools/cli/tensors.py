"""Tensors on the command line: JSON or .npy in, tables or JSON out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aimesh.registry.v1 import registry_pb2
from inference.signature import describe, numpy_dtype
from meshkit.errors import InvalidInputError

Array = npt.NDArray[Any]


def parse_inputs(signature: registry_pb2.Signature, texts: list[str]) -> dict[str, Array]:
    """Arrays from `name=<json>` and `name=@file.npy`, in the types that the signature asks for.

    Raises InvalidInputError naming the text. Names, shapes and what is missing are held against the signature later.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    found: dict[str, Array] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidInputError(
                f"--input {text!r} is not understood", hint="write --input name=<json or @file.npy>"
            )
        if name in found:
            raise InvalidInputError(f"--input {name} is given twice")
        found[name] = _load(name, value[1:]) if value.startswith("@") else _parse(name, value, specs.get(name))
    return found


def _load(name: str, path: str) -> Array:
    try:
        array: Array = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"input {name!r}: cannot read {path}: {error}", hint="the file must be written by numpy.save"
        ) from None
    return _bytes(array) if array.dtype.kind in "SU" else array


def _parse(name: str, text: str, spec: registry_pb2.TensorSpec | None) -> Array:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(
            f"input {name!r}: {text!r} is not JSON: {error}",
            hint=f"""write --input '{name}=["some text"]' or --input '{name}=[[1, 2, 3]]'""",
        ) from None
    try:
        given: Array = np.array(value)
    except ValueError:
        raise InvalidInputError(f"input {name!r}: the lists of {text!r} have different lengths") from None
    if given.dtype.kind == "U":
        return _bytes(given)
    return given if spec is None else _cast(name, given, spec)


def _cast(name: str, given: Array, spec: registry_pb2.TensorSpec) -> Array:
    dtype = numpy_dtype(spec.data_type)
    if given.dtype.kind not in "biuf" or dtype.kind == "O":
        return given  # of another kind altogether: the check against the signature says so
    cast = given.astype(dtype)
    if dtype.kind in "biu" and not np.array_equal(cast, given):
        raise InvalidInputError(f"input {name!r}: {given.tolist()} does not fit {describe(spec)}")
    return cast


def _bytes(array: Array) -> Array:
    encoded = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()]
    out: Array = np.empty(len(encoded), dtype=np.object_)
    out[:] = encoded
    return out.reshape(array.shape)


def to_json(array: Array) -> Any:
    """Nested lists of numbers or text; bytes that are no UTF-8 have them escaped; NaN and infinities are text."""
    return _json_value(array.tolist())


def _json_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def summary(array: Array) -> str:
    """The values on one line, long ones cut in the middle."""
    if array.dtype.kind == "O":
        return json.dumps(to_json(array), ensure_ascii=False)
    return np.array2string(array, separator=", ", threshold=12, edgeitems=3, precision=6).replace("\n", "")
