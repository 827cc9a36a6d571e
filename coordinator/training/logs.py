"""The logs of a job's workers, side by side as they come, from the nodes on which they ran."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from aimesh.training.v1 import node_pb2, training_pb2
from coordinator.training.agents import NodeTraining
from meshkit.errors import AimeshError, NotFoundError

MOST_QUEUED = 64
"""Messages that wait for a caller who reads slowly."""
MOST_RANKS = 64
"""Ranks that are looked for in an attempt of which the record does not say any more where it ran."""
Line = training_pb2.GetJobLogsResponse


@dataclass
class JobLogs:
    """Relays them."""

    nodes: NodeTraining

    async def read(self, job: training_pb2.Job, request: training_pb2.GetJobLogsRequest) -> AsyncGenerator[Line, None]:
        """What is asked for; when it is followed, also of the attempts that come, until the job has ended."""
        while True:
            current = request.attempt in (0, job.attempt.number)
            found = self._now(job, request) if current else self._earlier(job, request)
            async with aclosing(found) as lines:
                async for line in lines:
                    yield line
            if not request.follow or request.attempt:
                return
            after = await self._next_attempt(job)
            if after is None:
                return
            job = after

    async def _now(self, job: training_pb2.Job, request: training_pb2.GetJobLogsRequest) -> AsyncGenerator[Line, None]:
        """Of the newest attempt, all ranks at once."""
        wanted = [w for w in job.attempt.workers if not request.HasField("rank") or w.rank == request.rank]
        if not job.attempt.number:
            wanted = wanted[:1]  # only planned so far
        queue: asyncio.Queue[Line | None] = asyncio.Queue(maxsize=MOST_QUEUED)
        tasks = [asyncio.create_task(self._relay(job, worker, request, queue)) for worker in wanted]
        left = len(tasks)
        try:
            while left:
                line = await queue.get()
                if line is None:
                    left -= 1
                else:
                    yield line
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(
        self,
        job: training_pb2.Job,
        worker: training_pb2.Worker,
        request: training_pb2.GetJobLogsRequest,
        queue: asyncio.Queue[Line | None],
    ) -> None:
        asked = node_pb2.ReadLogRequest(
            job=job.id, attempt=job.attempt.number, rank=worker.rank, tail=request.tail, follow=request.follow
        )
        try:
            async with aclosing(self.nodes.log(worker.node, asked)) as texts:
                async for text in texts:
                    await queue.put(Line(rank=worker.rank, node=worker.node, text=text))
        except AimeshError as error:
            await queue.put(Line(rank=worker.rank, node=worker.node, missing=str(error)))
        await queue.put(None)

    async def _earlier(
        self, job: training_pb2.Job, request: training_pb2.GetJobLogsRequest
    ) -> AsyncGenerator[Line, None]:
        """Of an attempt that is over: each rank on the first node that knows it."""
        ranks: Sequence[int] = [request.rank] if request.HasField("rank") else range(self._most_ranks(job))
        for rank in ranks:
            asked = node_pb2.ReadLogRequest(job=job.id, attempt=request.attempt, rank=rank, tail=request.tail)
            known = False
            for node in job.nodes:
                with contextlib.suppress(AimeshError):
                    async with aclosing(self.nodes.log(node, asked)) as texts:
                        async for text in texts:
                            known = True
                            yield Line(rank=rank, node=node, text=text)
                if known:
                    break
            if not known:
                why = NotFoundError("no node that answers has its log", hint="folders of old workers are removed")
                yield Line(rank=rank, missing=str(why))

    def _most_ranks(self, job: training_pb2.Job) -> int:
        return min(MOST_RANKS, max(1, len(job.attempt.workers), job.spec.resources.max_workers))

    async def _next_attempt(self, job: training_pb2.Job) -> training_pb2.Job | None:
        """The job once it has another attempt; None when it has ended."""
        state = self.nodes.mirror.state
        while not self.nodes.over(job.id):
            now = state.jobs.get(job.id)
            if now is not None and now.attempt.number != job.attempt.number:
                return now
            state = await self.nodes.mirror.newer_than(state)
        return None
