"""A model's own test request: KServe v2 JSON in, a passed or failed test out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import InvalidInputError, PreconditionError
from node_agent.triton.client import TritonClient

_SHAPE_HINT = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [0.5]}]}'


async def test_model(
    client: TritonClient, version: registry_pb2.ModelVersion, timeout_s: float
) -> list[service_pb2.ModelInferResponse]:
    """Sends a version's test request to the loaded model; its answers. Any error is raised, with Triton's message.

    A version without one has passed by being ready: the runtime tests itself while it loads.
    """
    if not version.self_test:
        return []
    request = parse_request(version.name, version.self_test)
    if version.signature.decoupled:
        responses = await client.stream(request, timeout_s)
        if not responses:
            raise PreconditionError(f"model {version.name} gave no response to its test request")
        return responses
    return [await client.infer(request, timeout_s)]


def parse_request(name: str, text: str) -> service_pb2.ModelInferRequest:
    """KServe v2 JSON as a request to model `name`. Raises InvalidInputError saying what is wrong with it."""
    try:
        document = json.loads(text)
        request = service_pb2.ModelInferRequest(model_name=name)
        for tensor in document["inputs"]:
            request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
            request.raw_input_contents.append(_encode(tensor["datatype"], tensor["shape"], tensor["data"]))
        for output in document.get("outputs", []):
            request.outputs.add(name=output["name"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInputError(
            f"the test request of model {name} is no KServe v2 request ({type(error).__name__}: {error})",
            hint=f"expected: {_SHAPE_HINT}",
        ) from None
    return request


def _encode(datatype: str, shape: list[int], data: list[Any]) -> bytes:
    """A tensor's data, nested lists or flat, as Triton takes it raw."""
    if datatype == "BYTES":
        items = [_to_bytes(item) for item in _flatten(data)]
        return _serialized(np.array(items, dtype=object).reshape(shape))
    dtype: Any = triton_to_np_dtype(datatype)
    if dtype is None:
        raise ValueError(f"unknown datatype {datatype!r}")
    given = np.asarray(data).reshape(shape)
    array = given.astype(dtype)
    if array.dtype.kind in "iu" and not np.array_equal(given, array):
        raise ValueError(f"not all of the data are {datatype}")
    return array.tobytes()


def _serialized(array: Any) -> bytes:
    serialize: Callable[[Any], Any] = serialize_byte_tensor  # untyped where it is defined
    result = serialize(array)
    return bytes(result.item()) if result.size else b""


def _flatten(data: Any) -> list[Any]:
    return [leaf for item in data for leaf in _flatten(item)] if isinstance(data, list) else [data]


def _to_bytes(item: Any) -> bytes:
    return item.encode() if isinstance(item, str) else json.dumps(item).encode()
