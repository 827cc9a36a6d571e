"""An agent in the test's own process, with a real Triton, joined to a small coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from meshkit.errors import AimeshError
from meshkit.tls import TlsSettings
from node_agent.main import Agent, build_agent
from tests.mesh.node_agent.support import Coordinator, int32_answer, int32_request, settings_in
from tests.processes import eventually


class Node:
    """An agent in this process and the coordinator it has joined."""

    def __init__(self, coordinator: Coordinator, agent: Agent) -> None:
        self.coordinator = coordinator
        self.agent = agent

    @property
    def blobs(self) -> Path:
        return self.agent.settings.data_dir / "blobs"

    async def ask(self, name: str, *values: int) -> list[int]:
        return int32_answer(await self.agent.triton.client.infer(int32_request(name, *values), 20))

    async def answers(self, name: str) -> bool:
        """Whether a model gives an answer, right or wrong."""
        try:
            return bool(await self.ask(name, 1))
        except AimeshError:
            return False

    async def reaches(self, name: str, version: str, state: int) -> None:
        await eventually(lambda: self.coordinator.states().get((name, version)) == state)

    def heard(self, name: str) -> set[str]:
        """All that was ever said of a model."""
        return {model.message for report in self.coordinator.reports for model in report.models if model.name == name}

    def tritons_lost(self, name: str) -> int:
        work = self.agent.models.work(name)
        return work.tritons_lost if work else 0

    def stubs(self, name: str) -> list[psutil.Process]:
        children = psutil.Process(self.agent.triton.status.pid).children(recursive=True)
        return [p for p in children if f"/repository/{name}/" in " ".join(_cmdline(p))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@asynccontextmanager
async def running_node(
    data_dir: Path, tls: TlsSettings | None = None, coordinators: TlsSettings | None = None, **settings: Any
) -> AsyncIterator[Node]:
    """With `tls` for the node, `coordinators` is for its coordinator."""
    coordinator = Coordinator()
    await coordinator.start(tls=coordinators)
    agent = build_agent(settings_in(data_dir, (coordinator.address,), tls, **settings), "instance")
    await agent.adopt()
    try:
        async with asyncio.TaskGroup() as group:
            triton = group.create_task(agent.triton.run())
            others = [group.create_task(part) for part in agent.parts()]
            try:
                yield Node(coordinator, agent)
            finally:
                for task in others:
                    task.cancel()
                agent.triton.stop()
                await asyncio.wait_for(triton, 60)
    finally:
        await coordinator.stop()
