"""Supervision of a real Triton: deaths of all kinds."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from aimesh.membership.v1 import membership_pb2
from node_agent.settings import AgentSettings
from node_agent.triton.external import ExternalTriton
from node_agent.triton.server import CRASH_LOOP, READY, STARTING, InferenceServer
from node_agent.triton.supervisor import ManagedTriton
from tests.mesh.node_agent.support import settings_in
from tests.processes import eventually


@asynccontextmanager
async def running(triton: InferenceServer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(triton.run())
    try:
        yield task
    finally:
        triton.stop()
        await asyncio.wait_for(task, 20)


async def test_life_of_a_triton(tmp_path: Path) -> None:
    """Starts with its self-test, is started again after kill -9 and after a hang, and stops without a trace."""
    settings = settings_in(tmp_path, hang_timeout_s=1.0)
    triton = ManagedTriton(settings, tmp_path)
    async with running(triton):
        await asyncio.wait_for(triton.wait_ready(), 40)
        first = triton.status
        assert first.version
        assert list((tmp_path / "repository").iterdir()) == []
        assert os.getpgid(first.pid) == first.pid
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", settings.triton.grpc_port))

        os.kill(first.pid, signal.SIGKILL)
        begun = time.monotonic()
        await eventually(lambda: triton.status.state == STARTING)
        assert time.monotonic() - begun < 5.0
        await asyncio.wait_for(triton.wait_ready(), 40)
        second = triton.status
        assert second.generation == first.generation + 1
        assert not psutil.pid_exists(first.pid)

        os.kill(second.pid, signal.SIGSTOP)
        await eventually(lambda: not triton.status.ready)
        await asyncio.wait_for(triton.wait_ready(), 40)
        assert triton.status.pid != second.pid
        last = psutil.Process(triton.status.pid)
    assert triton.status.state == membership_pb2.TRITON_STATE_STOPPING
    assert not last.is_running()
    assert not (tmp_path / "triton.json").exists()


def _program(path: Path, script: str) -> AgentSettings:
    """Settings of an agent whose Triton is a shell script."""
    path.mkdir()
    server = path / "tritonserver"
    server.write_text(f"#!/bin/sh\n{script}\n")
    server.chmod(server.stat().st_mode | stat.S_IXUSR)
    (path / "backends" / "python").mkdir(parents=True)
    return settings_in(
        path / "data",
        server=server,
        backends_dir=path / "backends",
        crash_limit=3,
        crash_pause_s=0.3,
        start_timeout_s=1.0,
    )


async def test_a_triton_that_dies_at_once_is_a_crash_loop_with_its_last_words(tmp_path: Path) -> None:
    settings = _program(tmp_path / "p", "echo $$ >> $(dirname $0)/starts; echo 'error: no such device' >&2; exit 3")
    triton = ManagedTriton(settings, settings.data_dir)
    async with running(triton):
        await eventually(lambda: triton.status.state == CRASH_LOOP)
        assert triton.status.message == "Triton exited with status 3: error: no such device"
        assert triton.status.pid == 0
        starts = tmp_path / "p" / "starts"
        await eventually(lambda: len(starts.read_text().split()) >= 4)  # it goes on trying


async def test_a_triton_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    settings = _program(tmp_path / "p", "exec sleep 60")
    triton = ManagedTriton(settings, settings.data_dir)
    async with running(triton):
        await eventually(lambda: triton.status.pid)
        process = psutil.Process(triton.status.pid)
        await eventually(lambda: "not ready within 1 s" in triton.status.message)
        assert not process.is_running()


async def test_a_taken_port_is_named_and_used_once_it_is_free(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    triton = ManagedTriton(settings, tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.triton.http_port))
        other.listen()
        async with running(triton):
            await eventually(lambda: triton.status.message)
            assert f"127.0.0.1:{settings.triton.http_port}" in triton.status.message
            assert "agent.triton.http_port" in triton.status.message
            other.close()
            await asyncio.wait_for(triton.wait_ready(), 40)


async def test_an_external_triton_is_followed_and_never_touched(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    managed = ManagedTriton(settings, tmp_path)
    address = managed.client.address
    external = ExternalTriton(settings_in(tmp_path, mode="external", external_address=address), tmp_path)
    async with AsyncExitStack() as stack:
        async with running(managed):
            await asyncio.wait_for(managed.wait_ready(), 40)
            external.client.secret = managed.client.secret
            await stack.enter_async_context(running(external))
            await asyncio.wait_for(external.wait_ready(), 40)
            assert external.status.pid == 0
            assert external.report().grpc_port == settings.triton.grpc_port
        await eventually(lambda: external.status.state != READY)
        assert "no Triton answers" in external.status.message
