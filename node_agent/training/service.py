"""NodeTrainingService: what coordinators ask of the jobs that ran here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol, TypeVar

from aimesh.training.v1 import node_pb2, node_pb2_grpc
from meshkit.errors import NotFoundError
from node_agent.training.folder import Folder, checked_job, worker_folder
from node_agent.training.logs import LogReader, read_points

SERVICE = "aimesh.training.v1.NodeTrainingService"
_FOLLOW_S = 0.3
T = TypeVar("T")


class Running(Protocol):
    """What knows which tasks go on."""

    def runs(self, job: str, folder: str) -> bool:
        """Whether a process of this task may still write."""


class NodeTraining(node_pb2_grpc.NodeTrainingServiceServicer):
    """Serves logs and points from the folders of jobs."""

    def __init__(self, root: Any, tasks: Running) -> None:
        """`root` is where the folders of jobs lie."""
        self._root = root
        self._tasks = tasks

    async def ReadLog(  # noqa: N802
        self, request: node_pb2.ReadLogRequest, context: Any
    ) -> AsyncIterator[node_pb2.ReadLogResponse]:
        """See node.proto."""
        name = worker_folder(request.attempt, request.rank)
        folder = Folder(self._root / checked_job(request.job) / name)
        if not await asyncio.to_thread(folder.path.is_dir):
            raise NotFoundError(
                f"rank {request.rank} of attempt {request.attempt} of job {request.job} never ran here, or was removed"
            )
        logs = [LogReader(folder.log, request.tail)]
        if await asyncio.to_thread(folder.client.log.exists):
            logs.append(LogReader(folder.client.log, request.tail))
        for reader in logs:
            async for text in _pieces(reader.first()):
                yield node_pb2.ReadLogResponse(text=text)
        while request.follow:
            running = self._tasks.runs(request.job, name)
            for reader in logs:
                async for text in _pieces(reader.more(all_of_it=not running)):
                    yield node_pb2.ReadLogResponse(text=text)
            if not running:
                return
            await asyncio.sleep(_FOLLOW_S)

    async def ReadMetrics(  # noqa: N802
        self, request: node_pb2.ReadMetricsRequest, context: Any
    ) -> AsyncIterator[node_pb2.ReadMetricsResponse]:
        """See node.proto."""
        folder = self._root / checked_job(request.job)
        if not await asyncio.to_thread(folder.is_dir):
            raise NotFoundError(f"job {request.job} never ran here, or was removed")
        async for points in _pieces(read_points(folder)):
            yield node_pb2.ReadMetricsResponse(points=points)


async def _pieces(found: Iterator[T]) -> AsyncIterator[T]:
    """What an iterator that blocks on the disk gives, read in threads."""
    nothing = object()
    while (piece := await asyncio.to_thread(next, found, nothing)) is not nothing:
        yield piece  # type: ignore[misc]
