"""Tensors by name, type and shape: KServe v2 names, the registry's enum and NumPy's types, and the check of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import InvalidInputError

_NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
DATA_TYPES: tuple[str, ...] = (*_NUMPY, "BF16")
"""KServe v2 names of every element type. BF16 has no NumPy type: its values travel as FP32 in NumPy."""


def data_type_of(name: str) -> registry_pb2.DataType.ValueType:
    """The registry's enum for a KServe v2 name ("FP32"). Raises InvalidInputError."""
    if name not in DATA_TYPES:
        raise InvalidInputError(f"unknown element type {name!r}", hint=f"known: {', '.join(DATA_TYPES)}")
    return registry_pb2.DataType.Value(f"DATA_TYPE_{name}")


def kserve_name(data_type: registry_pb2.DataType.ValueType) -> str:
    """The KServe v2 name ("FP32") of the registry's enum."""
    return registry_pb2.DataType.Name(data_type).removeprefix("DATA_TYPE_")


def numpy_dtype(data_type: registry_pb2.DataType.ValueType) -> np.dtype[Any]:
    """The NumPy type that holds such elements: object for BYTES, float32 for BF16."""
    return np.dtype(_NUMPY.get(kserve_name(data_type), np.float32))


def data_type_of_array(array: npt.NDArray[Any]) -> str:
    """The KServe v2 name of an array's elements; text and objects are BYTES. Raises InvalidInputError."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    for name, kind in _NUMPY.items():
        if array.dtype == kind:
            return name
    raise InvalidInputError(f"arrays of {array.dtype} cannot be sent", hint=f"convert to one of: {', '.join(_NUMPY)}")


def tensor(name: str, data_type: str, shape: Iterable[int], *, optional: bool = False) -> registry_pb2.TensorSpec:
    """A TensorSpec from KServe v2's name of the element type and a full shape, -1 for any size."""
    return registry_pb2.TensorSpec(name=name, data_type=data_type_of(data_type), shape=shape, optional=optional)


def parse_tensor(text: str) -> registry_pb2.TensorSpec:
    """A TensorSpec from "name:FP32:-1x3" ("name:FP32:" for a scalar). Raises InvalidInputError."""
    name, _, rest = text.partition(":")
    data_type, colon, shape = rest.partition(":")
    sizes = shape.split("x") if shape else []
    if not name or not colon or not all(size == "-1" or (size.isdigit() and size.isascii()) for size in sizes):
        raise InvalidInputError(f"tensor {text!r} is not understood", hint="write it as name:FP32:-1x3")
    return tensor(name, data_type, [int(size) for size in sizes])


def describe(spec: registry_pb2.TensorSpec) -> str:
    """For people: `name FP32 [-1, 3]`, with `optional` where it may be left out."""
    shape = ", ".join(str(size) for size in spec.shape)
    return f"{spec.name} {kserve_name(spec.data_type)} [{shape}]{' optional' if spec.optional else ''}"


def check_inputs(signature: registry_pb2.Signature, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Holds arrays against a signature. Raises InvalidInputError naming the expected names, types and shapes."""
    expected = "; ".join(describe(spec) for spec in signature.inputs)
    specs = {spec.name: spec for spec in signature.inputs}
    problems = [f"unknown input {name!r}" for name in inputs if name not in specs]
    problems += [
        f"input {name!r} is missing" for name, spec in specs.items() if name not in inputs and not spec.optional
    ]
    problems += [_mismatch(specs[name], array) for name, array in inputs.items() if name in specs]
    if found := [problem for problem in problems if problem]:
        raise InvalidInputError("; ".join(found), hint=f"the model takes: {expected}", reason="SIGNATURE_MISMATCH")


def _mismatch(spec: registry_pb2.TensorSpec, array: npt.NDArray[Any]) -> str:
    given = data_type_of_array(array)
    wanted = "FP32" if spec.data_type == registry_pb2.DATA_TYPE_BF16 else kserve_name(spec.data_type)
    if given != wanted:
        return f"input {spec.name!r} has type {given}, not {kserve_name(spec.data_type)}"
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)
    )
    return "" if fits else f"input {spec.name!r} has shape {list(array.shape)}, not {list(spec.shape)}"
