"""One agent of the distribution benchmark, in a process of its own: its store, its server, its session; no Triton.

    python -m tools.bench.receiver NODE COORDINATOR FOLDER MODEL

Says "ready" once it is in the mesh, fetches the model when it reads a line, and prints what that took as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from meshkit.channel import coordinator_channel
from node_agent.fetch import Fetcher
from node_agent.serving import node_server
from node_agent.session import Session
from node_agent.settings import AgentSettings
from node_agent.store import ModelStore

_STORE_BYTES = 1 << 40


async def receive(node_id: str, coordinator: str, folder: Path, model: str) -> None:
    """From joining to the end of standard input."""
    settings = AgentSettings(node_id=node_id, data_dir=folder, coordinators=(coordinator,))
    store = ModelStore(folder, _STORE_BYTES)
    server = node_server(settings, store)
    await server.start()
    session = Session(
        settings.coordinators,
        _hello(node_id, server.port),
        membership_pb2.ModelReport,
        membership_pb2.Load,
        lambda _: None,
    )
    joined = asyncio.create_task(session.run())
    await session.welcomed.wait()
    fetcher = Fetcher(store, lambda: session.coordinators, node_id=node_id)
    version = await _version(coordinator, model)
    await _told("ready")
    began = time.monotonic()
    for file in version.files:
        await fetcher.fetch(file, (), lambda _: None)
    took = {"seconds": time.monotonic() - began, **vars(fetcher.traffic)}
    await _told(json.dumps(took))  # others may fetch from here until all are done
    joined.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await joined
    await server.stop(0)


async def _told(line: str) -> None:
    """Says a line and waits for one."""
    print(line, flush=True)  # to the benchmark
    await asyncio.to_thread(sys.stdin.readline)


def _hello(node_id: str, port: int) -> membership_pb2.Hello:
    return membership_pb2.Hello(
        node_id=node_id,
        instance_id=node_id,
        agent_version="bench",
        address="127.0.0.1",
        port=port,
        capacity=membership_pb2.Capacity(cpu_cores=1, memory_bytes=1),
    )


async def _version(coordinator: str, model: str) -> registry_pb2.ModelVersion:
    async with coordinator_channel(coordinator) as channel:
        request = registry_pb2.GetVersionRequest(name=model)
        answer = await registry_pb2_grpc.RegistryServiceStub(channel).GetVersion(request, timeout=10)
        return answer.version


if __name__ == "__main__":
    asyncio.run(receive(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
