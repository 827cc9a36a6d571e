"""One task on this node, from what it needs to its end: prepared, started, followed, stopped, reported."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from google.protobuf import json_format

from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, InvalidInputError, PreconditionError
from node_agent.cgroup import read_oom_kills
from node_agent.threads import uninterrupted
from node_agent.training import holding, limits
from node_agent.training.copies import hold_copies
from node_agent.training.events import EventTail
from node_agent.training.folder import Folder
from node_agent.training.heard import Heard, Said
from node_agent.training.launcher import WORKER, Role, Seat, write_go
from node_agent.training.logs import tail_text
from node_agent.training.outcome import Ending, Outcome, last_lines, outcome
from node_agent.training.roles import cast_of
from node_agent.training.state import TaskState
from node_agent.training.tools import TaskFailedError, Tools
from node_agent.triton.process import TritonProcess as Process

log = structlog.get_logger()

PREPARING = training_pb2.TASK_STATE_PREPARING
READY = training_pb2.TASK_STATE_READY
RUNNING = training_pb2.TASK_STATE_RUNNING
STOPPED = training_pb2.TASK_STATE_STOPPED
SUCCEEDED = training_pb2.TASK_STATE_SUCCEEDED
FAILED = training_pb2.TASK_STATE_FAILED
OVER = (STOPPED, SUCCEEDED, FAILED)

_POLL_S = 0.2
_OPEN_POLL_S = 0.05
"""While workers start: a job that is brought back waits for them."""
_LINGER_S = 30.0
"""A process that has said its last word gets so long to go."""
_TERM_S = 10.0
"""And one that did not stop in time, after SIGTERM."""
_SETTLED_S = 3.0
"""A worker that was started so long ago is through with its own start."""
_STABLE_S = 60.0
"""A client that ran so long is started again at once."""


@dataclass
class TaskWork:
    """What is being done with one task. `run` carries it to its end and goes on holding copies, until cancelled."""

    state: TaskState
    folder: Folder
    tools: Tools
    progress: training_pb2.TaskProgress = field(default_factory=training_pb2.TaskProgress)
    leaving: bool = False
    """Whether the agent is to end."""
    over_limit: str = ""
    """What the main process took too much of; it was ended for that."""
    seats: dict[str, Seat] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _copies_changed: asyncio.Event = field(default_factory=asyncio.Event)
    _stop_at: float | None = None
    """Monotonic seconds when the main process was asked to stop."""
    _terminated: bool = False
    _oom_kills: int = 0
    _started_at: float = 0.0
    """Monotonic seconds when a process was started last."""
    _backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.5, most_s=10.0))

    def __post_init__(self) -> None:
        task = self.state.task
        self.cast = cast_of(task)
        self.heard = Heard(self.state, self.folder, self.tools, self.progress, self._told_error, self._save)
        self.progress.job, self.progress.attempt, self.progress.rank = task.job, task.attempt, task.rank

    @property
    def task(self) -> training_pb2.TrainingTask:
        """As it was assigned last."""
        return self.state.task

    @property
    def status(self) -> training_pb2.TaskStatus:
        """As it is reported."""
        return self.state.status

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status.state in OVER

    @property
    def needs_spare(self) -> bool:
        """Whether a worker has trained here for a while, which another attempt may follow any time."""
        settled = time.monotonic() - self._started_at > _SETTLED_S
        return self.cast.main.module == WORKER and self.status.state == RUNNING and settled

    @property
    def busy(self) -> bool:
        """Whether a process of it runs that trains."""
        return any(not seat.gone for seat in self.seats.values())

    def update(self, task: training_pb2.TrainingTask) -> None:
        """Takes what the coordinator says of it now."""
        if task != self.state.task:
            self.state.task = task
            self._changed.set()
            self._copies_changed.set()

    def ask_stop(self) -> None:
        """The agent is to end: a worker writes a checkpoint and stops."""
        self.leaving = True
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled, which leaves its processes as they are."""
        async with asyncio.TaskGroup() as group:
            group.create_task(hold_copies(self.tools, lambda: self.task, self._copies_changed, self._tell))
            group.create_task(self.heard.hold_checkpoints())
            if self.cast.client is not None:
                group.create_task(self._keep_client(self.cast.client))
            group.create_task(self._guard())

    async def end(self, grace_s: float) -> None:
        """Ends its processes: SIGTERM, and SIGKILL after so many seconds."""
        await asyncio.gather(*(seat.end(grace_s) for seat in self.seats.values()))
        self.state.processes.clear()

    def release(self) -> None:
        """Leaves its processes to the next agent."""
        for seat in self.seats.values():
            seat.release()

    def adopt(self) -> None:
        """Goes on with the processes that an agent before started."""
        roles = {role.name: role for role in (self.cast.main, self.cast.host, self.cast.client) if role is not None}
        for name, known in list(self.state.processes.items()):
            seat = self._seat(roles[name]) if name in roles else None
            try:
                if seat is not None:
                    seat.process = Process(known)
            except ProcessLookupError:
                if self.cast.client is not None and name == self.cast.client.name:
                    del self.state.processes[name]  # of the others it matters that they are gone

    def measure(self, gpu_bytes: dict[int, int]) -> None:
        """Looks at what its processes take, and ends a worker that takes too much. Blocks for some milliseconds."""
        resident = on_gpu = 0
        for seat in list(self.seats.values()):
            process = seat.process
            if process is None or process.exited:
                continue
            found = limits.family(process.pid)
            held = limits.resident(found)
            resident += held
            on_gpu += sum(gpu_bytes.get(each.pid, 0) for each in found)
            if seat.group is None and held > self._memory_limit():
                log.warning("task.too_much_memory", job=self.task.job, rank=self.task.rank, bytes=held)
                if seat.role == self.cast.main:
                    self.over_limit = self.over_limit or self._too_much(seat, held)
                process.kill()
        self.progress.resident_bytes, self.progress.gpu_memory_bytes = resident, on_gpu

    def _too_much(self, seat: Seat, held: int) -> str:
        return (
            f"the {seat.role.name} took {held} bytes of memory and may take {self._memory_limit()}: raise "
            "resources.memory_bytes, use a smaller batch or model, or more workers"
        )

    # The way from nothing to the end.

    async def _guard(self) -> None:
        """Carries the task to its end; an error becomes its state."""
        try:
            await self._carry()
        except TaskFailedError as error:
            await self._fail(error.message, may_retry=error.may_retry)
        except (AimeshError, OSError, ValueError) as error:
            lasting = isinstance(error, InvalidInputError | PreconditionError | ValueError)
            await self._fail(str(error), may_retry=not lasting)
        if self.status.state == FAILED:
            await self.end(_TERM_S)

    async def _carry(self) -> None:
        if self.over:  # an agent before saw to that, and perhaps not to the process
            await self._seat(self.cast.main).end(0.0)
            return
        if self.tools.unfit:
            raise TaskFailedError(self.tools.unfit, may_retry=True)
        if self.status.state != RUNNING:
            if not self._still_ready():
                await self._prepare()
            if not await self._until_go():
                return
            await self.tools.others_gone(self.state)
            await self._begin()
        await self._follow()
        while self._may_restart():
            await self._restart()
            await self._follow()
        await self._conclude()

    def _still_ready(self) -> bool:
        """Whether an agent before has prepared all, and what it started still runs."""
        needed = [role for role in self.cast.early if not (role == self.cast.main and self.cast.restarts)]
        return self.status.state == READY and not any(self._seat(role).gone for role in needed)

    async def _prepare(self) -> None:
        await self.end(0.0)
        self.heard.forget()
        self.status.port = 0
        await self._set(PREPARING)
        await self.tools.preparer.prepare(self.task, self.folder, self._tell)
        if self.cast.client is not None:
            await uninterrupted(_share, self.folder, self.folder.client)
        if not self.cast.waits:
            await self.tools.preparer.bring_checkpoint(self.task, self.folder, self._tell)
        for role in self.cast.early:
            await self._start(self._seat(role), waits=True)
        if self.cast.waits:  # it comes while they import what they need
            await self.tools.preparer.bring_checkpoint(self.task, self.folder, self._tell)
        await self._until_open()
        await self._set(READY)

    async def _until_open(self) -> None:
        """Waits until the process at which the workers meet says where it listens, and the worker that it waits."""
        host, deadline = self.cast.host, time.monotonic() + self.tools.prepare_timeout_s
        while True:
            await self._check_waiting()
            if (host is None or self.status.port) and (not self.cast.waits or self._waits()):
                return
            if host is not None and not self.status.port and time.monotonic() > deadline:
                raise TaskFailedError(
                    f"the {host.name} did not listen within {self.tools.prepare_timeout_s:g} s", may_retry=True
                )
            await asyncio.sleep(_OPEN_POLL_S)

    def _waits(self) -> bool:
        """Whether the worker waits for go; a client that died meanwhile is started again at go."""
        return self.heard.waiting or (self.cast.restarts and self._seat(self.cast.main).gone)

    async def _check_waiting(self) -> None:
        """Takes what was said before go. Raises TaskFailedError when a process is gone that must be there."""
        host, main = self.cast.host, self.cast.main
        gone = [role for role in self.cast.early if self._seat(role).gone]
        await self.heard.listen()
        if host is not None and (host in gone or (self.over and host == main)):
            await self._host_lost(self._seat(host))
        if self.over:
            raise TaskFailedError(self.status.message, may_retry=self.status.may_retry)
        if main in gone and not self.cast.restarts:
            await self._lost(self._seat(main))

    async def _host_lost(self, seat: Seat) -> None:
        """Raises TaskFailedError with what it said, or with how it ended."""
        if self.over:
            raise TaskFailedError(self.status.message, may_retry=self.status.may_retry)
        code = seat.process.exit_status if seat.process is not None else None
        text = last_lines(await asyncio.to_thread(tail_text, self.folder.log))
        how = outcome(Ending(code=code, log=text))
        raise TaskFailedError(f"{seat.role.name}: {how.message}", may_retry=True)

    async def _until_go(self) -> bool:
        """Waits until it is told to go on. False when it was told to stop before, and has."""
        while not (self.task.go or self.task.kind != training_pb2.TASK_KIND_TRAIN):
            if self.task.stop or self.leaving:
                self.status.step = self.task.resume.step
                await self._set(STOPPED, "stopped before it began" if not self.leaving else "the agent was told to end")
                await self.end(_TERM_S)
                return False
            await self._check_waiting()
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._changed.wait()
            self._changed.clear()
        return True

    async def _begin(self) -> None:
        seat = self._seat(self.cast.main)
        if seat.gone:
            self.heard.said = Said()
            await self._start(seat)
        else:
            await asyncio.to_thread(write_go, seat.folder, self.task)
        assert seat.process is not None
        self.status.pid = seat.process.pid
        await self._set(RUNNING)

    async def _start(self, seat: Seat, *, waits: bool = False) -> None:
        self._oom_kills = await asyncio.to_thread(read_oom_kills)
        await self.tools.launcher.start(seat, _unsaid(self.task) if waits else self.task, self._memory_limit())
        assert seat.process is not None
        self._started_at = time.monotonic()
        self.state.processes[seat.role.name] = seat.process.id
        await self._save()

    # While it runs.

    async def _follow(self) -> None:
        """Until the main process is gone and all that it said is taken."""
        seat = self._seat(self.cast.main)
        while (process := seat.process) is not None and not process.exited:
            await process.exits_within(_POLL_S)
            await self.heard.listen()
            await asyncio.to_thread(seat.log.rotate)
            await self._press(seat)
        await self.heard.listen()
        await self.heard.all_held.wait()  # what it wrote is reported no later than its end

    async def _press(self, seat: Seat) -> None:
        """Asks the process to stop when it is to, and then less kindly; ends one that has said its last word."""
        now = time.monotonic()
        if self.heard.said.last_at and now - self.heard.said.last_at > _LINGER_S:
            await seat.end(0.0)
            return
        if not (self.task.stop or self.leaving) or self.task.kind != training_pb2.TASK_KIND_TRAIN:
            return
        if self._stop_at is None:
            self._stop_at = now
            await asyncio.to_thread(self.folder.stop.touch)
            if self.cast.client is not None:
                await asyncio.to_thread(self.folder.client.stop.touch)
        elif now - self._stop_at > self.tools.stop_grace_s + min(_TERM_S, self.tools.stop_grace_s):
            await seat.end(0.0)
        elif now - self._stop_at > self.tools.stop_grace_s and not self._terminated:
            self._terminated = True
            if seat.process is not None:
                seat.process.terminate()

    # Its end.

    async def _conclude(self) -> None:
        """Reports how the main process ended, unless that is reported already."""
        seat = self._seat(self.cast.main)
        if self.status.state == FAILED:
            return
        found = await self._end_of(seat)
        if self.task.kind == training_pb2.TASK_KIND_FINISH:
            await self._take_version()
        elif self.task.kind == training_pb2.TASK_KIND_PLAN and not self.status.HasField("plan"):
            raise TaskFailedError("the planner ended without a plan", may_retry=False)
        await self._set(found.state, "the agent was told to end" if self.leaving else "")

    async def _lost(self, seat: Seat) -> None:
        """Raises TaskFailedError with how a worker ended that was only to wait."""
        found = await self._end_of(seat)
        raise TaskFailedError(found.message or "the process ended before it was told to go", may_retry=True)

    async def _end_of(self, seat: Seat) -> Outcome:
        """How the main process ended. Raises TaskFailedError when that is a failure."""
        if self.over_limit:
            raise TaskFailedError(self.over_limit, may_retry=False)
        process, self.state.processes = (
            seat.process,
            {name: known for name, known in self.state.processes.items() if name != seat.role.name},
        )
        if seat.group is not None and limits.oom_kills(seat.group):
            raise TaskFailedError(self._too_much(seat, self._memory_limit()), may_retry=False)
        ending = Ending(
            code=process.exit_status if process is not None else None,
            done=self.heard.said.done,
            ended=seat.ended,
            out_of_memory=read_oom_kills() > self._oom_kills,
            log=last_lines(await asyncio.to_thread(tail_text, self.folder.log)),
        )
        found = outcome(ending)
        if found.state == FAILED and self.cast.restarts and (self.task.stop or self.leaving):
            found = Outcome(STOPPED)  # a client has nothing that would be lost
        if found.state == FAILED:
            raise TaskFailedError(found.message, may_retry=found.may_retry)
        return found

    async def _take_version(self) -> None:
        text = await asyncio.to_thread((self.folder.packed / "version.json").read_text)
        try:
            version = json_format.Parse(text, registry_pb2.ModelVersion())
        except json_format.ParseError as error:
            raise TaskFailedError(f"version.json is none: {error}", may_retry=False) from None
        self.state.packed = await holding.hold_version(self.tools.store, self.folder, version)
        self.status.version = text

    async def _told_error(self, event: training_pb2.WorkerEvent) -> None:
        """The main process said why it ends: that is told at once, whenever it may be gone."""
        if not (self.cast.restarts and event.error.may_retry):
            at_ns = event.at.ToNanoseconds()
            await self._fail(event.error.message, may_retry=event.error.may_retry, at_ns=at_ns)

    async def _fail(self, message: str, *, may_retry: bool, at_ns: int = 0) -> None:
        self.status.may_retry = may_retry
        if at_ns:
            self.status.failed_at.FromNanoseconds(at_ns)
        else:
            self.status.failed_at.GetCurrentTime()
        log.warning("task.failed", job=self.task.job, attempt=self.task.attempt, rank=self.task.rank, reason=message)
        await self._set(FAILED, message)

    # Clients of an aggregator.

    def _may_restart(self) -> bool:
        """Whether the main process is one that is to be started again."""
        stopping = self.task.stop or self.leaving
        return self.cast.restarts and self.heard.said.done is None and not (self.over or stopping or self.over_limit)

    async def _restart(self) -> None:
        seat = self._seat(self.cast.main)
        self.heard.said = Said()
        await self._pause_before(seat)
        await self._start(seat)
        assert seat.process is not None
        self.status.pid = seat.process.pid
        await self._set(RUNNING, self.status.message)

    async def _pause_before(self, seat: Seat) -> None:
        text = last_lines(await asyncio.to_thread(tail_text, seat.folder.log), 3)
        self.status.message = f"its client died and is started again; its log ends with: {text}"[:500]
        log.warning("task.client_died", job=self.task.job, rank=self.task.rank, log=text)
        self.tools.on_change()
        if time.monotonic() - self._started_at > _STABLE_S:
            self._backoff.reset()
        await asyncio.sleep(self._backoff.next_delay())

    async def _keep_client(self, role: Role) -> None:
        """Keeps a client running beside the aggregator, from go on until the task is over."""
        seat = self._seat(role)
        tail = EventTail(seat.folder.events)
        while not self.over:
            if self.status.state != RUNNING or self.task.stop or self.leaving:
                await asyncio.sleep(_POLL_S)
                continue
            if seat.gone:
                try:
                    await self._start(seat)
                except (AimeshError, OSError) as error:
                    log.warning("task.client_not_started", job=self.task.job, reason=str(error))
                    await asyncio.sleep(self._backoff.next_delay())
                    continue
            assert seat.process is not None
            await seat.process.wait()
            if await self._said_last(tail):
                return
            if not self.over:
                await self._pause_before(seat)

    async def _said_last(self, tail: EventTail) -> bool:
        """Whether a client that has ended is not to be started again: it is done, or it never could go better."""
        last = False
        while events := await asyncio.to_thread(tail.read):
            for event in events:
                if event.WhichOneof("body") == "error" and not event.error.may_retry:
                    self.status.message = f"its client: {event.error.message}"
                    self.tools.on_change()
                    last = True
                last = last or event.WhichOneof("body") == "done"
        return last

    # Small things.

    def _memory_limit(self) -> int:
        return limits.memory_limit(self.task, self.tools.node_bytes, self.tools.memory_share)

    def _seat(self, role: Role) -> Seat:
        if role.name not in self.seats:
            folder = self.folder.client if role == self.cast.client else self.folder
            self.seats[role.name] = self.tools.launcher.seat(role, folder)
        return self.seats[role.name]

    def _tell(self, text: str) -> None:
        self.progress.message = text

    async def _set(self, state: training_pb2.TaskState.ValueType, message: str = "") -> None:
        self.status.state, self.status.message = state, message
        self.tools.on_change()
        await self._save()

    async def _save(self) -> None:
        try:
            await uninterrupted(self.state.save, self.folder)
        except OSError as error:  # the next agent would not know; this one does
            log.warning("task.not_saved", job=self.task.job, reason=str(error))


def _unsaid(task: training_pb2.TrainingTask) -> training_pb2.TrainingTask:
    """The task as it is before go: an agent that comes later may prepare one that was told to go."""
    made = training_pb2.TrainingTask()
    made.CopyFrom(task)
    made.ClearField("go")
    made.ClearField("rendezvous")
    return made


def _share(own: Folder, other: Folder) -> None:
    """Gives the client beside an aggregator the same code, data and base model. Blocks on the disk."""
    other.path.mkdir(parents=True, exist_ok=True)
    for path in (other.stop, other.go, other.events):
        path.unlink(missing_ok=True)
    for name in ("code", "data", "base"):
        link, target = other.path / name, own.path / name
        link.unlink(missing_ok=True)
        if target.is_dir():
            link.symlink_to(target, target_is_directory=True)
