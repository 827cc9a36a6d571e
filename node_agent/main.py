"""The agent's life: start the parts, join, serve, leave, drain, stop."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, replace
from importlib.metadata import version as package_version

import structlog

from aimesh.membership.v1 import membership_pb2
from meshkit.sdnotify import sd_notify, watchdog_interval_s
from meshkit.shutdown import Shutdown
from node_agent.capacity import HostFacts, LoadSampler, capacity_of
from node_agent.fetch import Fetcher
from node_agent.gpus import GpuReader
from node_agent.identity import hold_data_dir
from node_agent.modelconfig import python_environment
from node_agent.quiet import until_quiet
from node_agent.reconcile import Reconciler
from node_agent.repository import Repository
from node_agent.session import Session
from node_agent.settings import AgentSettings
from node_agent.steps import Steps
from node_agent.store import ModelStore
from node_agent.triton.external import ExternalTriton
from node_agent.triton.launch import find_files
from node_agent.triton.server import InferenceServer
from node_agent.triton.supervisor import ManagedTriton

log = structlog.get_logger()

_SAMPLE_S = 1.0


async def run(settings: AgentSettings) -> None:
    """Runs the agent until SIGTERM or SIGINT.

    Raises ConflictError when another agent has the data directory, PreconditionError when Triton is not installed.
    """
    shutdown = Shutdown.install()
    settings = replace(settings, data_dir=settings.data_dir.resolve())
    with hold_data_dir(settings.data_dir) as instance_id:
        agent = build_agent(settings, instance_id)
        async with asyncio.TaskGroup() as parts:
            triton = parts.create_task(agent.triton.run())
            others = [
                parts.create_task(agent.models.run()),
                parts.create_task(agent.session.run()),
                parts.create_task(agent.sample_load()),
                parts.create_task(agent.tell_systemd()),
            ]
            await shutdown.requested.wait()
            sd_notify("STOPPING=1")
            await agent.session.leave("shutdown")
            if agent.triton.status.ready:
                await until_quiet(agent.triton.client, settings.drain_s)
            for part in others:
                part.cancel()
            agent.triton.stop()
            await triton
    log.info("agent.stopped", node=settings.node_id)


@dataclass
class Agent:
    """The parts of one agent, wired together."""

    settings: AgentSettings
    triton: InferenceServer
    models: Reconciler
    session: Session
    sampler: LoadSampler
    load: membership_pb2.Load = field(default_factory=membership_pb2.Load)
    """The last sample."""

    async def sample_load(self) -> None:
        """Keeps `load` fresh, beside the session: a driver that hangs must not stop the heartbeats."""
        while True:
            try:
                self.load.CopyFrom(await asyncio.to_thread(self.sampler.sample, self.triton.status.pid))
            except OSError as error:  # a disk that fails is no reason to stop serving what is in memory
                log.warning("load.unknown", reason=str(error))
            await asyncio.sleep(_SAMPLE_S)

    async def tell_systemd(self) -> None:
        """READY=1 once Triton is ready and a coordinator has welcomed the node, then WATCHDOG=1 if it is asked for."""
        await self.triton.wait_ready()
        await self.session.welcomed.wait()
        sd_notify("READY=1")
        log.info("agent.ready", node=self.settings.node_id)
        interval_s = watchdog_interval_s()
        while interval_s is not None:
            sd_notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)


def make_triton(settings: AgentSettings) -> InferenceServer:
    """The inference server that the settings name. Raises PreconditionError when it is not installed."""
    if settings.triton.mode == "external":
        return ExternalTriton(settings, settings.data_dir)
    find_files(settings.triton)
    return ManagedTriton(settings, settings.data_dir)


def build_agent(settings: AgentSettings, instance_id: str) -> Agent:
    """Makes the parts and tells each what it needs to know of the others. Clears what a crash may have left."""
    store = ModelStore(settings.data_dir, settings.disk_bytes)
    repository = Repository(settings.data_dir, settings.runtimes_dir, python_environment(), store.path)
    repository.clear()
    triton = make_triton(settings)
    gpus, host = GpuReader(), HostFacts.read(settings.data_dir)
    capacity = capacity_of(settings, host, gpus.inventory())
    fetcher = Fetcher(store, lambda: session.coordinators)
    gpu_memory = {gpu.index: gpu.memory_bytes for gpu in capacity.gpus}
    models = Reconciler(triton, store, Steps(settings, triton, fetcher, repository), gpu_memory)
    load = membership_pb2.Load()
    hello = membership_pb2.Hello(
        node_id=settings.node_id,
        instance_id=instance_id,
        agent_version=package_version("aimesh"),
        address=settings.address,
        pid=os.getpid(),
        capacity=capacity,
        labels=settings.labels,
    )
    session = Session(settings.coordinators, hello, models.report, lambda: load, models.assign)
    models.on_change = session.changed
    triton.on_change = models.wake
    return Agent(settings, triton, models, session, LoadSampler(store, gpus, host.limits), load)
