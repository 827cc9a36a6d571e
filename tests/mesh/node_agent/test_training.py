"""Tasks of training jobs on a node, with real processes: prepared, started, followed, stopped, held, adopted."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf import json_format

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import node_pb2, node_pb2_grpc, training_pb2
from meshkit.channel import aio_channel
from meshkit.process import ProcessId
from node_agent.fetch import Fetcher
from node_agent.gpus import GpuReader
from node_agent.serving import node_server
from node_agent.settings import AgentSettings, TrainingSettings
from node_agent.store import ModelStore
from node_agent.training import limits, retention, tending
from node_agent.training.fitness import Fitness
from node_agent.training.folder import TaskKey
from node_agent.training.holding import hold_file
from node_agent.training.logs import tail_text
from node_agent.training.service import NodeTraining
from node_agent.training.strays import end_workers
from node_agent.training.tasks import Tasks
from node_agent.training.wiring import build_tasks
from tests.mesh.node_agent.support import CONFIG, Blobs, Coordinator
from tests.mesh.node_agent.workers import write_programs
from tests.processes import eventually

PLAN, TRAIN, FINISH = training_pb2.TASK_KIND_PLAN, training_pb2.TASK_KIND_TRAIN, training_pb2.TASK_KIND_FINISH
PREPARING = training_pb2.TASK_STATE_PREPARING
READY, RUNNING = training_pb2.TASK_STATE_READY, training_pb2.TASK_STATE_RUNNING
STOPPED, SUCCEEDED = training_pb2.TASK_STATE_STOPPED, training_pb2.TASK_STATE_SUCCEEDED
FAILED = training_pb2.TASK_STATE_FAILED


class Node:
    """The training part of one agent, and what its coordinator says."""

    def __init__(self, tasks: Tasks, store: ModelStore) -> None:
        self.tasks = tasks
        self.store = store
        self.assigned: dict[TaskKey, training_pb2.TrainingTask] = {}

    def assign(self, *tasks: training_pb2.TrainingTask) -> None:
        """Beside what is assigned already, or in its place."""
        for task in tasks:
            copied = training_pb2.TrainingTask()
            copied.CopyFrom(task)
            self.assigned[TaskKey.of(task)] = copied
        self.tasks.assign(self.assigned.values())

    def take_away(self, *tasks: training_pb2.TrainingTask) -> None:
        for task in tasks:
            del self.assigned[TaskKey.of(task)]
        self.tasks.assign(self.assigned.values())

    def status(self, task: training_pb2.TrainingTask) -> training_pb2.TaskStatus:
        found = [
            status
            for status in self.tasks.report()
            if (status.job, status.attempt, status.rank, status.kind) == (task.job, task.attempt, task.rank, task.kind)
        ]
        return found[0] if found else training_pb2.TaskStatus()

    async def reaches(self, task: training_pb2.TrainingTask, state: int) -> training_pb2.TaskStatus:
        await eventually(lambda: self.status(task).state == state, what=f"state {state}, was {self.status(task)}")
        return self.status(task)

    async def trains(self, task: training_pb2.TrainingTask) -> training_pb2.TaskStatus:
        """Prepared, told to go, and running."""
        self.assign(task)
        await self.reaches(task, READY)
        task.go, task.rendezvous = True, f"127.0.0.1:{self.status(task).port or 1}"
        self.assign(task)
        await eventually(lambda: self.status(task).state not in (0, 1, READY))
        return self.status(task)

    def folder(self, task: training_pb2.TrainingTask) -> Path:
        return self.tasks.root / task.job / TaskKey.of(task).folder

    def step(self, task: training_pb2.TrainingTask) -> int:
        return max((each.point.step for each in self.tasks.progress() if each.job == task.job), default=0)


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    server = Coordinator(Blobs())
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = write_programs(tmp_path / "programs")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("AIMESH_COORDINATOR_ETCD_PASSWORD", "nobody's business")
    return root


@asynccontextmanager
async def running(
    data_dir: Path, coordinator: Coordinator, torch: str = "2.13.0", **training: Any
) -> AsyncIterator[Node]:
    """The part while it runs, and then nothing of it."""
    settings = AgentSettings(node_id="node-1", data_dir=data_dir, training=TrainingSettings(**training))
    store = ModelStore(data_dir, 1 << 30)
    fetcher = Fetcher(store, coordinator.addresses, node_id="node-1")
    capacity = membership_pb2.Capacity(cpu_cores=4, memory_bytes=8 << 30)
    fitness = Fitness(settings)
    fitness.torch = torch
    tasks = build_tasks(settings, store, fetcher, GpuReader(), capacity, fitness)
    await tasks.adopt()
    part = asyncio.create_task(tasks.run())
    try:
        yield Node(tasks, store)
    finally:
        await tasks.leave(0.0)
        part.cancel()
        await asyncio.gather(part, return_exceptions=True)


@asynccontextmanager
async def killed_after(data_dir: Path, coordinator: Coordinator) -> AsyncIterator[Node]:
    """The part of an agent that is killed at the end: its processes go on."""
    async with running(data_dir, coordinator) as node:
        yield node
        children = [seat.process for work in node.tasks._works.values() for seat in work.seats.taken.values()]
        own = [child._child for child in children if child is not None]
        _ORPHANS.extend(child for child in own if isinstance(child, subprocess.Popen))
        for task in node.tasks._running.values():
            task.cancel()
        await asyncio.gather(*node.tasks._running.values(), return_exceptions=True)
        for work in node.tasks._works.values():
            work.release()


_ORPHANS: list[subprocess.Popen[bytes]] = []
"""Children of this process: somebody has to wait for them."""


@pytest.fixture(autouse=True)
async def _no_orphans(tmp_path: Path) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(end_workers, tmp_path / "node")
    while _ORPHANS:
        _ORPHANS.pop().wait(10)


@pytest.fixture
async def node(tmp_path: Path, coordinator: Coordinator, programs: Path) -> AsyncIterator[Node]:
    async with running(tmp_path / "node", coordinator, stop_grace_s=0.5) as found:
        yield found


def task_of(rank: int = 0, workers: int = 1, kind: int = TRAIN, **wishes: object) -> training_pb2.TrainingTask:
    """A task of the job job-1, whose worker does what is wished."""
    return training_pb2.TrainingTask(
        job="job-1",
        attempt=0 if kind == PLAN else 1,
        rank=rank,
        kind=kind,  # type: ignore[arg-type]
        spec=training_pb2.JobSpec(hyperparameters={name: str(value) for name, value in wishes.items()}),
        plan=training_pb2.JobPlan(strategy=training_pb2.STRATEGY_DDP),
        workers=[training_pb2.Worker(rank=each, node=f"node-{each + 1}") for each in range(workers)],
    )


def archive(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as written:
        for name, text in files.items():
            written.writestr(name.replace("__", "/"), text)
    return content.getvalue()


def said(folder: Path, word: str) -> Any:
    """What the worker printed after a word."""
    found = re.search(rf"^{word} (.*)$", (folder / "log.txt").read_text(), re.MULTILINE)
    assert found is not None
    return json.loads(found[1].replace("'", '"'))


async def test_a_worker_gets_all_that_it_needs_and_its_points_and_its_end_are_told(
    node: Node, coordinator: Coordinator
) -> None:
    task = task_of(workers=2)
    code, size = coordinator.blobs.add(archive(train="x = 1", pack__age="y = 2"))
    shard, shard_size = coordinator.blobs.add("1,2,3\n")
    base, base_size = coordinator.blobs.add("weights")
    part, part_size = coordinator.blobs.add("a checkpoint's part")
    task.spec.code.CopyFrom(training_pb2.Code(archive=code, entry="train:Trainer"))
    task.spec.data.shards.add(name="a.csv", digest=shard, bytes=shard_size)
    task.base.files.add(path="1/w.bin", digest=base, bytes=base_size)
    task.resume.step = 2
    task.resume.files.add(path="rank0.bin", digest=part, bytes=part_size)
    await node.trains(task)
    status = await node.reaches(task, SUCCEEDED)

    assert status.results == {"loss": 0.25}
    assert (status.link.bandwidth, status.link.workers) == (1e9, 2)
    assert status.step == 5
    assert size
    folder = node.folder(task)
    assert {"base/1/w.bin", "code/pack/age", "code/train", "data/a.csv", "resume/rank0.bin", "task.json"} <= set(
        said(folder, "sees")
    )
    environment = said(folder, "environment")
    assert environment["RANK"] == "0"
    assert environment["WORLD_SIZE"] == "2"
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    assert environment["MASTER_PORT"] == str(status.port)
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["AIMESH_NODE"] == "node-1"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert "nobody's business" not in environment.values()
    assert node.store.pinned() >= {code, shard, base, part}
    assert node.step(task) == 5
    assert json.loads((folder / "go.json").read_text())["rendezvous"] == f"127.0.0.1:{status.port}"


async def test_what_is_assigned_no_more_is_ended_and_only_its_words_are_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(steps=100_000, every=5)
    status = await node.trains(task)
    await eventually(lambda: len(node.status(task).checkpoints) == 2)
    process = ProcessId.of(status.pid)
    node.take_away(task)
    assert node.tasks.report() == []
    await eventually(lambda: not process.alive(), within_s=20)
    folder = node.folder(task)
    await eventually(lambda: not node.tasks._ending, what="it is written down")
    assert not (folder / "checkpoints").exists()
    assert (folder / "log.txt").exists()
    assert (folder / "events.jsonl").exists()

    monkeypatch.setattr(retention, "GONE_S", 0.0)
    node.tasks.retention.tell(membership_pb2.Assignments(jobs=membership_pb2.KnownJobs(ids=[task.job])))
    await node.tasks._sweep()
    assert folder.exists()
    node.tasks.retention.tell(membership_pb2.Assignments(jobs=membership_pb2.KnownJobs()))
    await node.tasks._sweep()
    assert not folder.parent.exists(), "the mesh knows the job no more"


def _zygote(node: Node) -> int:
    """Its pid; 0 when there is none."""
    one = node.tasks._tools.launcher.zygotes._one
    return one.process.pid if one is not None else 0


async def test_workers_are_forked_with_just_their_own_variables_and_one_starts_alone_when_that_fails(
    node: Node,
) -> None:
    old = task_of(rank=1, workers=2, steps=100_000)
    status = await node.trains(old)
    zygote = _zygote(node)
    assert psutil.Process(status.pid).ppid() == zygote
    os.kill(status.pid, signal.SIGKILL)
    assert "was ended by SIGKILL" in (await node.reaches(old, FAILED)).message
    new = replaced(old, attempt=2, rank=0, go=False)
    node.assigned.clear()
    status = await node.trains(new)
    assert psutil.Process(status.pid).ppid() == zygote
    assert os.getpgid(status.pid) == status.pid
    assert psutil.Process(status.pid).nice() == 10
    await eventually(lambda: node.step(new) > 0)
    environment = said(node.folder(new), "environment")
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("0", "2")
    assert "OPENBLAS_NUM_THREADS" not in environment
    known = ProcessId.of(zygote)
    os.kill(zygote, signal.SIGKILL)
    await eventually(lambda: not known.alive())
    node.assigned.clear()
    last = replaced(old, attempt=3, go=False)
    last.spec.hyperparameters["steps"] = "3"
    await node.trains(last)
    await node.reaches(last, SUCCEEDED)
    assert _zygote(node) == 0, "the next one comes after a rest"


async def test_nothing_is_kept_ready_where_no_worker_is_assigned_any_more(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "_MEASURE_S", 0.05)
    monkeypatch.setattr(tending, "_ZYGOTE_S", 0.2)
    task = task_of(rank=1, workers=2, steps=100_000)
    await node.trains(task)
    zygote = ProcessId.of(_zygote(node))
    node.take_away(task)
    await eventually(lambda: _zygote(node) == 0)
    await eventually(lambda: not zygote.alive())


async def test_the_next_attempt_does_not_wait_for_one_that_does_not_listen(node: Node) -> None:
    old = task_of(rank=1, workers=2, steps=100_000, deaf=1)
    known = ProcessId.of((await node.trains(old)).pid)
    new = replaced(old, attempt=2, go=True)
    new.spec.hyperparameters["steps"] = "3"
    node.assigned.clear()
    node.assign(new)
    await node.reaches(new, SUCCEEDED)
    assert not known.alive()


async def test_checkpoints_become_blobs_and_the_older_ones_go(node: Node) -> None:
    task = task_of(rank=1, workers=2, steps=100_000, every=5, step_s=0.02)
    await node.trains(task)
    await eventually(lambda: node.status(task).checkpoints and node.status(task).checkpoints[0].step >= 25)
    found = node.status(task).checkpoints
    assert [each.step for each in found] == [found[0].step, found[0].step - 5]
    (file,) = found[0].files
    assert (file.path, found[0].attempt, found[0].world_size) == ("rank1.bin", 1, 2)
    content = b"%d of 1" % found[0].step
    assert node.store.path(file.digest).read_bytes() == content
    assert file.bytes == len(content)
    assert {file.digest} <= node.store.pinned()
    kept = sorted(int(path.name) for path in (node.folder(task) / "checkpoints").iterdir() if path.name != "new")
    assert len(kept) <= 4  # two are kept; one may be about to go, and one may just have come
    task.stop = True
    node.assign(task)
    status = await node.reaches(task, STOPPED)
    assert status.checkpoints[0].step == status.step


async def test_a_checkpoint_that_was_given_up_is_told_until_there_is_a_newer_one(node: Node) -> None:
    task = task_of(rank=1, workers=2, steps=100_000, every=5, step_s=0.02, full_from=10)
    await node.trains(task)
    await eventually(lambda: node.status(task).message.startswith("no checkpoint since step 5: that of step "))
    assert node.status(task).message.endswith(" was given up: the disk is full")
    (node.folder(task) / "room").touch()
    await eventually(lambda: node.status(task).checkpoints[0].step > 5)
    status = node.status(task)
    assert (status.message, status.state) == ("", RUNNING)


async def test_a_checkpoint_for_which_the_store_has_no_room_is_removed_and_told(node: Node) -> None:
    task = task_of(rank=1, workers=2, steps=100_000, every=5, step_s=0.05)
    await node.trains(task)
    await eventually(lambda: node.status(task).checkpoints)
    limit, node.store.limit_bytes = node.store.limit_bytes, 1
    await eventually(lambda: node.status(task).message)
    status = node.status(task)
    last, why = status.checkpoints[0].step, "is not held: the model store"
    assert status.message.startswith(f"no checkpoint since step {last}: that of step ")
    assert why in status.message
    assert status.state == RUNNING
    place = node.folder(task) / "checkpoints"
    given_up = int(status.message.split("that of step ")[1].split()[0])
    await eventually(lambda: not (place / str(given_up)).exists())
    node.store.limit_bytes = limit
    await eventually(lambda: node.status(task).checkpoints[0].step > given_up)
    assert node.status(task).message == ""


async def test_a_worker_that_is_stopped_is_lost_and_one_that_goes_on_in_time_is_not(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "_MEASURE_S", 0.05)
    monkeypatch.setattr(limits, "STOPPED_S", 1.0)
    task = task_of(rank=1, workers=2, steps=100_000)
    pid = (await node.trains(task)).pid
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: node.tasks._works[TaskKey.of(task)].seats.main.halt.seen)
    os.kill(pid, signal.SIGCONT)
    await eventually(lambda: not node.tasks._works[TaskKey.of(task)].seats.main.halt.seen)
    os.kill(pid, signal.SIGSTOP)
    status = await node.reaches(task, FAILED)
    assert re.fullmatch(r"the worker was stopped for \d+ s \(SIGSTOP\) and was ended", status.message)
    assert status.may_retry


@pytest.mark.parametrize(
    ("wishes", "may_retry", "says"),
    [
        ({"exit": 3}, False, "ended with exit code 3; its log ends with: "),
        ({"exit": 0}, False, "ended without saying that it was done"),
        ({"raises": "labels out of range"}, False, "labels out of range"),
        ({"hold_mib": 300, "steps": 1000, "step_s": 0.1}, False, "bytes of memory and may take"),
        ({"steps": 1000, "step_s": 0.1, "deaf": 1}, True, "did not stop in time and was ended"),
    ],
)
async def test_why_a_worker_failed_is_told(node: Node, wishes: dict[str, object], may_retry: bool, says: str) -> None:
    task = task_of(1, 2, TRAIN, **wishes)
    task.spec.resources.memory_bytes = 200 << 20
    await node.trains(task)
    if "deaf" in wishes:
        task.stop = True
        node.assign(task)
    status = await node.reaches(task, FAILED)
    assert says in status.message
    assert status.may_retry is may_retry
    assert status.failed_at.seconds


async def test_a_worker_that_is_killed_may_be_tried_again(node: Node) -> None:
    task = task_of(rank=1, workers=2, steps=100_000)
    status = await node.trains(task)
    await eventually(lambda: node.step(task) > 0)
    os.kill(status.pid, signal.SIGKILL)
    status = await node.reaches(task, FAILED)
    assert "was ended by SIGKILL" in status.message
    assert status.may_retry
    assert status.step == node.step(task), "the steps that are lost are known when its node is gone too"


async def test_a_worker_that_dies_while_it_waits_may_be_tried_again(node: Node) -> None:
    dies, waits = task_of(rank=1, workers=3, dies=1), task_of(rank=2, workers=3)
    node.assign(dies, waits)
    status = await node.reaches(dies, FAILED)
    assert "was ended by SIGKILL" in status.message
    assert status.may_retry
    await node.reaches(waits, READY)
    (process,) = node.tasks._works[TaskKey.of(waits)].state.processes.values()
    os.kill(process.pid, signal.SIGKILL)
    assert "was ended by SIGKILL" in (await node.reaches(waits, FAILED)).message


async def test_a_worker_starts_while_its_checkpoint_is_fetched(node: Node, coordinator: Coordinator) -> None:
    task = task_of(rank=1, workers=2)
    task.resume.step = 2
    content = "a checkpoint's part"
    task.resume.files.add(path="rank0.bin", digest=hashlib.sha256(content.encode()).hexdigest(), bytes=len(content))
    node.assign(task)
    await eventually(lambda: node.tasks._works[TaskKey.of(task)].state.processes)
    assert node.status(task).state == PREPARING
    coordinator.blobs.add(content)
    await node.reaches(task, READY)
    assert (node.folder(task) / "resume" / "rank0.bin").read_text() == content


async def test_the_next_agent_tells_a_worker_that_waits_to_go(
    tmp_path: Path, coordinator: Coordinator, programs: Path
) -> None:
    task = task_of(steps=3)
    async with killed_after(tmp_path / "node", coordinator) as first:
        first.assign(task)
        await first.reaches(task, READY)
        started = dict(first.tasks._works[TaskKey.of(task)].state.processes)
    async with running(tmp_path / "node", coordinator) as second:
        assert second.status(task).state == READY
        task.go, task.rendezvous = True, f"127.0.0.1:{second.status(task).port}"
        second.assign(task)
        status = await second.reaches(task, SUCCEEDED)
        assert status.pid == started["worker"].pid
        assert (second.folder(task) / "log.txt").read_text().count("environment") == 1


async def test_what_cannot_be_prepared_fails_with_the_reason(node: Node, coordinator: Coordinator) -> None:
    nowhere, bad = task_of(), task_of(rank=1)
    nowhere.spec.data.path = "/nonexistent/data"
    outside, _ = coordinator.blobs.add(archive(**{"../evil": "x"}))
    bad.spec.code.archive = outside
    node.assign(nowhere, bad)
    assert (
        "'/nonexistent/data' of job job-1 does not exist on node node-1"
        in (await node.reaches(nowhere, FAILED)).message
    )
    status = await node.reaches(bad, FAILED)
    assert "leads out of its folder" in status.message
    assert not status.may_retry


async def test_what_the_process_at_which_workers_meet_says_is_told(node: Node, programs: Path) -> None:
    event = '{"error": {"message": "no such address"}}\n'
    says = f"import sys\nwith open(sys.argv[1] + '/events.jsonl', 'a') as file: file.write({event!r})"
    (programs / "training" / "federated" / "aggregator.py").write_text(says)
    task = task_of()
    task.plan.strategy = training_pb2.STRATEGY_FEDERATED
    node.assign(task)
    assert (await node.reaches(task, FAILED)).message == "no such address"


async def test_a_node_without_torch_says_so(tmp_path: Path, coordinator: Coordinator, programs: Path) -> None:
    async with running(tmp_path / "node", coordinator, torch="") as node:
        node.assign(task_of())
        assert "has no torch" in (await node.reaches(task_of(), FAILED)).message


async def test_the_next_agent_goes_on_with_the_worker_and_with_what_it_said(
    tmp_path: Path, coordinator: Coordinator, programs: Path
) -> None:
    task = task_of(steps=100_000, every=20)
    async with killed_after(tmp_path / "node", coordinator) as first:
        pid = (await first.trains(task)).pid
        await eventually(lambda: len(first.status(task).checkpoints) == 2)
        at = first.step(task)
    async with running(tmp_path / "node", coordinator) as second:
        assert second.status(task).state == RUNNING
        assert second.status(task).pid == pid
        await eventually(lambda: second.step(task) > at)
        second.assign(task)
        await asyncio.sleep(0)
        task.stop = True
        second.assign(task)
        status = await second.reaches(task, STOPPED)
        assert status.pid == pid
        assert status.checkpoints[0].step == status.step
        assert (second.folder(task) / "log.txt").read_text().count("environment") == 1


async def test_a_worker_that_ended_while_no_agent_looked_is_reported_by_the_next(
    tmp_path: Path, coordinator: Coordinator, programs: Path
) -> None:
    done, killed = task_of(rank=1, steps=40), task_of(rank=2, steps=100_000)
    async with killed_after(tmp_path / "node", coordinator) as first:
        pids = [(await first.trains(task)).pid for task in (done, killed)]
    os.kill(pids[1], signal.SIGKILL)
    await eventually(lambda: '"done"' in tail_text(first.folder(done) / "events.jsonl"))
    async with running(tmp_path / "node", coordinator) as second:
        await second.reaches(done, SUCCEEDED)
        status = await second.reaches(killed, FAILED)
        assert "ended while no agent watched it" in status.message
        assert status.may_retry


async def test_a_process_that_nobody_wrote_down_is_ended(
    tmp_path: Path, coordinator: Coordinator, programs: Path
) -> None:
    task = task_of(rank=1, steps=100_000)
    async with killed_after(tmp_path / "node", coordinator) as first:
        pid = (await first.trains(task)).pid
    state = first.folder(task) / "train.state.json"
    written = json.loads(state.read_text())
    written["processes"] = {}
    written["status"] |= {"state": "TASK_STATE_READY"}
    state.write_text(json.dumps(written))  # as when the agent died between the start and the writing
    known = ProcessId.of(pid)
    async with running(tmp_path / "node", coordinator) as second:
        assert not known.alive()
        second.assign(task)
        status = await second.reaches(task, RUNNING)
        assert status.pid != pid


async def test_what_a_worker_has_forked_stays_as_long_as_it_does(
    tmp_path: Path, coordinator: Coordinator, programs: Path
) -> None:
    task = task_of(steps=100_000, forks=1)
    async with killed_after(tmp_path / "node", coordinator) as first:
        worker = ProcessId.of((await first.trains(task)).pid)
        (forked,) = map(ProcessId.of, (each.pid for each in psutil.Process(worker.pid).children()))
    async with killed_after(tmp_path / "node", coordinator) as second:
        assert second.status(task).state == RUNNING
        assert forked.alive()
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: not worker.alive())
    assert forked.alive()
    async with running(tmp_path / "node", coordinator):
        assert not forked.alive()


async def test_workers_stop_at_a_checkpoint_when_the_agent_leaves(node: Node) -> None:
    task, waiting = task_of(steps=100_000), task_of(rank=1)
    await node.trains(task)
    node.assign(waiting)
    await node.reaches(waiting, READY)
    await asyncio.wait_for(node.tasks.leave(10.0), 15)
    status = await node.reaches(task, STOPPED)
    assert status.checkpoints[0].step == status.step
    assert status.message == "the agent was told to end"
    assert node.status(waiting).state == STOPPED


async def test_copies_are_fetched_from_another_agent_and_held(
    tmp_path: Path, node: Node, coordinator: Coordinator
) -> None:
    content = b"a part of a checkpoint" * 500_000  # two chunks
    writer = ModelStore(tmp_path / "writer", 1 << 30)
    part = tmp_path / "part"
    part.write_bytes(content)
    file = await hold_file(writer, part, "rank0.bin")
    server = node_server(AgentSettings(node_id="node-2", data_dir=tmp_path / "writer"), writer)
    await server.start()
    coordinator.holders = dict.fromkeys((file.digest, file.chunk_list), f"127.0.0.1:{server.port}")
    try:
        task = task_of(rank=1, workers=2, steps=100_000)
        await node.trains(task)
        task.copies.append(file)
        node.assign(task)
        await eventually(lambda: file.digest in node.store.held())
        assert node.store.path(file.digest).read_bytes() == content
        assert coordinator.downloads == []
        await eventually(lambda: {file.digest, file.chunk_list} <= node.store.pinned())
    finally:
        await server.stop(0)


async def test_a_client_that_dies_is_started_again_and_an_aggregator_is_not(node: Node) -> None:
    aggregator, client = task_of(workers=2, steps=100_000), task_of(rank=1, workers=2, steps=100_000, once=1)
    for task in (aggregator, client):
        task.plan.strategy = training_pb2.STRATEGY_FEDERATED
        await node.trains(task)
    await eventually(lambda: "started again" in node.status(client).message)
    await eventually(lambda: node.step(client) > 0)
    assert node.status(client).state == RUNNING
    beside = node.folder(aggregator).with_name("1-0-client")
    await eventually(lambda: (beside / "events.jsonl").exists())
    os.kill(node.status(aggregator).pid, signal.SIGKILL)
    status = await node.reaches(aggregator, FAILED)
    assert "SIGKILL" in status.message
    assert status.may_retry
    client.stop = True
    node.assign(client)
    await node.reaches(client, STOPPED)


async def test_planning_gives_the_plan_and_finishing_the_version(node: Node, coordinator: Coordinator) -> None:
    digest, size = coordinator.blobs.add("1,2\n")
    planning = task_of(kind=PLAN)
    planning.spec.data.shards.add(name="a.csv", digest=digest, bytes=size)
    node.assign(planning)
    status = await node.reaches(planning, SUCCEEDED)
    assert (status.plan.strategy, status.plan.samples) == (training_pb2.STRATEGY_DDP, 1)

    training = task_of(config=CONFIG)
    await node.trains(training)
    await node.reaches(training, SUCCEEDED)
    finishing = replaced(training, kind=FINISH)
    finishing.model = "sorter:1.2.0"
    node.assigned.clear()
    node.assign(finishing)
    status = await node.reaches(finishing, SUCCEEDED)
    version = registry_pb2.ModelVersion()
    json_format.Parse(status.version, version)
    assert (version.name, version.version, version.runtime) == ("sorter", "1.2.0", "python")
    assert {file.digest for file in version.files} <= node.store.held() & node.store.pinned()


def replaced(task: training_pb2.TrainingTask, **fields: Any) -> training_pb2.TrainingTask:
    made = training_pb2.TrainingTask()
    made.CopyFrom(task)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


async def test_a_result_that_cannot_be_packed_says_why(node: Node) -> None:
    finishing = task_of(kind=FINISH)
    finishing.model = "sorter:1.0.0"
    node.assign(finishing)
    assert "has left no result" in (await node.reaches(finishing, FAILED)).message
    training = task_of(config="no configuration {")
    node.assigned.clear()
    await node.trains(training)
    await node.reaches(training, SUCCEEDED)
    finishing = replaced(training, kind=FINISH)
    finishing.model = "sorter:1.0.0"
    node.assigned.clear()
    node.assign(finishing)
    status = await node.reaches(finishing, FAILED)
    assert status.message.startswith("the result cannot be served: ")
    assert not status.may_retry


async def test_logs_and_points_are_read_while_they_grow(node: Node, tmp_path: Path) -> None:
    task = task_of(steps=30)
    settings = AgentSettings(node_id="node-1", data_dir=tmp_path / "node")
    server = node_server(settings, node.store, NodeTraining(node.tasks.root, node.tasks))
    await server.start()
    try:
        await node.trains(task)
        await eventually(lambda: "sees" in tail_text(node.folder(task) / "log.txt"))
        async with aio_channel(f"127.0.0.1:{server.port}") as channel:
            stub: Any = node_pb2_grpc.NodeTrainingServiceStub(channel)
            request = node_pb2.ReadLogRequest(job="job-1", attempt=1, rank=0, tail=1, follow=True)
            text = "".join([answer.text async for answer in stub.ReadLog(request, timeout=20)])
            assert text.startswith("sees ")
            await node.reaches(task, SUCCEEDED)
            metrics = stub.ReadMetrics(node_pb2.ReadMetricsRequest(job="job-1"), timeout=10)
            points = [point async for answer in metrics for point in answer.points]
            assert [point.step for point in points] == list(range(1, 31))
            assert {point.attempt for point in points} == {1}
    finally:
        await server.stop(0)
