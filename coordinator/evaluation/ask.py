"""Puts the questions of an evaluation set to a version, on a node that serves it, directly over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator.evaluation.dataset import Question
from meshkit.channel import aio_channel
from meshkit.errors import InvalidInputError, UnavailableError
from meshkit.tls import TlsSettings, channel_credentials

DEADLINE_S = 60.0
"""For one question."""
AT_ONCE = 4
"""Questions asked of a node at the same time: its replica has requests to answer."""
_OURS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.NOT_FOUND,
)
"""Codes that say nothing about the model."""


@dataclass(frozen=True)
class Asker:
    """Asks nodes' Tritons with this coordinator's certificate."""

    tls: TlsSettings
    deadline_s: float = DEADLINE_S
    at_once: int = AT_ONCE

    async def ask(
        self,
        version: registry_pb2.ModelVersion,
        output: str,
        questions: Sequence[Question],
        nodes: Sequence[membership_pb2.Node],
    ) -> list[Any]:
        """The answers as JSON has them, in the questions' order, shared out among the nodes.

        None for a question that the model failed. Raises InvalidInputError when a question does not fit the signature,
        UnavailableError when a node cannot be asked, PreconditionError when the certificate cannot be read.
        """
        requests = [request_of(version, output, number, each) for number, each in enumerate(questions, start=1)]
        credentials = channel_credentials(self.tls)
        answers: list[Any] = [None] * len(requests)
        waiting = iter(enumerate(requests))

        async def worker(stub: Any) -> None:
            for index, request in waiting:
                answers[index] = await self._one(stub, version, request, output)

        channels = [_channel(node, credentials) for node in nodes]
        try:
            async with asyncio.TaskGroup() as tasks:
                for channel in channels:
                    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                    for _ in range(self.at_once):
                        tasks.create_task(worker(stub))
        except* UnavailableError as group:
            raise group.exceptions[0] from None
        finally:
            await asyncio.gather(*(channel.close(None) for channel in channels))
        return answers

    async def _one(
        self, stub: Any, version: registry_pb2.ModelVersion, request: service_pb2.ModelInferRequest, output: str
    ) -> Any:
        try:
            if version.signature.decoupled:
                return await self._stream(stub, request, output)
            return value_of(await stub.ModelInfer(request, timeout=self.deadline_s), output)
        except grpc.aio.AioRpcError as error:
            if error.code() in _OURS:
                raise UnavailableError(f"{version.name}:{version.version} cannot be asked: {error.details()}") from None
            return None

    async def _stream(self, stub: Any, request: service_pb2.ModelInferRequest, output: str) -> Any:
        """Of a model that answers in parts: texts joined, everything else in a list."""
        parts: list[Any] = []
        async for message in stub.ModelStreamInfer(_once(request), timeout=self.deadline_s):
            if message.error_message:
                return None
            value = value_of(message.infer_response, output)
            parts.extend(value if isinstance(value, list) else [value])
        return "".join(parts) if parts and all(isinstance(part, str) for part in parts) else parts


def request_of(
    version: registry_pb2.ModelVersion, output: str, number: int, question: Question
) -> service_pb2.ModelInferRequest:
    """A question as the version's signature wants it. Raises InvalidInputError naming the question and the input.

    A value with one dimension less than the signature's is taken as the one row of a batch.
    """
    specs = {spec.name: spec for spec in version.signature.inputs}
    unknown = sorted(question.inputs.keys() - specs.keys())
    lacking = sorted(name for name, spec in specs.items() if not spec.optional and name not in question.inputs)
    if unknown or lacking:
        what = f"has the inputs {', '.join(unknown)}" if unknown else f"lacks the inputs {', '.join(lacking)}"
        raise _unfit(number, f"{what}; {version.name}:{version.version} takes {', '.join(specs) or 'none'}")
    request = service_pb2.ModelInferRequest(model_name=version.name)
    request.outputs.add(name=output)
    for name, value in question.inputs.items():
        spec = specs[name]
        datatype = registry_pb2.DataType.Name(spec.data_type).removeprefix("DATA_TYPE_")
        try:
            array = _array(datatype, value, list(spec.shape))
        except (TypeError, ValueError, OverflowError) as error:
            raise _unfit(number, f"input {name}: {error}") from None
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(_raw(datatype, array))
    return request


def value_of(response: service_pb2.ModelInferResponse, output: str) -> Any:
    """An output as nested lists, a text or a number; None when it is not there."""
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.name != output:
            continue
        if tensor.datatype == "BYTES":
            items = _deserialize(raw)
            value: Any = [item.decode(errors="replace") for item in items]
        else:
            value = np.frombuffer(raw, _dtype(tensor.datatype)).reshape(tuple(tensor.shape)).tolist()
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        return value
    return None


def _array(datatype: str, value: Any, shape: list[int]) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        items = np.array(value, dtype=object)
        array = np.vectorize(lambda item: str(item).encode(), otypes=[object])(items) if items.size else items
    else:
        given = np.asarray(value)
        if given.dtype.kind not in "biuf":
            raise ValueError(f"{str(value)[:60]!r} is not all numbers of one shape")
        array = given.astype(_dtype(datatype))
        if array.dtype.kind in "iu" and not np.array_equal(given, array):
            raise ValueError(f"not all of {str(value)[:60]} are {datatype}")
    while array.ndim < len(shape):
        array = array[np.newaxis]
    wrong = array.ndim != len(shape) or any(
        want not in (-1, size) for want, size in zip(shape, array.shape, strict=True)
    )
    if shape and wrong:
        raise ValueError(f"has the shape {list(array.shape)}, the signature says {shape}")
    return np.ascontiguousarray(array)


def _raw(datatype: str, array: np.ndarray[Any, Any]) -> bytes:
    if datatype != "BYTES":
        return array.tobytes()
    serialize: Callable[[Any], Any] = serialize_byte_tensor  # untyped where it is defined
    result = serialize(array)
    return bytes(result.item()) if result.size else b""


def _deserialize(raw: bytes) -> list[bytes]:
    deserialize: Callable[[bytes], Any] = deserialize_bytes_tensor  # untyped where it is defined
    return list(deserialize(raw))


def _dtype(datatype: str) -> Any:
    convert: Callable[[str], Any] = triton_to_np_dtype  # untyped where it is defined
    found = convert(datatype)
    if found is None or datatype in ("BYTES", "BF16"):
        raise ValueError(f"type {datatype} cannot be evaluated")
    return found


def _channel(node: membership_pb2.Node, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    host = f"[{node.address}]" if ":" in node.address else node.address
    return aio_channel(
        f"{host}:{node.report.triton.grpc_port}",
        credentials=credentials,
        options=[("grpc.use_local_subchannel_pool", 1)],
    )


async def _once(request: service_pb2.ModelInferRequest) -> AsyncIterator[service_pb2.ModelInferRequest]:
    yield request


def _unfit(number: int, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"question {number} of the evaluation set {why}", hint="see: aimesh models show", reason="BAD_DATASET"
    )
