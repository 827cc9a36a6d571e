"""Training on whole agents: one that is killed and followed by another, and several that fetch from each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError
from meshkit.process import ProcessId
from node_agent.training.holding import hold_file
from node_agent.training.strays import end_workers
from node_agent.triton.leftover import end_leftovers
from tests.mesh.coordinator.conftest import RunningCoordinator
from tests.mesh.coordinator.conftest import coordinator as real_coordinator
from tests.mesh.node_agent.distribution import Receiver, blob_of, receivers
from tests.mesh.node_agent.support import Blobs, Coordinator, settings_in
from tests.mesh.node_agent.test_agent_process import running_agent
from tests.mesh.node_agent.test_training import READY, RUNNING, STOPPED, task_of
from tests.mesh.node_agent.workers import write_programs
from tests.processes import EtcdServer, etcd_server, eventually


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    server = Coordinator(Blobs())
    await server.start()
    yield server
    await server.stop()
    end_leftovers(tmp_path / "data")
    end_workers(tmp_path / "data")


async def test_a_worker_outlives_its_agent_and_stops_at_a_checkpoint_with_the_next(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path / "data", (coordinator.address,))
    environ = {"PYTHONPATH": str(write_programs(tmp_path / "programs"))}
    task = task_of(steps=1_000_000)
    await coordinator.assign(tasks=[task])

    def status() -> training_pb2.TaskStatus:
        last = coordinator.reports[-1].tasks if coordinator.reports else []
        return last[0] if last else training_pb2.TaskStatus()

    async with running_agent(settings, tmp_path, **environ) as first:
        await eventually(lambda: status().state == READY)
        assert "training" in coordinator.hellos[0].runtimes
        task.go, task.rendezvous = True, f"127.0.0.1:{status().port}"
        await coordinator.assign(tasks=[task])
        await eventually(lambda: status().state == RUNNING)
        pid = status().pid
        zygote = ProcessId.of(psutil.Process(pid).ppid())
        await eventually(lambda: _step(coordinator) > 0)
        first.kill()
        await first.wait()
    await eventually(lambda: not zygote.alive())
    assert psutil.pid_exists(pid), "it outlives what it was forked from"
    before = _step(coordinator)
    async with running_agent(settings, tmp_path, **environ) as second:
        await eventually(lambda: len(coordinator.hellos) == 2)
        told = coordinator.hellos[1].report.tasks[0]
        assert (told.state, told.pid) == (RUNNING, pid), "from its first word on"
        await eventually(lambda: _step(coordinator) > before)
        second.terminate()
        assert await asyncio.wait_for(second.wait(), 60) == 0
    assert status().state == STOPPED
    assert status().checkpoints[0].step == status().step > before
    assert set(status().checkpoints[0].files[0].digest.split()) <= set(coordinator.reports[-1].blobs)
    assert coordinator.leaving == ["shutdown"]
    assert end_workers(settings.data_dir) == [], "nothing is left"


def _step(coordinator: Coordinator) -> int:
    found = [each.point.step for beat in coordinator.heartbeats for each in beat.load.tasks]
    return max(found, default=0)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path / "etcd") as started:
        yield started


async def test_what_only_an_agent_holds_comes_from_there_and_through_no_coordinator(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    async with real_coordinator(etcd, tmp_path, node_ttl_s=10) as c1, receivers(tmp_path, c1, 3) as nodes:
        small, large = (blob_of(tmp_path, size) for size in (70_000, 20_000_000))
        held = [await hold_file(nodes[0].store, path, "part") for path in (small, large)]
        wanted = [
            registry_pb2.ModelFile(path=file.path, digest=file.digest, size=file.bytes, chunks=file.chunk_list)
            for file in held
        ]
        with pytest.raises(AimeshError):
            await nodes[1].fetcher.fetch_shared(wanted[0], (), lambda _: None)
        nodes[0].report()
        await eventually(lambda: _reported(c1, held[1].chunk_list))
        for node in nodes[1:]:
            for file in wanted:
                await node.fetcher.fetch_shared(file, (), lambda _: None)
                assert node.whole(file)
        assert _from_coordinators(nodes) == 0
        assert sum(node.fetcher.traffic.from_peers for node in nodes) >= 2 * 20_070_000


async def _reported(c1: RunningCoordinator, digest: str) -> bool:
    node = await c1.node("n0")
    return node is not None and digest in node.report.blobs


def _from_coordinators(nodes: list[Receiver]) -> int:
    return sum(node.fetcher.traffic.from_coordinators for node in nodes)
