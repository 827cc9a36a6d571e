"""The whole agent as a process of its own, against a small coordinator, with a real Triton."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from aimesh.membership.v1 import membership_pb2
from node_agent.plan import READY
from node_agent.settings import AgentSettings
from node_agent.triton.client import TritonClient
from tests.mesh.node_agent.support import (
    Blobs,
    Coordinator,
    add_model,
    int32_answer,
    int32_request,
    settings_in,
)
from tests.processes import eventually

_PROGRAM = """
import asyncio, sys
from pathlib import Path
from meshkit.settings import load_settings
from node_agent.main import run
from node_agent.settings import AgentSettings
asyncio.run(run(load_settings(AgentSettings, "agent", Path(sys.argv[1]))))
"""


def _write_config(settings: AgentSettings, path: Path) -> None:
    triton = settings.triton
    path.write_text(
        f'[agent]\nnode_id = "{settings.node_id}"\ndata_dir = "{settings.data_dir}"\ndrain_s = {settings.drain_s}\n'
        f"coordinators = {list(settings.coordinators)}\n"
        f"[agent.triton]\ngrpc_port = {triton.grpc_port}\nhttp_port = {triton.http_port}\n"
        f"metrics_port = {triton.metrics_port}\n"
    )


@asynccontextmanager
async def running_agent(
    settings: AgentSettings, tmp_path: Path, **environ: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent; it and whatever it started are gone afterwards."""
    config = tmp_path / "agent.toml"
    _write_config(settings, config)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, str(config), env={**os.environ, **environ}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 20)


def _systemd() -> socket.socket:
    """A socket such as systemd listens on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(f"\0aimesh-test-{uuid.uuid4().hex}")
    listener.setblocking(False)
    return listener


def _name(listener: socket.socket) -> str:
    address: bytes = listener.getsockname()
    return "@" + address[1:].decode()


def _processes_of(data_dir: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if any(str(data_dir) in a for a in p.info["cmdline"] or [])]


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    server = Coordinator(Blobs())
    await server.start()
    yield server
    await server.stop()


async def test_serves_what_it_is_assigned_survives_kill_9_and_leaves_nothing(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path / "data", (coordinator.address,))
    slow = f"""if pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy()[0] == 5:
            open("{tmp_path}/asked", "w").close()
            time.sleep(1.5)"""
    plus_one = coordinator.blobs.version("plus", "1.0.0", add_model(1, request=slow))
    await coordinator.assign(plus_one)
    client = TritonClient(f"127.0.0.1:{settings.triton.grpc_port}")

    async with running_agent(settings, tmp_path) as agent:
        await eventually(lambda: coordinator.states().get(("plus", "1.0.0")) == READY)
        assert int32_answer(await client.infer(int32_request("plus", 1, 2), 10)) == [2, 3]
        report = coordinator.reports[-1]
        assert report.triton.state == membership_pb2.TRITON_STATE_READY
        assert report.assignments_revision == 1
        assert set(report.blobs) == {file.digest for file in plus_one.files}
        await eventually(lambda: coordinator.heartbeats and coordinator.heartbeats[-1].load.triton_resident_bytes)
        assert coordinator.hellos[0].capacity.cpu_cores > 0
        agent.kill()
        await agent.wait()
        first_triton = report.triton.pid
        assert psutil.pid_exists(first_triton)

    systemd, notified = _systemd(), list[str]()
    asyncio.get_running_loop().add_reader(systemd, lambda: notified.append(systemd.recv(100).decode()))
    async with running_agent(settings, tmp_path, NOTIFY_SOCKET=_name(systemd), WATCHDOG_USEC="200000") as agent:
        await eventually(lambda: len(coordinator.hellos) == 2)
        assert coordinator.hellos[1].instance_id == coordinator.hellos[0].instance_id
        await eventually(lambda: coordinator.states().get(("plus", "1.0.0")) == READY)
        assert not psutil.pid_exists(first_triton)
        assert len(coordinator.downloads) == 2, "the blobs were kept"
        in_flight = asyncio.create_task(client.infer(int32_request("plus", 5), 10))
        await eventually(lambda: (tmp_path / "asked").exists())
        agent.terminate()
        assert int32_answer(await in_flight) == [6], "what was in flight is finished first"
        assert await asyncio.wait_for(agent.wait(), 20) == 0
    asyncio.get_running_loop().remove_reader(systemd)
    systemd.close()
    assert notified[0] == "READY=1"
    assert set(notified[1:]) == {"WATCHDOG=1", "STOPPING=1"}
    assert coordinator.leaving == ["shutdown"]
    assert _processes_of(settings.data_dir) == []
    await client.close()
