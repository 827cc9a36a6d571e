"""Calls to one Triton over its own KServe v2 gRPC service: deadlines on all, errors from the catalogue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from meshkit.channel import MAX_MESSAGE_BYTES
from meshkit.errors import AimeshError, DeadlineError, UnavailableError
from meshkit.grpc_errors import from_call
from meshkit.tls import TlsSettings, channel_credentials
from node_agent.certificates import server_name
from node_agent.triton.launch import SECRET_KEY

CONTROL_TIMEOUT_S = 5.0
"""Deadline of calls that Triton answers from memory."""

# No keepalive pings: a Triton that the agent did not start takes them for an attack and hangs up.
_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


@dataclass(frozen=True)
class IndexEntry:
    """A model as Triton's repository index shows it: state is READY, LOADING, UNLOADING, UNAVAILABLE or empty."""

    state: str
    reason: str


@dataclass(frozen=True)
class Counters:
    """What a model has done since Triton loaded it; times are summed, in nanoseconds."""

    successes: int
    failures: int
    success_ns: int
    queue_ns: int
    responses: int = 0
    """Of decoupled models whose backend counts them (the Python backend does not), the empty last ones left out."""


class TritonClient:
    """One Triton, by `host:port`. Every method raises a leaf of meshkit.errors, UnavailableError when none answers."""

    def __init__(self, address: str, tls: TlsSettings | None = None) -> None:
        """Raises PreconditionError when the files of `tls` cannot be used."""
        self.address = address
        self.secret = ""
        """Opens the calls that Triton keeps for its agent."""
        self._tls = tls or TlsSettings()
        self._replaced: grpc.aio.Channel | None = None
        self._channel = self._connect()
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def renew(self) -> None:
        """Connects anew with the certificate that lies on the disk. Calls in flight go on over the old connection.

        Raises PreconditionError when the files cannot be used, and goes on as before.
        """
        channel = self._connect()
        if self._replaced is not None:
            await self._replaced.close(None)
        self._replaced, self._channel = self._channel, channel
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def _connect(self) -> grpc.aio.Channel:
        credentials = channel_credentials(self._tls)
        if credentials is None:
            return grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        _, certificate, _ = self._tls.read()
        name = server_name(certificate, self.address.rpartition(":")[0])
        override = [("grpc.ssl_target_name_override", name)] if name else []
        return grpc.aio.secure_channel(self.address, credentials, options=[*_OPTIONS, *override])

    async def live(self, timeout_s: float = CONTROL_TIMEOUT_S) -> bool:
        """Whether it answers at all; never raises."""
        try:
            answer = await self._call(self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s))
        except AimeshError:
            return False
        return bool(answer.live)

    async def version(self) -> str:
        """Triton's own version, as 2.51.0."""
        request = service_pb2.ServerMetadataRequest()
        return str((await self._call(self._stub.ServerMetadata(request, timeout=CONTROL_TIMEOUT_S))).version)

    async def load(self, name: str, timeout_s: float) -> None:
        """Loads or reloads a model from the repository; returns when it is ready, raises with Triton's reason."""
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        await self._call(self._stub.RepositoryModelLoad(request, timeout=timeout_s, metadata=self._key()))

    async def unload(self, name: str) -> None:
        """Asks Triton to unload a model. Requests in flight go on: see `index` for when it is gone."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        await self._call(self._stub.RepositoryModelUnload(request, timeout=CONTROL_TIMEOUT_S, metadata=self._key()))

    async def index(self) -> dict[str, IndexEntry]:
        """Every model in the repository, by name."""
        request = service_pb2.RepositoryIndexRequest()
        answer = await self._call(self._stub.RepositoryIndex(request, timeout=CONTROL_TIMEOUT_S, metadata=self._key()))
        return {model.name: IndexEntry(model.state, model.reason) for model in answer.models}

    async def config(self, name: str) -> model_config_pb2.ModelConfig:
        """The configuration that a loaded model was loaded with."""
        request = service_pb2.ModelConfigRequest(name=name)
        answer = await self._call(self._stub.ModelConfig(request, timeout=CONTROL_TIMEOUT_S))
        return answer.config

    async def counters(self, timeout_s: float) -> dict[str, Counters]:
        """What each loaded model has done, by name, in one call."""
        answer = await self._call(self._stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=timeout_s))
        return {model.name: _counters(model) for model in answer.model_stats}

    async def trace(self, name: str, every: int, a_file: int, most: int) -> None:
        """Traces every so many-th request of a model, `a_file` in a file, `most` in all; none with every 0.

        What was traced before is written out at once. Raises when Triton was started without a trace file.
        """
        request = service_pb2.TraceSettingRequest(model_name=name)
        level = "TIMESTAMPS" if every else "OFF"
        values = {"trace_level": level, "trace_rate": max(1, every), "log_frequency": a_file, "trace_count": most}
        for key, value in values.items():
            request.settings[key].value.append(str(value))
        await self._call(self._stub.TraceSetting(request, timeout=CONTROL_TIMEOUT_S, metadata=self._key()))

    async def executions(self, model: str = "") -> int:
        """Requests answered since the models were loaded, failed ones included; of one model when it is named."""
        request = service_pb2.ModelStatisticsRequest(name=model)
        answer = await self._call(self._stub.ModelStatistics(request, timeout=CONTROL_TIMEOUT_S))
        return sum(s.inference_stats.success.count + s.inference_stats.fail.count for s in answer.model_stats)

    async def infer(self, request: service_pb2.ModelInferRequest, timeout_s: float) -> service_pb2.ModelInferResponse:
        """One request, one response."""
        return await self._call(self._stub.ModelInfer(request, timeout=timeout_s))

    async def stream(
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> list[service_pb2.ModelInferResponse]:
        """One request to a decoupled model, all of its responses; timeout_s bounds the whole."""
        call = self._stub.ModelStreamInfer(_once(request), timeout=timeout_s)
        responses: list[service_pb2.ModelInferResponse] = await self._call(_collect(call))
        return responses

    async def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        await self._channel.close(None)
        if self._replaced is not None:
            await self._replaced.close(None)

    def _key(self) -> tuple[tuple[str, str], ...]:
        return ((f"triton-grpc-protocol-{SECRET_KEY}", self.secret),) if self.secret else ()

    async def _call(self, awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except grpc.aio.AioRpcError as error:
            raise _explain(error, self.address) from None


def _counters(model: service_pb2.ModelStatistics) -> Counters:
    stats = model.inference_stats
    responses = sum(response.success.count for response in model.response_stats.values())
    return Counters(stats.success.count, stats.fail.count, stats.success.ns, stats.queue.ns, responses)


async def _once(request: service_pb2.ModelInferRequest) -> AsyncIterator[service_pb2.ModelInferRequest]:
    yield request


async def _collect(call: AsyncIterator[Any]) -> list[service_pb2.ModelInferResponse]:
    responses = []
    async for message in call:
        if message.error_message:
            raise AimeshError(message.error_message, reason="MODEL_ERROR")
        responses.append(message.infer_response)
    return responses


def _explain(error: grpc.aio.AioRpcError, address: str) -> AimeshError:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"Triton at {address} did not answer in time")
    if error.code() is grpc.StatusCode.UNAVAILABLE and "connect" in (error.details() or "").lower():
        return UnavailableError(f"Triton at {address} cannot be reached: {error.details()}")
    return from_call(error)
