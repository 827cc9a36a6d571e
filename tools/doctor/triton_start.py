"""Starts a real Triton in a directory of its own and asks it for a sum."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from meshkit.errors import AimeshError
from tools.doctor.finding import Finding, fail, ok

START_TIMEOUT_S = 90.0


def triton_start() -> Finding:
    """Whether Triton starts here and its Python backend gives the right answer."""
    try:
        return asyncio.run(_try())
    except AimeshError as error:
        return fail(error.message, error.hint)


async def _try() -> Finding:
    from node_agent.settings import AgentSettings, TritonSettings
    from node_agent.triton.supervisor import ManagedTriton

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aimesh-doctor-") as place:
        grpc_port, http_port, metrics_port = _free_ports(3)
        triton = TritonSettings(grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, crash_limit=1)
        settings = AgentSettings(node_id="doctor", data_dir=Path(place), triton=triton, drain_s=0.0)
        server = ManagedTriton(settings, Path(place))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(server.run())
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await server.wait_ready()
            except TimeoutError:
                return fail(f"not ready after {START_TIMEOUT_S:.0f} s: {server.status.message}", "see the message")
            finally:
                server.stop()
                await running
    return ok(f"Triton {server.status.version} was ready after {time.monotonic() - began:.1f} s, self-test right")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
