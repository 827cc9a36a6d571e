"""What the agent's mesh tests share: free ports, waiting for conditions, a small model, a small coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from google.protobuf import duration_pb2
from tritonclient.grpc import service_pb2

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.membership.v1 import membership_pb2, membership_pb2_grpc
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError, NotFoundError, PreconditionError
from meshkit.server import MeshServer
from meshkit.tls import TlsSettings, server_credentials
from meshkit.versions import version_digest
from node_agent.settings import AgentSettings, TritonSettings
from tests.processes import free_ports

CONFIG = """
name: "whatever"
backend: "python"
max_batch_size: 0
input [{ name: "x", data_type: TYPE_INT32, dims: [-1] }]
output [{ name: "y", data_type: TYPE_INT32, dims: [-1] }]
"""
SELF_TEST = '{"inputs": [{"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]}]}'


def settings_in(
    data_dir: Path,
    coordinators: tuple[str, ...] = ("127.0.0.1:1",),
    tls: TlsSettings | None = None,
    **triton: Any,
) -> AgentSettings:
    """Settings of a test agent with free ports."""
    grpc_port, http_port, metrics_port = free_ports(3)
    ports: dict[str, Any] = {"grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port}
    return AgentSettings(
        node_id="node-1",
        data_dir=data_dir,
        coordinators=coordinators,
        drain_s=2.0,
        runtimes_dir=data_dir / "runtimes",
        triton=TritonSettings(**{**ports, **triton}),
        tls=tls or TlsSettings(),
    )


def add_model(added: int, before: str = "", request: str = "") -> str:
    """model.py that adds a number; `before` is run at load, `request` at each request."""
    return f"""
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        {before or "pass"}

    def execute(self, requests):
        {request or "pass"}
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + {added})]) for x in inputs]
"""


COUNTDOWN = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        with open(__file__.replace("model.py", "start.txt")) as file:
            self.start = int(file.read())

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            if pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0] < 0:
                error = pb_utils.TritonError("cannot count up")
                sender.send(pb_utils.InferenceResponse(error=error), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            for number in range(self.start, 0, -1):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([number], np.int32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
"""A runtime's template: a decoupled model that counts down from the number in the version's file start.txt."""


class Blobs(dict[str, bytes]):
    """Blobs by digest."""

    def add(self, content: str | bytes) -> tuple[str, int]:
        """Keeps a blob; gives its digest and size."""
        raw = content.encode() if isinstance(content, str) else content
        digest = hashlib.sha256(raw).hexdigest()
        self[digest] = raw
        return digest, len(raw)

    def version(
        self, name: str, version: str, model: str, self_test: str = SELF_TEST, config: str = CONFIG
    ) -> registry_pb2.ModelVersion:
        """A version with runtime python."""
        files = []
        for path, content in (("1/model.py", model), ("config.pbtxt", config)):
            digest, size = self.add(content)
            files.append(registry_pb2.ModelFile(path=path, digest=digest, size=size))
        made = registry_pb2.ModelVersion(name=name, version=version, runtime="python", files=files, self_test=self_test)
        made.digest = version_digest(made)
        return made


def countdown(blobs: Blobs, name: str, first: int) -> registry_pb2.ModelVersion:
    """A version with the runtime of COUNTDOWN, tested with `first`."""
    digest, size = blobs.add("3")
    tensor = registry_pb2.TensorSpec(name="x", data_type=registry_pb2.DATA_TYPE_INT32, shape=[1])
    answer = registry_pb2.TensorSpec(name="y", data_type=registry_pb2.DATA_TYPE_INT32, shape=[1])
    return registry_pb2.ModelVersion(
        name=name,
        version="1.0.0",
        runtime="countdown",
        files=[registry_pb2.ModelFile(path="start.txt", digest=digest, size=size)],
        signature=registry_pb2.Signature(inputs=[tensor], outputs=[answer], decoupled=True),
        self_test=f'{{"inputs": [{{"name": "x", "datatype": "INT32", "shape": [1], "data": [{first}]}}]}}',
    )


class Coordinator(membership_pb2_grpc.MembershipServiceServicer, artifacts_pb2_grpc.ArtifactsServiceServicer):
    """Speaks membership and artifacts as the protocol says, with no mesh behind it."""

    def __init__(self, blobs: Blobs | None = None) -> None:
        self.blobs = blobs if blobs is not None else Blobs()
        self.assignments = membership_pb2.Assignments()
        self.hellos: list[membership_pb2.Hello] = []
        self.reports: list[membership_pb2.ModelReport] = []
        self.heartbeats: list[membership_pb2.Heartbeat] = []
        self.leaving: list[str] = []
        self.downloads: list[tuple[str, int]] = []
        self.holders: dict[str, str] = {}
        """Addresses of agents by the digest of what they hold."""
        self.refusal: AimeshError | None = None
        self.cut_after: int | None = None
        """Break each download after so many bytes."""
        self._changed = asyncio.Condition()
        self._server: MeshServer | None = None
        self.address = ""

    async def start(self, port: int = 0, tls: TlsSettings | None = None) -> None:
        credentials = server_credentials(tls) if tls is not None else None
        self._server = MeshServer(f"127.0.0.1:{port}", [], credentials=credentials)
        membership_pb2_grpc.add_MembershipServiceServicer_to_server(self, self._server.grpc)
        artifacts_pb2_grpc.add_ArtifactsServiceServicer_to_server(self, self._server.grpc)
        await self._server.start()
        self.address = f"127.0.0.1:{self._server.port}"

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(0)

    def addresses(self) -> list[str]:
        return [self.address]

    async def assign(
        self,
        *versions: registry_pb2.ModelVersion,
        scheduling: Mapping[str, routing_pb2.Scheduling] | None = None,
        traced: Mapping[str, int] | None = None,
        trust: registry_pb2.Trust | None = None,
        tasks: Sequence[training_pb2.TrainingTask] = (),
    ) -> int:
        """Assigns exactly these versions and tasks; gives the revision."""
        async with self._changed:
            revision = self.assignments.revision + 1
            self.assignments = membership_pb2.Assignments(
                revision=revision, models=versions, scheduling=scheduling, traced=traced, trust=trust, tasks=tasks
            )
            self._changed.notify_all()
        return revision

    def states(self) -> dict[tuple[str, str], int]:
        """State by (name, version) in the newest report."""
        last = self.reports[-1] if self.reports else membership_pb2.ModelReport()
        return {(model.name, model.version): model.state for model in last.models}

    def message(self, name: str) -> str:
        return next((model.message for model in self.reports[-1].models if model.name == name), "")

    async def Join(  # noqa: N802
        self,
        request_iterator: AsyncIterator[membership_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[membership_pb2.CoordinatorMessage]:
        if self.refusal is not None:
            raise self.refusal
        first = await anext(aiter(request_iterator))
        self.hellos.append(first.hello)
        self.reports.append(first.hello.report)
        welcome = membership_pb2.Welcome(
            epoch=len(self.hellos),
            heartbeat_interval=duration_pb2.Duration(nanos=200_000_000),
            coordinators=[self.address],
        )
        yield membership_pb2.CoordinatorMessage(welcome=welcome)
        listening = asyncio.ensure_future(self._listen(request_iterator))
        sent = 0
        try:
            while not listening.done():
                if self.assignments.revision > sent:
                    sent = self.assignments.revision
                    yield membership_pb2.CoordinatorMessage(assignments=self.assignments)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05), self._changed:
                        await self._changed.wait()
        finally:
            listening.cancel()

    async def _listen(self, messages: AsyncIterator[membership_pb2.AgentMessage]) -> None:
        async for message in messages:
            match message.WhichOneof("body"):
                case "report":
                    self.reports.append(message.report)
                case "heartbeat":
                    self.heartbeats.append(message.heartbeat)
                case "leaving":
                    self.leaving.append(message.leaving.reason)

    async def StatBlob(  # noqa: N802
        self, request: artifacts_pb2.StatBlobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> artifacts_pb2.StatBlobResponse:
        held = len(self.blobs.get(request.digest, b""))
        return artifacts_pb2.StatBlobResponse(complete=request.digest in self.blobs, received=held)

    async def UploadBlob(  # noqa: N802
        self, request_iterator: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> artifacts_pb2.UploadBlobResponse:
        raise PreconditionError("this coordinator takes no blobs")

    async def LocateChunks(  # noqa: N802
        self, request: artifacts_pb2.LocateChunksRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> artifacts_pb2.LocateChunksResponse:
        address = self.holders.get(request.digest, "")
        sources = [artifacts_pb2.ChunkSource(chunk=chunk, address=address) for chunk in request.wanted]
        return artifacts_pb2.LocateChunksResponse(sources=sources[: request.most or None])

    async def DownloadBlob(  # noqa: N802
        self, request: artifacts_pb2.DownloadBlobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[artifacts_pb2.DownloadBlobResponse]:
        self.downloads.append((request.digest, request.offset))
        if request.digest not in self.blobs:
            raise NotFoundError(f"no blob {request.digest}")
        stop = request.offset + request.length if request.length else None
        data = self.blobs[request.digest][request.offset : stop]
        end = len(data) if self.cut_after is None else min(len(data), self.cut_after)
        for start in range(0, end, 1 << 20):
            yield artifacts_pb2.DownloadBlobResponse(data=data[start : min(end, start + (1 << 20))])
        if end < len(data):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")


def int32_request(name: str, *values: int) -> service_pb2.ModelInferRequest:
    """A request with one INT32 input x."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="INT32", shape=[len(values)])
    content = np.array(values, np.int32).tobytes()
    return service_pb2.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[content])


def int32_answer(response: service_pb2.ModelInferResponse) -> list[int]:
    """The one output's values."""
    values: list[int] = np.frombuffer(response.raw_output_contents[0], np.int32).tolist()
    return values
