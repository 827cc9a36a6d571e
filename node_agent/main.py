"""The agent's life: start the parts, join, serve, leave, drain, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version as package_version
from typing import Any

import structlog

from aimesh.membership.v1 import membership_pb2
from meshkit.errors import AimeshError
from meshkit.sdnotify import sd_notify, watchdog_interval_s
from meshkit.server import MeshServer
from meshkit.shutdown import Shutdown
from node_agent.bandwidth import Limit
from node_agent.capacity import HostFacts, LoadSampler, capacity_of
from node_agent.fetch import Fetcher
from node_agent.gpus import GpuReader
from node_agent.identity import hold_data_dir
from node_agent.measure import Meter
from node_agent.modelconfig import python_environment
from node_agent.quiet import until_quiet
from node_agent.reconcile import Reconciler
from node_agent.repository import Repository
from node_agent.served import ServedRecord
from node_agent.serving import node_server
from node_agent.session import Session
from node_agent.settings import AgentSettings
from node_agent.steps import Steps
from node_agent.store import ModelStore
from node_agent.training.fitness import Fitness
from node_agent.training.service import NodeTraining
from node_agent.training.tasks import Tasks
from node_agent.training.wiring import build_tasks
from node_agent.triton.external import ExternalTriton
from node_agent.triton.launch import find_files
from node_agent.triton.memory import MemorySampler, ModelMemory
from node_agent.triton.server import InferenceServer
from node_agent.triton.supervisor import ManagedTriton
from node_agent.triton.trace import Tally, Tracer
from node_agent.trust import TrustRecord
from node_agent.waiting import first

log = structlog.get_logger()

_SAMPLE_S = 1.0
_CERTIFICATE_POLL_S = 2.0
_GIVING_S = 1.0
"""What other agents fetch from here at the end gets so long."""


async def run(settings: AgentSettings) -> None:
    """Runs the agent until SIGTERM or SIGINT, which drain and stop Triton, or SIGHUP, which leaves it running.

    Raises ConflictError when another agent has the data directory, PreconditionError when Triton is not installed or a
    certificate cannot be read, InvalidInputError when an address would need TLS.
    """
    shutdown, handing_over = Shutdown.install(), _on_hangup()
    settings = replace(settings, data_dir=settings.data_dir.resolve())
    settings.check_bindings()
    with hold_data_dir(settings.data_dir) as instance_id:
        agent = build_agent(settings, instance_id)
        await agent.listen()
        await agent.adopt()
        async with asyncio.TaskGroup() as parts:
            triton = parts.create_task(agent.triton.run())
            others = [parts.create_task(part) for part in agent.parts()]
            await first(shutdown.requested.wait(), handing_over.wait())
            sd_notify("STOPPING=1")
            if handing_over.is_set():
                agent.triton.hand_over()  # no Leaving: coordinators ask Triton itself while no agent speaks for it
            else:
                await agent.leave()
            for part in others:
                part.cancel()
            agent.triton.stop()
            await triton
        await agent.server.stop(_GIVING_S)
    log.info("agent.stopped", node=settings.node_id, handed_over=handing_over.is_set())


def _on_hangup() -> asyncio.Event:
    """Set by SIGHUP: another agent is to follow, and to go on with this one's Triton."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    return asked


@dataclass
class Agent:
    """The parts of one agent, wired together."""

    settings: AgentSettings
    triton: InferenceServer
    models: Reconciler
    tasks: Tasks
    fitness: Fitness
    session: Session
    sampler: LoadSampler
    steps: Steps
    tracer: Tracer
    memory: MemorySampler
    server: MeshServer
    """Where other agents fetch."""
    load: membership_pb2.Load = field(default_factory=membership_pb2.Load)
    """The last sample."""

    def parts(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside Triton until it is cancelled."""
        return [
            self.models.run(),
            self.tasks.run(),
            self.session.run(),
            self.fitness.find_out(),
            self.sample_load(),
            self.follow_certificate(),
            self.tell_systemd(),
        ]

    async def listen(self) -> None:
        """Serves other agents from now on. Raises ExhaustedError when the port is taken."""
        await self.server.start()
        self.session.tell_port(self.server.port)

    async def adopt(self) -> None:
        """Goes on with what the agent before left running, or begins with nothing: a crash may leave anything."""
        await self.tasks.adopt()
        if await self.triton.adopt():
            try:
                self.models.adopt(await self.steps.find_models())
            except AimeshError as error:  # everything is loaded anew, and the audit unloads what is not wanted
                log.warning("models.not_adopted", reason=str(error))
        else:
            self.triton.starts_with = await asyncio.to_thread(self.steps.clear)

    async def leave(self) -> None:
        """Training first, so that its last checkpoint is told; then out of the mesh, then out of work."""
        drain_s, began = self.settings.drain_s, time.monotonic()
        await self.tasks.leave(drain_s)
        left_s = max(drain_s - (time.monotonic() - began), drain_s / 2)
        await self.session.leave("shutdown")
        if self.triton.status.ready:
            await until_quiet(self.triton.client, left_s)

    async def sample_load(self) -> None:
        """Keeps `load` fresh, beside the session: a driver that hangs must not stop the heartbeats."""
        while True:
            try:
                load = await asyncio.to_thread(self.sampler.sample, self.triton.status.pid)
                load.models.extend(await self._model_loads())
                load.tasks.extend(self.tasks.progress())
                self.load.CopyFrom(load)
            except OSError as error:  # a disk that fails is no reason to stop serving what is in memory
                log.warning("load.unknown", reason=str(error))
            await asyncio.sleep(_SAMPLE_S)

    async def _model_loads(self) -> list[membership_pb2.ModelLoad]:
        """What each model has done by Triton's own counters and traces; nothing while it does not answer."""
        serving = self.models.serving()
        try:
            counters = await self.triton.client.counters(_SAMPLE_S) if serving else {}
        except AimeshError:  # its supervision says so
            return []
        requests = {name: found.successes + found.failures for name, found in counters.items()}
        tallies = await self.tracer.sample(serving, requests)
        leaving = {process.pid for process in self.steps.stubs.condemned}
        memory = await asyncio.to_thread(self.memory.sample, self.triton.status.pid, leaving)
        return [
            self._model_load(
                membership_pb2.ModelLoad(name=name, version=serving[name], **asdict(found)),
                tallies.get(name),
                memory.get(name, ModelMemory()),
            )
            for name, found in sorted(counters.items())
            if name in serving
        ]

    def _model_load(
        self, load: membership_pb2.ModelLoad, tally: Tally | None, memory: ModelMemory
    ) -> membership_pb2.ModelLoad:
        load.resident_bytes, load.gpu_memory_bytes = memory.resident, memory.gpu
        if tally is not None:
            load.latency_buckets.update(tally.latency)
            work = self.models.work(load.name)
            if not load.responses and work is not None and work.version.signature.decoupled:
                load.responses = tally.responses
        return load

    async def follow_certificate(self) -> None:
        """Uses a certificate that was renewed on the disk."""
        if not self.settings.tls.on:
            return
        current = await asyncio.to_thread(self.settings.tls.read)
        while True:
            await asyncio.sleep(_CERTIFICATE_POLL_S)
            try:
                found = await asyncio.to_thread(self.settings.tls.read)
                if found != current:
                    await self.triton.certificate_changed()
                    self.session.renew()
                    current = found
                    log.info("tls.renewed", certificate=str(self.settings.tls.cert))
            except AimeshError as error:  # half replaced, or none of the mesh's: the one in use goes on
                log.warning("tls.not_renewed", reason=str(error))

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
    """Makes the parts and tells each what it needs to know of the others. `adopt` comes before all else."""
    store = ModelStore(settings.data_dir, settings.disk_bytes)
    repository = Repository(settings.data_dir, settings.runtimes_dir, python_environment(), store.path)
    repository.prepare()
    triton = make_triton(settings)
    gpus, host = GpuReader(), HostFacts.read(settings.data_dir)
    capacity = capacity_of(settings, host, gpus.inventory())
    fetcher = Fetcher(
        store,
        lambda: session.coordinators,
        settings.tls,
        node_id=settings.node_id,
        parallel=settings.fetch_parallel,
        limit=Limit(settings.fetch_bytes_per_second),
    )
    gpu_memory = {gpu.index: gpu.memory_bytes for gpu in capacity.gpus}
    fitness = Fitness(settings)
    tasks = build_tasks(settings, store, fetcher, gpus, capacity, fitness)
    served, trust = ServedRecord(settings.data_dir), TrustRecord(settings.data_dir)
    steps = Steps(settings, triton, fetcher, repository, served, trust, Meter(gpus))
    models = Reconciler(triton, store, steps, gpu_memory)
    load = membership_pb2.Load()
    hello = membership_pb2.Hello(
        node_id=settings.node_id,
        instance_id=instance_id,
        agent_version=package_version("aimesh"),
        address=settings.address,
        pid=os.getpid(),
        capacity=capacity,
        labels=settings.labels,
        runtimes=fitness.runtimes(),
    )
    tracer = Tracer(triton)

    def assign(assignments: membership_pb2.Assignments) -> None:
        tracer.want(assignments.traced)
        files = [file for version in assignments.models for file in version.files]
        store.pin("models", {digest for file in files for digest in (file.digest, file.chunks) if digest})
        tasks.retention.tell(assignments)
        tasks.assign(assignments.tasks)
        models.assign(assignments)

    def report() -> membership_pb2.ModelReport:
        found = models.report()
        found.tasks.extend(tasks.report())
        return found

    session = Session(settings.coordinators, hello, report, lambda: load, assign, settings.tls)
    fitness.on_known = lambda: session.tell_runtimes(fitness.runtimes())
    models.on_change = tasks.on_change = session.changed
    triton.on_change = models.wake
    triton.choose_models, triton.on_started_with = steps.startable, models.resume
    memory = MemorySampler(repository.root, gpus)
    sampler = LoadSampler(store, gpus, host.limits)
    server = node_server(settings, store, NodeTraining(tasks.root, tasks))
    return Agent(settings, triton, models, tasks, fitness, session, sampler, steps, tracer, memory, server, load)
