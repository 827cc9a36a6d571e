"""The processes of one task: started, adopted, measured, ended."""

from __future__ import annotations

import asyncio
import time

import structlog

from aimesh.training.v1 import training_pb2
from node_agent.cgroup import read_oom_kills
from node_agent.training import limits
from node_agent.training.launcher import Role, Seat
from node_agent.training.roles import cast_of
from node_agent.training.standing import Standing
from node_agent.triton.process import TritonProcess as Process

log = structlog.get_logger()

POLL_S = 0.2
"""Between two looks at a process."""
TERM_S = 10.0
"""A process that did not stop in time gets so long after SIGTERM."""


class Seats:
    """A seat for each role of a task, once it is asked for."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self.cast = cast_of(standing.task)
        self.taken: dict[str, Seat] = {}
        """By role."""
        self.over_limit = ""
        """What the main process took too much of; it was ended for that."""
        self.stopped = ""
        """For how long the main process was stopped; it was ended for that."""
        self.started_at = 0.0
        """Monotonic seconds when a process was started last."""
        self._oom_kills = 0

    def seat(self, role: Role) -> Seat:
        """The role's, whether a process has it or not."""
        if role.name not in self.taken:
            folder = self._standing.folder.client if role == self.cast.client else self._standing.folder
            self.taken[role.name] = self._standing.tools.launcher.seat(role, folder)
        return self.taken[role.name]

    @property
    def main(self) -> Seat:
        """Of the process whose end is the task's."""
        return self.seat(self.cast.main)

    @property
    def busy(self) -> bool:
        """Whether any process runs."""
        return any(not seat.gone for seat in self.taken.values())

    @property
    def forks(self) -> bool:
        """Whether a process of the task can be forked."""
        return any(role is not None and role.forks for role in (self.cast.main, self.cast.client))

    async def warm(self) -> None:
        """Sees to it that there is something to fork the task's worker from. Raises what `Launcher.warm` raises."""
        if self.forks:
            await self._standing.tools.launcher.warm(self._standing.task, self._standing.folder)

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel has ended a process for want of memory since one was started here. Blocks on the disk."""
        return read_oom_kills() > self._oom_kills

    async def start(self, seat: Seat, *, waits: bool = False) -> None:
        """Starts the seat's process; one that waits is not told of go. Raises what `Launcher.start` raises."""
        standing = self._standing
        self._oom_kills = await asyncio.to_thread(read_oom_kills)
        task = _unsaid(standing.task) if waits else standing.task
        await standing.tools.launcher.start(seat, task, self._memory_limit(), standing.tools.prepare_timeout_s)
        assert seat.process is not None
        self.started_at, self.stopped = time.monotonic(), ""
        standing.state.processes[seat.role.name] = seat.process.id
        await standing.save()

    async def end(self, grace_s: float) -> None:
        """Ends all: SIGTERM, and SIGKILL after so many seconds."""
        await asyncio.gather(*(seat.end(grace_s) for seat in self.taken.values()))
        self._standing.state.processes.clear()

    def release(self) -> None:
        """Leaves the processes to the next agent."""
        for seat in self.taken.values():
            seat.release()

    def adopt(self) -> None:
        """Goes on with the processes that an agent before started."""
        cast, processes = self.cast, self._standing.state.processes
        roles = {role.name: role for role in (cast.main, cast.host, cast.client) if role is not None}
        for name, known in list(processes.items()):
            seat = self.seat(roles[name]) if name in roles else None
            try:
                if seat is not None:
                    seat.process = Process(known)
            except ProcessLookupError:
                if cast.client is not None and name == cast.client.name:
                    del processes[name]  # of the others it matters that they are gone

    def measure(self, gpu_bytes: dict[int, int]) -> None:
        """Looks at what the processes take, and ends those that take too much or were stopped; `gpu_bytes` are by
        process id.

        Blocks for some milliseconds.
        """
        resident = on_gpu = 0
        for seat in list(self.taken.values()):
            process = seat.process
            if process is None or process.exited:
                continue
            found = limits.family(process.pid)
            held = limits.resident(found)
            resident += held
            on_gpu += sum(gpu_bytes.get(each.pid, 0) for each in found)
            if found and (halted_s := seat.halt.lasts_s(found[0], time.monotonic())) >= limits.STOPPED_S:
                self._end_stopped(seat, process, halted_s)
            elif seat.group is None and held > self._memory_limit():
                task = self._standing.task
                log.warning("task.too_much_memory", job=task.job, rank=task.rank, bytes=held)
                if seat.role == self.cast.main:
                    self.over_limit = self.over_limit or self._too_much(seat, held)
                process.kill()
        progress = self._standing.progress
        progress.resident_bytes, progress.gpu_memory_bytes = resident, on_gpu

    def _end_stopped(self, seat: Seat, process: Process, halted_s: float) -> None:
        task = self._standing.task
        log.warning("task.process_stopped", job=task.job, rank=task.rank, pid=process.pid, seconds=round(halted_s, 1))
        if seat.role == self.cast.main:
            self.stopped = f"the {seat.role.name} was stopped for {halted_s:.0f} s (SIGSTOP) and was ended"
            seat.ended = True
        process.kill()

    def killed_by_group(self, seat: Seat) -> str:
        """What to say when the kernel ended the seat's process at the limit of its group; empty when it did not."""
        if seat.group is None or not limits.oom_kills(seat.group):
            return ""
        return self._too_much(seat, self._memory_limit())

    def _memory_limit(self) -> int:
        tools = self._standing.tools
        return limits.memory_limit(self._standing.task, tools.node_bytes, tools.memory_share)

    def _too_much(self, seat: Seat, held: int) -> str:
        return (
            f"the {seat.role.name} took {held} bytes of memory and may take {self._memory_limit()}: raise "
            "resources.memory_bytes, use a smaller batch or model, or more workers"
        )


def _unsaid(task: training_pb2.TrainingTask) -> training_pb2.TrainingTask:
    """The task as it is before go: an agent that comes later may prepare one that was told to go."""
    made = training_pb2.TrainingTask()
    made.CopyFrom(task)
    made.ClearField("go")
    made.ClearField("rendezvous")
    return made
