"""What `aimesh infer`, `chat` and `embed` do, also for the demo."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
import numpy.typing as npt

from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from inference.signature import check_inputs
from meshkit.errors import NotFoundError
from meshkit.grpc_errors import from_call
from tools.cli import kserve
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.target import Mesh
from tools.cli.tensors import parse_inputs

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sampling:
    """How a language model chooses its words."""

    max_tokens: int
    temperature: float


async def deployed_version(mesh: Mesh, name: str) -> registry_pb2.ModelVersion:
    """The version that gets most of a model's requests. Raises NotFoundError when the model is not deployed."""
    async with connect(mesh, "coordinator") as channel:
        routing = routing_pb2_grpc.RoutingServiceStub(channel)
        try:
            answer = await routing.GetDeployment(routing_pb2.GetDeploymentRequest(name=name), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            translated = from_call(error)
            if isinstance(translated, NotFoundError):
                raise NotFoundError(
                    f"model {name!r} is not deployed",
                    hint=f"see: aimesh models list; then: aimesh deploy {name} --replicas 1",
                    reason=translated.reason,
                ) from None
            raise translated from None
        target = max(answer.status.deployment.targets, key=lambda target: target.weight)
        registry = registry_pb2_grpc.RegistryServiceStub(channel)
        request = registry_pb2.GetVersionRequest(name=name, version=target.version)
        return (await registry.GetVersion(request, timeout=CALL_TIMEOUT_S)).version


async def infer(mesh: Mesh, name: str, texts: list[str], timeout_s: float) -> list[dict[str, Array]]:
    """The model's answers (one, or any number of a decoupled model) to inputs as given on the command line."""
    signature = (await deployed_version(mesh, name)).signature
    inputs = parse_inputs(signature, texts)
    check_inputs(signature, inputs)
    request = kserve.build_request(name, inputs)
    async with connect(mesh, "gateway") as channel:
        if signature.decoupled:
            return [answer async for answer in kserve.stream(channel, request, timeout_s)]
        return [await kserve.infer(channel, request, timeout_s)]


async def chat(
    mesh: Mesh, name: str, prompt: str, system: str, sampling: Sampling, timeout_s: float
) -> AsyncIterator[str]:
    """A language model's answer, piece by piece."""
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": prompt})
    inputs = {
        "messages": kserve.text_array(json.dumps(turns)),
        "stream": np.array([True]),
        "sampling_parameters": kserve.text_array(
            json.dumps({"max_tokens": sampling.max_tokens, "temperature": sampling.temperature})
        ),
    }
    check_inputs((await deployed_version(mesh, name)).signature, inputs)
    request = kserve.build_request(name, inputs)
    async with connect(mesh, "gateway") as channel:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a letter may come in two pieces
        async for outputs in kserve.stream(channel, request, timeout_s):
            yield decoder.decode(b"".join(outputs["text_output"].ravel().tolist()))
        yield decoder.decode(b"", final=True)


async def embed(mesh: Mesh, name: str, texts: Sequence[str], timeout_s: float) -> Array:
    """Embeddings, FP32 [number of texts, dimension]."""
    inputs = {"text": kserve.text_array(*texts)}
    check_inputs((await deployed_version(mesh, name)).signature, inputs)
    async with connect(mesh, "gateway") as channel:
        outputs = await kserve.infer(channel, kserve.build_request(name, inputs), timeout_s)
    return outputs["embedding"]


def similarities(vectors: Array) -> Array:
    """Cosine similarities [n, n] of vectors [n, dimension]; 0 with a vector of zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths == 0, 1, lengths)
    product: Array = unit @ unit.T
    return product
