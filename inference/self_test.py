"""The request that a fresh replica must answer before it counts as ready, as KServe v2 JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from aimesh.registry.v1 import registry_pb2
from inference.signature import check_inputs, data_type_of, numpy_dtype
from meshkit.errors import InvalidInputError

FILE = "self_test.json"
"""Name of the file in a model's directory that holds its self-test. It is not uploaded as a model file."""


def text_request(**inputs: str) -> str:
    """A request that gives each of these inputs one text."""
    tensors = [{"name": name, "datatype": "BYTES", "shape": [1], "data": [text]} for name, text in inputs.items()]
    return json.dumps({"inputs": tensors})


def check_self_test(document: str, signature: registry_pb2.Signature) -> str:
    """The document itself. Raises InvalidInputError when it is no KServe v2 request that fits the signature."""
    try:
        request = json.loads(document)
    except ValueError as error:
        raise InvalidInputError(f"{FILE} is not valid JSON: {error}") from None
    tensors = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(tensors, list) or not tensors:
        raise InvalidInputError(
            f"{FILE} has no inputs",
            hint='write {"inputs": [{"name": ..., "datatype": ..., "shape": [...], "data": [...]}]}',
        )
    arrays = dict(_array(index, one) for index, one in enumerate(tensors))
    check_inputs(signature, arrays)
    return document


def _array(index: int, spec: Any) -> tuple[str, npt.NDArray[Any]]:
    where = f"{FILE}: inputs[{index}]"
    if not isinstance(spec, dict) or not spec.keys() >= {"name", "datatype", "shape", "data"}:
        raise InvalidInputError(f"{where} must have name, datatype, shape and data")
    dtype = numpy_dtype(data_type_of(str(spec["datatype"])))
    try:
        return str(spec["name"]), np.array(spec["data"], dtype=dtype).reshape(spec["shape"])
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInputError(f"{where}: data does not fit its datatype and shape: {error}") from None
