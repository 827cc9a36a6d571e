"""The whole agent as a process of its own, against a small coordinator, with a real Triton."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from aimesh.membership.v1 import membership_pb2
from meshkit.errors import AimeshError, UnavailableError
from node_agent.plan import READY
from node_agent.settings import AgentSettings
from node_agent.triton.client import TritonClient
from node_agent.triton.leftover import end_leftovers
from node_agent.triton.record import read_record
from node_agent.triton.supervisor import _EARLY_S
from tests.mesh.node_agent.support import (
    Blobs,
    Coordinator,
    add_model,
    int32_answer,
    int32_request,
    settings_in,
)
from tests.processes import eventually as holds_within

eventually = partial(holds_within, within_s=120.0)
"""Several agents and Tritons start, one after the other, on machines of two cores that do other things as well."""
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
            await asyncio.wait_for(process.wait(), 60)


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
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    server = Coordinator(Blobs())
    await server.start()
    yield server
    await server.stop()
    end_leftovers(tmp_path / "data")  # of an agent that was killed, when the test failed before the next came


class Load:
    """Somebody who asks a model every few milliseconds and writes down what goes wrong."""

    def __init__(self, client: TritonClient, model: str) -> None:
        self.client = client
        self.model = model
        self.answers = 0
        self.failures: list[str] = []
        """All that went wrong."""
        self.final: list[str] = []
        """What of it no client may try elsewhere: all but UNAVAILABLE."""

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[Load]:
        task = asyncio.create_task(self._ask_forever())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ask_forever(self) -> None:
        while True:
            try:
                assert int32_answer(await self.client.infer(int32_request(self.model, 1), 30)) == [2]
                self.answers += 1
            except AimeshError as error:
                self.failures.append(str(error))
                if not isinstance(error, UnavailableError):
                    self.final.append(str(error))
            await asyncio.sleep(0.004)


def _states(report: membership_pb2.ModelReport) -> dict[str, int]:
    return {model.name: model.state for model in report.models}


async def test_an_agent_that_goes_leaves_triton_serving_and_the_next_goes_on_with_it(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path / "data", (coordinator.address,))
    plus, gone = (coordinator.blobs.version(name, "1.0.0", add_model(1)) for name in ("plus", "gone"))
    await coordinator.assign(plus, gone)
    client = TritonClient(f"127.0.0.1:{settings.triton.grpc_port}")

    async with running_agent(settings, tmp_path) as agent:
        await eventually(lambda: set(coordinator.states().values()) == {READY} and len(coordinator.states()) == 2)
        triton = coordinator.reports[-1].triton.pid
        assert stat.S_IMODE((settings.data_dir / "triton.json").stat().st_mode) == 0o600, "it has the secret in it"
        with pytest.raises(AimeshError, match="restricted"):
            await client.unload("plus")
        async with Load(client, "plus").going_on() as load:
            await eventually(lambda: load.answers > 20)
            stubs = _stubs(triton, "plus")
            agent.send_signal(signal.SIGHUP)
            assert await asyncio.wait_for(agent.wait(), 60) == 0
            # What is wanted changes while nobody is there to be told.
            late = coordinator.blobs.version("late", "1.0.0", add_model(2))
            await coordinator.assign(plus, late)
            async with running_agent(settings, tmp_path) as second:
                await eventually(lambda: len(coordinator.hellos) == 2)
                assert _states(coordinator.hellos[1].report) == {"plus": READY, "gone": READY}, "from its first word on"
                assert coordinator.hellos[1].report.triton.pid == triton
                assert coordinator.hellos[1].report.triton.state == membership_pb2.TRITON_STATE_READY
                await eventually(lambda: coordinator.states() == {("plus", "1.0.0"): READY, ("late", "1.0.0"): READY})
                second.kill()
                await second.wait()
                async with running_agent(settings, tmp_path) as third:
                    await eventually(lambda: len(coordinator.hellos) == 3)
                    assert _states(coordinator.hellos[2].report) == {"plus": READY, "late": READY}
                    counted = await eventually(lambda: _load_of("plus", coordinator))
                    assert counted.successes > 20
                    assert counted.success_ns > counted.queue_ns > 0
                    assert load.failures == []
                    assert _stubs(triton, "plus") == stubs, "never loaded anew"
                    third.kill()
                    await third.wait()
    # With other settings, it is ended and another is started; a stub that died while no agent watched is noticed.
    async with running_agent(replace(settings, drain_s=3.0), tmp_path) as fourth:
        await eventually(lambda: coordinator.reports[-1].triton.pid not in (0, triton))
        await eventually(lambda: set(coordinator.states().values()) == {READY} and len(coordinator.states()) == 2)
        assert not psutil.pid_exists(triton)
        triton = coordinator.reports[-1].triton.pid
        fourth.kill()
        await fourth.wait()
        for stub in _stubs(triton, "plus"):
            stub.kill()
        async with running_agent(replace(settings, drain_s=3.0), tmp_path) as fifth:
            await eventually(lambda: len(coordinator.hellos) == 5)
            assert _states(coordinator.hellos[4].report) == {"late": READY}
            await eventually(lambda: coordinator.states().get(("plus", "1.0.0")) == READY)
            assert coordinator.reports[-1].triton.pid == triton
            psutil.Process(triton).kill()
            await eventually(lambda: "status that only the agent that started it" in _heard(coordinator))
            fifth.terminate()
            assert await asyncio.wait_for(fifth.wait(), 60) == 0
    assert coordinator.leaving == ["shutdown"], "only who was asked to stop says that it leaves"
    assert _processes_of(settings.data_dir) == []
    await client.close()


async def test_who_still_asks_a_node_whose_triton_died_is_refused_and_never_told_that_there_is_no_such_model(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path / "data", (coordinator.address,))
    slow = coordinator.blobs.version("slow", "1.0.0", add_model(1, before="time.sleep(1)"))
    await coordinator.assign(slow, coordinator.blobs.version("plus", "1.0.0", add_model(1)))
    client = TritonClient(f"127.0.0.1:{settings.triton.grpc_port}")
    async with running_agent(settings, tmp_path) as agent:
        await eventually(lambda: set(coordinator.states().values()) == {READY} and len(coordinator.states()) == 2)
        triton = coordinator.reports[-1].triton.pid
        ready = asyncio.get_running_loop().time()
        # One that dies within seconds may have died of its models, and is started anew without them.
        await eventually(lambda: asyncio.get_running_loop().time() > ready + _EARLY_S)
        await coordinator.stop()
        async with Load(client, "slow").going_on() as load:
            await _answers_more(load)
            os.kill(triton, signal.SIGKILL)
            await eventually(lambda: load.failures)
            await _answers_more(load)
            agent.kill()
            await agent.wait()
            os.killpg(_triton_of(settings), signal.SIGKILL)
            seen = len(load.failures)
            await eventually(lambda: len(load.failures) > seen)
            async with running_agent(settings, tmp_path) as alone:
                await _answers_more(load)
                stubs = _stubs(_triton_of(settings), "slow")
                await coordinator.start(int(coordinator.address.rpartition(":")[2]))
                await eventually(lambda: len(coordinator.hellos) == 2)
                await eventually(lambda: _states(coordinator.reports[-1]) == {"slow": READY, "plus": READY})
                await eventually(lambda: coordinator.reports[-1].assignments_revision)
                await _answers_more(load)
                assert _stubs(_triton_of(settings), "slow") == stubs, "not loaded a second time"
                assert len(stubs) == 1
                assert load.final == []
                alone.terminate()
                await asyncio.wait_for(alone.wait(), 60)
    await client.close()


def _triton_of(settings: AgentSettings) -> int:
    record = read_record(settings.data_dir)
    assert record is not None
    return record.process.pid


async def _answers_more(load: Load) -> None:
    answered = load.answers
    await eventually(lambda: load.answers > answered + 20)


def _heard(coordinator: Coordinator) -> str:
    return " ".join(report.triton.message for report in coordinator.reports)


def _load_of(model: str, coordinator: Coordinator) -> membership_pb2.ModelLoad | None:
    loads = coordinator.heartbeats[-1].load.models if coordinator.heartbeats else []
    return next((load for load in loads if load.name == model and load.version and load.successes > 20), None)


def _stubs(triton: int, model: str) -> list[psutil.Process]:
    children = psutil.Process(triton).children(recursive=True)
    return [child for child in children if any(f"/repository/{model}/" in part for part in child.cmdline())]


async def test_in_flight_work_is_done_before_it_stops_and_nothing_is_left(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path / "data", (coordinator.address,))
    slow = f"""open("{tmp_path}/asked", "w").close(); time.sleep(1.5)"""
    version = coordinator.blobs.version("plus", "1.0.0", add_model(1, request=slow), self_test="")
    await coordinator.assign(version)
    client = TritonClient(f"127.0.0.1:{settings.triton.grpc_port}")
    systemd, notified = _systemd(), list[str]()
    asyncio.get_running_loop().add_reader(systemd, lambda: notified.append(systemd.recv(100).decode()))
    async with running_agent(settings, tmp_path, NOTIFY_SOCKET=_name(systemd), WATCHDOG_USEC="200000") as agent:
        await eventually(lambda: coordinator.states().get(("plus", "1.0.0")) == READY)
        report = coordinator.reports[-1]
        assert report.assignments_revision == 1
        assert set(report.blobs) == {file.digest for file in version.files}
        await eventually(lambda: coordinator.heartbeats and coordinator.heartbeats[-1].load.triton_resident_bytes)
        assert coordinator.hellos[0].capacity.cpu_cores > 0
        in_flight = asyncio.create_task(client.infer(int32_request("plus", 5), 30))
        await eventually(lambda: (tmp_path / "asked").exists())
        agent.terminate()
        assert int32_answer(await in_flight) == [6], "what was in flight is finished first"
        assert await asyncio.wait_for(agent.wait(), 60) == 0
    asyncio.get_running_loop().remove_reader(systemd)
    systemd.close()
    assert notified[0] == "READY=1"
    assert set(notified[1:]) == {"WATCHDOG=1", "STOPPING=1"}
    assert coordinator.leaving == ["shutdown"]
    assert _processes_of(settings.data_dir) == []
    await client.close()
