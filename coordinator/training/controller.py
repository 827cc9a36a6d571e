"""The leader's training controller: level-triggered, so it may stop and start between any two lines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from aimesh.training.v1 import training_pb2
from coordinator import keys
from coordinator.blob_exchange import BlobExchange
from coordinator.election import Election
from coordinator.etcd import Created, Delete, Etcd, Put, Unchanged
from coordinator.faults import Faults
from coordinator.loads import ByNode, Loads
from coordinator.mirror import Mirror
from coordinator.placing import placed
from coordinator.settings import LessonSettings
from coordinator.state import State
from coordinator.training.advance import advance
from coordinator.training.attempts import overtaken, succeeded
from coordinator.training.lessons import taught
from coordinator.training.look import Look, moves, unheld
from coordinator.training.losses import SUCCEEDED
from coordinator.training.orders import FINISH, statuses_of
from coordinator.training.record import FINISHING, PAUSED, busy, copy, failed, is_over, phase_word, told, word
from coordinator.training.results import Results
from coordinator.training.seen import Move, Seen
from coordinator.training.versions import next_version
from coordinator.training.watch import JobWatch
from meshkit.auth import act_as
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, SupersededError, UnavailableError
from meshkit.failpoints import failpoint

log = structlog.get_logger()

PACE_S = 0.5
"""Longest time between two looks: what is granted a moment is looked at again."""
REST_S = 0.02
"""Least time between two looks: a burst of changes becomes one."""
MOST_REST_S = 0.25
LOADS_S = 1.0
ASK_S = 3.0
"""How long coordinators may take to say whether they hold a checkpoint."""
SETTLE_S = 1.5
"""So long after the end of an attempt its rank 0 is asked how far it came: all that it said has been read by then."""
SETTLE_TRIES = 3
STOPPED = "does not go on, for a fault of the coordinator: "
"""Begins the reason of a job whose next move cannot be worked out."""


@dataclass
class TrainingController:
    """Carries every job forward that is not over, on whichever coordinator leads."""

    etcd: Etcd
    mirror: Mirror
    election: Election
    loads: Loads
    exchange: BlobExchange
    results: Results
    points: Callable[[training_pb2.Job], Awaitable[Sequence[training_pb2.MetricPoint]]]
    """What its rank 0 has measured of a job."""
    lessons: LessonSettings = field(default_factory=LessonSettings)
    clock: Callable[[], float] = time.monotonic
    now_ns: Callable[[], int] = time.time_ns
    _watch: JobWatch = field(default_factory=JobWatch, init=False)
    _loads: ByNode = field(default_factory=dict, init=False)
    _faults: Faults = field(default_factory=lambda: Faults("training.fault"), init=False)
    _recording: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)

    async def run(self) -> None:
        """Looks at each change, and every PACE_S seconds, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_loads())
            term = 0
            while True:
                state, began = self.mirror.state, self.clock()
                if term != self.election.term:
                    term, self._watch = self.election.term, JobWatch()
                if term and not self.mirror.frozen and any(_goes_on(job) for job in state.jobs.values()):
                    await self.look(state, self.election.fence(), tasks)
                took = self.clock() - began
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PACE_S):
                        await self.mirror.newer_than(state)
                await asyncio.sleep(max(REST_S, min(took, MOST_REST_S)))

    async def look(self, state: State, fence: Created, tasks: asyncio.TaskGroup) -> None:
        """Does the next thing of every job. What one of them breaks on is no other's matter."""
        now = self.clock()
        self._watch.observe(state, self._loads, now)
        looked: dict[str, Seen] = {}

        def one(job: training_pb2.Job, seen: Seen) -> Move | None:
            looked[job.id] = seen
            with self._faults.kept(job.id, (job.phase, job.attempt.number)):
                return advance(job, seen)
            return _faulty(job, self._faults.of(job.id))

        placement = await placed(state)
        # In a large mesh it takes longer than anybody may wait for a heartbeat.
        found = await asyncio.to_thread(moves, Look(state, self._watch, now, self.now_ns()), placement, one)
        async with asyncio.TaskGroup() as writes:
            for move in found:
                writes.create_task(self._carry_out(state, move, looked[move.job.id], fence))
        for move in found:
            if state.jobs[move.job.id].attempt.number < move.job.attempt.number > 1:
                tasks.create_task(self._settle(move.job.id, move.job.attempt.number, fence))
        self._record_results(state, {move.job.id for move in found}, fence, tasks)

    async def _carry_out(self, state: State, move: Move, seen: Seen, fence: Created) -> None:
        """Writes a move; one that would go on from a checkpoint that nobody holds any more is worked out anew."""
        before = state.jobs[move.job.id]
        with self._faults.kept(f"{before.id}: writing", (before.phase, before.attempt.number)):
            if move.job.attempt.number != before.attempt.number and (files := unheld(state, move.job)):
                held = await self._held_by_coordinators(files)
                again = move if held else advance(before, replace(seen, resume_lost=True))
                if held is None or again is None:
                    return
                move = again
            await self._write(state, move, fence)

    async def _held_by_coordinators(self, files: Sequence[training_pb2.CheckpointFile]) -> bool | None:
        """Whether coordinators hold all of these; None when they do not say in time."""
        try:
            async with asyncio.timeout(ASK_S):
                for file in files:
                    if not await self.exchange.has_size(file.digest, file.bytes):
                        return False
        except TimeoutError:
            return None
        return True

    async def _settle(self, job_id: str, attempt: int, fence: Created) -> None:
        """Writes down steps that the attempt before made after its last heartbeat, once rank 0's node has told them."""
        await asyncio.sleep(SETTLE_S)
        with self._faults.kept(f"{job_id}: settling", attempt):
            for _ in range(SETTLE_TRIES):
                job = self.mirror.state.jobs.get(job_id)
                if job is None or job.attempt.number != attempt:
                    return
                points = await self.points(job)
                state = self.mirror.state
                if (job := state.jobs.get(job_id)) is None or (made := overtaken(job, points)) is None:
                    return
                if job.attempt.number != attempt or await self._write(state, Move(made), fence):
                    return

    async def _write(self, state: State, move: Move, fence: Created) -> bool:
        """Writes a job's record, and what it teaches, in one transaction on what was decided on."""
        made, before = move.job, state.jobs[move.job.id]
        guards: list[Created | Unchanged] = [fence, Unchanged(keys.job(made.id), state.job_revisions[made.id])]
        changes: list[Put | Delete] = [Put(keys.job(made.id), keys.encode(made))]
        if (table := taught(state, made, self.lessons, lacked=move.lacked)) is not None:
            guards.append(Unchanged(keys.STRATEGIES, state.strategies_revision))
            changes.append(Put(keys.STRATEGIES, keys.encode(table)))
        try:
            failpoint("training.decided")
            revision = await self.etcd.txn(guards, changes)
            if revision is None:
                return False
            failpoint("training.written")
            await self.mirror.reached(revision)  # the next look is at what was written
        except (SupersededError, UnavailableError) as error:
            log.warning("job.not_written", job=made.id, reason=error.message)
            return False
        _tell(before, made)
        return True

    def _record_results(self, state: State, moved: set[str], fence: Created, tasks: asyncio.TaskGroup) -> None:
        """Begins to record what has been packed; that may take its time, and others do not wait for it."""
        self._recording = {job_id: task for job_id, task in self._recording.items() if not task.done()}
        for job_id, job in state.jobs.items():
            if job.phase != FINISHING or job.order or job_id in moved or job_id in self._recording:
                continue
            status = statuses_of(state, job, FINISH).get(0)
            if status is not None and status.state == SUCCEEDED:
                self._recording[job_id] = tasks.create_task(self._record(state, job, status.version, fence))

    async def _record(self, state: State, job: training_pb2.Job, packed: str, fence: Created) -> None:
        """Records a result, then the job's success; tries again at another look what did not work out."""
        act_as(job.submitted_by or "leader", f"training job {job.id}")
        with self._faults.kept(f"{job.id}: recording", job.attempt.number):
            try:
                await self.results.record(state, job, packed, [fence])
                made = succeeded(job, self.now_ns())
            except (UnavailableError, SupersededError) as error:
                log.warning("job.result_not_recorded", job=job.id, reason=error.message)
                if (said := told(job, f"its result is not recorded yet: {error.message}")) is not None:
                    await self._write(state, Move(said), fence)
                await asyncio.sleep(Backoff(first_s=1.0).next_delay())
                return
            except AimeshError as error:
                made = _renumbered(state, job, error) or failed(
                    job, self.now_ns(), f"its result could not be recorded as {job.model}: {error}"
                )
            await self._write(self.mirror.state if _same(self.mirror.state, state, job) else state, Move(made), fence)

    async def _follow_loads(self) -> None:
        """Keeps the loads of nodes that train, from beside the looks: a coordinator that has died answers late."""
        while True:
            leads = self.election.term and any(busy(job) for job in self.mirror.state.jobs.values())
            self._loads = await self.loads() if leads else {}
            await asyncio.sleep(LOADS_S)


def _goes_on(job: training_pb2.Job) -> bool:
    return not is_over(job) and job.state != PAUSED


def _same(now: State, then: State, job: training_pb2.Job) -> bool:
    """Whether a job's record is still the one that was looked at: then what else changed since counts too."""
    return now.job_revisions.get(job.id) == then.job_revisions[job.id]


def _faulty(job: training_pb2.Job, fault: str) -> Move | None:
    said = told(job, f"{STOPPED}{fault}")
    return Move(said) if said is not None else None


def _renumbered(state: State, job: training_pb2.Job, error: AimeshError) -> training_pb2.Job | None:
    """With another number for its result, where the one that it had is taken or promises too much to callers."""
    if job.spec.output.version or error.reason not in ("VERSION_EXISTS", "SIGNATURE_BREAKS"):
        return None
    made = copy(job)
    made.model = next_version(state, job.spec, breaks=error.reason == "SIGNATURE_BREAKS")
    return made if made.model != job.model else None


def _tell(before: training_pb2.Job, now: training_pb2.Job) -> None:
    if (before.state, before.phase, before.attempt.number) != (now.state, now.phase, now.attempt.number):
        log.info(
            "job.moved",
            job=now.id,
            state=word(now.state),
            phase=phase_word(now.phase),
            attempt=now.attempt.number,
            reason=now.reason,
        )
