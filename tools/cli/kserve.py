"""KServe v2 calls to the gateway: one request in, one or many answers out, errors in the catalogue's words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc.aio
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from inference.signature import data_type_of_array
from meshkit.errors import PreconditionError

Array = npt.NDArray[Any]
# Asks Triton for gRPC codes on streams; without it every error is text in a good answer.
_STRICT = (("triton_grpc_error", "true"),)


def build_request(model: str, inputs: Mapping[str, Array]) -> service_pb2.ModelInferRequest:
    """A request with the arrays as raw bytes; object arrays hold bytes or text."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=data_type_of_array(array), shape=array.shape)
        request.raw_input_contents.append(_raw(array))
    return request


async def infer(
    channel: grpc.aio.Channel, request: service_pb2.ModelInferRequest, timeout_s: float
) -> dict[str, Array]:
    """One answer: arrays by output name."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    return outputs_of(await stub.ModelInfer(request, timeout=timeout_s))


async def stream(
    channel: grpc.aio.Channel, request: service_pb2.ModelInferRequest, timeout_s: float
) -> AsyncIterator[dict[str, Array]]:
    """Every answer with outputs, as it arrives. Raises PreconditionError with the model's words when it fails."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    async for answer in stub.ModelStreamInfer(iter([request]), timeout=timeout_s, metadata=_STRICT):
        if answer.error_message:
            raise PreconditionError(f"{request.model_name}: {answer.error_message}", reason="MODEL_ERROR")
        if answer.infer_response.outputs:
            yield outputs_of(answer.infer_response)


def outputs_of(response: service_pb2.ModelInferResponse) -> dict[str, Array]:
    """Arrays by output name."""
    result = InferResult(response)
    return {output.name: result.as_numpy(output.name) for output in response.outputs}


def text_array(*texts: str) -> Array:
    """A BYTES tensor [n]."""
    return np.array([text.encode() for text in texts], dtype=np.object_)


def _raw(array: Array) -> bytes:
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array).tobytes()
    if array.size == 0:
        return b""
    packed: bytes = serialize_byte_tensor(array.astype(np.object_)).item()
    return packed
