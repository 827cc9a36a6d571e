"""What is asked of agents' own servers about jobs: logs and measured points, of nodes that ran workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import structlog

from aimesh.training.v1 import node_pb2, node_pb2_grpc, training_pb2
from coordinator.blob_exchange import node_address
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from coordinator.training.progress import curve
from coordinator.training.record import is_over
from meshkit.errors import AimeshError, DeadlineError, NotFoundError, PreconditionError, UnavailableError
from meshkit.grpc_errors import from_call

log = structlog.get_logger()

FRESH_S = 1.0
"""An agent is asked for points no more often than this."""
MESSAGE_S = 5.0
"""How long an agent may take for its next message; one that follows a log may be silent for as long as its worker."""
MOST_ASKED = 8
"""Nodes that are asked for points, those that ran the job last."""
MOST_KEPT = 64
"""Jobs whose points are kept for a moment."""


Points = Sequence[training_pb2.MetricPoint]


@dataclass
class NodeTraining:
    """Asks them."""

    mirror: Mirror
    peers: Peers
    clock: Callable[[], float] = time.monotonic
    _points: dict[str, tuple[float, Points, Points]] = field(default_factory=dict, init=False)
    """By job: when it was asked for, all points, and those that count."""
    _asking: dict[str, asyncio.Lock] = field(default_factory=dict, init=False)

    async def points(self, job: training_pb2.Job) -> Points:
        """All points that count, by step; those of nodes that do not answer are missing."""
        return (await self._asked(job))[1]

    async def measured(self, job: training_pb2.Job) -> Points:
        """The same with those that later attempts made again."""
        return (await self._asked(job))[0]

    async def _asked(self, job: training_pb2.Job) -> tuple[Points, Points]:
        lock = self._asking.setdefault(job.id, asyncio.Lock())
        async with lock:
            if (known := self._points.get(job.id)) is not None and self.clock() - known[0] < FRESH_S:
                return known[1:]
            nodes = list(dict.fromkeys([*(w.node for w in job.attempt.workers[:1]), *job.nodes]))[:MOST_ASKED]
            found = await asyncio.gather(*(self._of_node(node, job.id) for node in nodes))
            every = [point for points in found for point in points]
            made = every, curve(every)
            self._points[job.id] = self.clock(), *made
        while len(self._points) > MOST_KEPT:
            oldest = min(self._points, key=lambda job_id: self._points[job_id][0])
            del self._points[oldest]
            self._asking.pop(oldest, None)
        return made

    async def log(self, node_id: str, request: node_pb2.ReadLogRequest) -> AsyncGenerator[str, None]:
        """What a worker printed, as it comes. Raises NotFoundError, UnavailableError, DeadlineError."""
        patience = None if request.follow else MESSAGE_S
        async with aclosing(self._read(node_id, lambda stub: stub.ReadLog(request), patience)) as answers:
            async for answer in answers:
                yield answer.text

    def over(self, job_id: str) -> bool:
        """Whether a job has ended, or was removed."""
        job = self.mirror.state.jobs.get(job_id)
        return job is None or is_over(job)

    async def _of_node(self, node_id: str, job_id: str) -> list[training_pb2.MetricPoint]:
        request, found = node_pb2.ReadMetricsRequest(job=job_id), list[training_pb2.MetricPoint]()
        try:
            async with aclosing(self._read(node_id, lambda stub: stub.ReadMetrics(request), MESSAGE_S)) as answers:
                async for answer in answers:
                    found.extend(answer.points)
        except NotFoundError:
            pass
        except AimeshError as error:
            log.info("job.points_not_told", job=job_id, node=node_id, reason=error.message)
        return found

    async def _read(
        self, node_id: str, ask: Callable[[Any], Any], patience_s: float | None
    ) -> AsyncGenerator[Any, None]:
        node = self.mirror.state.nodes.get(node_id)
        address = node_address(node) if node is not None else ""
        if not address:
            raise UnavailableError(f"node {node_id} is away, or its agent has no server", hint="see: aimesh status")
        try:
            channel = self.peers.to_node(address)
        except PreconditionError as error:  # own certificate cannot be read
            raise UnavailableError(f"node {node_id} cannot be asked: {error.message}") from None
        call = ask(node_pb2_grpc.NodeTrainingServiceStub(channel))
        try:
            while True:
                async with asyncio.timeout(patience_s):
                    message = await call.read()
                if not isinstance(message, node_pb2.ReadLogResponse | node_pb2.ReadMetricsResponse):
                    return
                yield message
        except TimeoutError:
            raise DeadlineError(f"node {node_id} sent nothing for {patience_s} s") from None
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from None
        finally:
            call.cancel()
            await channel.close(None)
