"""`aimesh coordinator`: one process of the control plane."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Coroutine

import structlog
import tritonclient.grpc.service_pb2  # noqa: F401  # registers the inference service for reflection

from aimesh.artifacts.v1 import artifacts_pb2_grpc
from aimesh.cluster.v1 import cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2_grpc
from aimesh.registry.v1 import registry_pb2_grpc
from aimesh.rollout.v1 import rollout_pb2_grpc
from aimesh.routing.v1 import routing_pb2_grpc
from aimesh.training.v1 import training_pb2_grpc
from coordinator.acknowledgements import Acknowledgements
from coordinator.adaptive import AdaptiveController
from coordinator.api.artifacts import ArtifactsService
from coordinator.api.cluster import ClusterService
from coordinator.api.locating import Locating
from coordinator.api.nodes import NodeOrders
from coordinator.api.registry import RegistryService
from coordinator.api.rollout import RolloutService, check_spec_gates
from coordinator.api.routing import RoutingService
from coordinator.api.training import TrainingService
from coordinator.blob_exchange import BlobExchange
from coordinator.controller import PlacementController
from coordinator.election import Election
from coordinator.etcd import Etcd
from coordinator.evacuation import Evacuation
from coordinator.evaluation.ask import Asker
from coordinator.evaluation.datasets import Datasets
from coordinator.evaluation.runner import Evaluator
from coordinator.experiments.wiring import SERVICE as EXPERIMENTS
from coordinator.experiments.wiring import Experiments
from coordinator.gate import Gate
from coordinator.gateway_counts import GatewayCounts
from coordinator.health import tell_health
from coordinator.identity import wiring
from coordinator.judge import Judge
from coordinator.loads import Loads
from coordinator.measuring import MeasuringController
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from coordinator.probe import TritonProbe
from coordinator.prober import Prober
from coordinator.registry.recording import Recorder
from coordinator.rollout.controller import RolloutController
from coordinator.rollout.judging import Judging
from coordinator.rollout.measured import Measured
from coordinator.rollout.meter import Meter
from coordinator.sessions import Sessions
from coordinator.settings import CoordinatorSettings
from coordinator.tracker import Tracker
from coordinator.training.admission import Admission
from coordinator.training.agents import NodeTraining
from coordinator.training.controller import TrainingController
from coordinator.training.results import Results
from coordinator.xds.compile import compile_snapshot
from coordinator.xds.loads import SERVICE_NAME as LRS
from coordinator.xds.loads import GatewayLoads, rolled_out
from coordinator.xds.server import SERVICE_NAME as ADS
from coordinator.xds.server import XdsServer
from meshkit.backoff import Backoff
from meshkit.blobs import BlobStore
from meshkit.errors import DataLossError, UnavailableError
from meshkit.sdnotify import sd_notify, watchdog_interval_s
from meshkit.server import MeshServer
from meshkit.shutdown import Shutdown
from meshkit.tls import server_credentials

log = structlog.get_logger()

SERVICES = (
    "aimesh.membership.v1.MembershipService",
    "aimesh.registry.v1.RegistryService",
    "aimesh.routing.v1.RoutingService",
    "aimesh.rollout.v1.RolloutService",
    "aimesh.training.v1.TrainingService",
    EXPERIMENTS,
    "aimesh.artifacts.v1.ArtifactsService",
    "aimesh.cluster.v1.ClusterService",
    *wiring.SERVICES,
    ADS,
    LRS,
)
DECIDING = (
    "placement",
    "rollouts",
    "training",
    "meter",
    "evaluation",
    "experiments",
    "judge",
    "measuring",
    "adaptive",
    "prober",
    "election",
    "health",
)
"""Loops that end first."""
READERS = ("aimesh.cluster.v1.ClusterService", ADS, LRS)
"""Services that go on when etcd is lost, with what was known last."""


PUBLISH_PACE_S = 0.05
"""Least time between two snapshots."""
PUBLISH_REST = 2.0
"""So many times the CPU time that a snapshot took, at least, until the next."""


async def run(settings: CoordinatorSettings) -> None:
    """Serves until SIGTERM. Raises ExhaustedError when the port is taken, ConflictError when the id is."""
    await serve(settings, Shutdown.install())


async def serve(settings: CoordinatorSettings, shutdown: Shutdown) -> None:
    """Serves until told to go; the life of a coordinator from top to bottom."""
    coordinator = Coordinator(settings)
    try:
        # 1. Listen at once: who asks is told what this coordinator waits for.
        await coordinator.server.start(serving=False)
        await coordinator.identities.start()
        # 2. Nothing works without etcd: wait for it, saying so.
        if (version := await coordinator.wait_for_etcd(shutdown)) is not None:
            log.info("coordinator.serving", address=settings.address, etcd=version)
            await _work(coordinator, shutdown)
    finally:
        await coordinator.close()
    log.info("coordinator.stopped")


async def _work(coordinator: Coordinator, shutdown: Shutdown) -> None:
    """Works until told to stop, or until a part fails."""
    async with asyncio.TaskGroup() as tasks:
        loops = {name: tasks.create_task(lasting(name, loop), name=name) for name, loop in coordinator.loops().items()}
        sd_notify("READY=1")
        await shutdown.requested.wait()
        # 3. Take no more decisions, let another lead at once, send agents and clients elsewhere.
        sd_notify("STOPPING=1")
        for name in DECIDING:
            loops[name].cancel()
        await coordinator.leave()
        # 4. Nothing is left to serve.
        for loop in loops.values():
            loop.cancel()


async def lasting(name: str, loop: Coroutine[None, None, None]) -> None:
    """Runs a loop. Raises RuntimeError when it was cancelled by nobody.

    A library call that somebody else cancelled looks the same, and a task group lets a cancelled task go without a
    word: the coordinator would live on without one of its parts.
    """
    try:
        await loop
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError(f"the loop {name} was cancelled by nobody") from None


class Coordinator:
    """The parts of one coordinator, wired together; `run` moves them."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        self.settings = settings
        self.etcd = Etcd(settings.etcd)
        self.mirror = Mirror(self.etcd, settings.brake_share)
        self.election = Election(self.etcd, self.mirror, settings)
        self.identities = wiring.Identities(settings, self.etcd, self.mirror, self.election)
        ask = TritonProbe(settings.tls)
        self.sessions = Sessions(self.etcd, self.mirror, settings, ask=ask)
        self.prober = Prober(self.etcd, self.mirror, self.sessions, settings.id, lambda: self.election.term, ask)
        self.controller = PlacementController(self.etcd, self.mirror, self.election)
        self.judge = Judge(self.etcd, self.mirror, self.election, settings, time.monotonic)
        self.peers = Peers(self.mirror, settings.id, settings.tls)
        self.loads = Loads(self.sessions, self.peers)
        self.adaptive = AdaptiveController(self.etcd, self.mirror, self.election, self.loads)
        self.xds = XdsServer()
        self.acknowledgements = Acknowledgements(self.xds, self.peers, settings.id)
        self.gateway_loads = GatewayLoads()
        self.gateway_counts = GatewayCounts(self.gateway_loads, self.peers)
        self.meter = Meter(self.mirror, self.election, self.loads, self.gateway_counts)
        self.judging = Judging(self.meter)
        self.rollouts = RolloutController(self.etcd, self.mirror, self.election, self._awaited, self.judging)
        self.server = MeshServer(
            f"{settings.host}:{settings.port}",
            SERVICES,
            described=("inference.GRPCInferenceService",),
            credentials=server_credentials(settings.tls),
            interceptors=[self.identities.interceptor, Gate(self.mirror)],
        )
        self._serve()

    async def wait_for_etcd(self, shutdown: Shutdown) -> str | None:
        """Tries until etcd answers and its state is read. etcd's version; None when told to stop before."""
        backoff = Backoff(first_s=0.2, most_s=1.0)
        while not shutdown.requested.is_set():
            try:
                version = await self.etcd.connect()
                await self.mirror.load()
            except (UnavailableError, DataLossError) as error:
                self.mirror.freeze(str(error))
                log.warning("etcd.not_ready", endpoints=self.settings.etcd.endpoints, reason=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff.next_delay()):
                        await shutdown.requested.wait()
            else:
                return version
        return None

    def loops(self) -> dict[str, Coroutine[None, None, None]]:
        """Everything that runs for as long as the process, by name."""
        return {
            "mirror": self.mirror.run(),
            "election": self.election.run(),
            "sessions": self.sessions.run(),
            "placement": self.controller.run(),
            "rollouts": self.rollouts.run(),
            "training": self.training.run(),
            "meter": self.meter.run(),
            "evaluation": self.evaluator.run(),
            "experiments": self.experiments.runner.run(),
            "judge": self.judge.run(),
            "measuring": MeasuringController(self.etcd, self.mirror, self.election).run(),
            "adaptive": self.adaptive.run(),
            "prober": self.prober.run(),
            "health": tell_health(self.mirror, SERVICES, READERS, self.server.set_health),
            "xds": self._publish(),
            "blobs": self.artifacts.forget_unused(self.mirror),
            "copies": self.exchange.run(),
            "repairs": self.exchange.repair(),
            "evacuation": Evacuation(self.mirror, self.sessions, self.peers).run(),
            **self.identities.loops(),
            "watchdog": _watchdog(),
        }

    async def leave(self) -> None:
        """Gives up leadership, and ends the sessions and the clients' streams, which go to other coordinators."""
        await self.server.set_serving(False)
        self.sessions.end_all()
        try:
            await self.election.resign()
        except UnavailableError as error:
            log.warning("election.not_resigned", reason=error.message)
        self.xds.close()
        self.gateway_loads.close()

    async def close(self) -> None:
        """Stops the servers, with a moment for calls in flight, and ends all connections."""
        await self.server.stop(self.settings.drain_s)
        await self.identities.stop(self.settings.drain_s)
        await self.experiments.close()
        await self.peers.close()
        await self.etcd.close()

    async def _awaited(self, name: str, revision: int) -> list[str]:
        """What a rollout waits for before requests move: clients, and answers to its evaluation set."""
        return [*await self.acknowledgements.missing(name, revision), *self.evaluator.awaited(name)]

    async def _publish(self) -> None:
        async for state in self.mirror.changes():
            began = time.thread_time()
            self.xds.publish(compile_snapshot(state, secure=self.settings.tls.on))
            self.gateway_loads.ask(rolled_out(state))
            # A burst of changes becomes one snapshot; a large mesh leaves the coordinator time for everything else.
            await asyncio.sleep(max(PUBLISH_PACE_S, PUBLISH_REST * (time.thread_time() - began)))

    def _serve(self) -> None:
        blobs = BlobStore(self.settings.data_dir)
        self.exchange = BlobExchange(blobs, self.mirror, self.peers, self.settings.id)
        tracker = Tracker(time.monotonic, random.Random())  # noqa: S311  # spreads load, keeps no secret
        locating = Locating(self.mirror, self.exchange, tracker, self.settings.address)
        self.artifacts = ArtifactsService(blobs, self.exchange, locating)
        registry = RegistryService(self.etcd, self.mirror, blobs, self.exchange, self.identities.outbox)
        routing = RoutingService(self.etcd, self.mirror, self.identities.outbox)
        measured = Measured(self.mirror, self.election, self.peers, self.judging.comparisons)
        asker, scorers = Asker(self.settings.tls), self.settings.scorers_dir
        datasets = Datasets(blobs, self.exchange)
        self.evaluator = Evaluator(self.mirror, self.election, datasets, asker, scorers)
        self.meter.scores = self.evaluator.scores
        self.experiments = Experiments(
            self.settings,
            self.etcd,
            self.mirror,
            self.election,
            self.identities.outbox,
            self.loads,
            datasets,
            self.evaluator,
        )
        checks = (check_spec_gates, self.evaluator.check_spec, self.experiments.quarantines.check_spec)
        rollouts = RolloutService(self.etcd, self.mirror, self.identities.outbox, measured, checks)
        recorder = Recorder(self.etcd, self.mirror, blobs, self.exchange, self.identities.outbox)
        results = Results(recorder, self.exchange)
        asked = NodeTraining(self.mirror, self.peers)
        self.training = TrainingController(
            self.etcd,
            self.mirror,
            self.election,
            self.loads,
            self.exchange,
            results,
            asked.measured,
            self.settings.training,
        )
        training = TrainingService(
            self.etcd,
            self.mirror,
            self.identities.outbox,
            self.loads,
            asked,
            Admission(blobs, self.exchange),
        )
        cluster = ClusterService(
            self.mirror,
            self.sessions,
            self.loads,
            NodeOrders(self.etcd, self.mirror, self.identities.outbox),
            self.settings.etcd.endpoints,
            self.xds,
            self.gateway_loads,
        )
        membership_pb2_grpc.add_MembershipServiceServicer_to_server(self.sessions, self.server.grpc)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, self.server.grpc)
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(routing, self.server.grpc)
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(rollouts, self.server.grpc)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(training, self.server.grpc)
        artifacts_pb2_grpc.add_ArtifactsServiceServicer_to_server(self.artifacts, self.server.grpc)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(cluster, self.server.grpc)
        self.experiments.add_to(self.server.grpc)
        self.identities.add_to(self.server.grpc)
        self.xds.add_to(self.server.grpc)
        self.gateway_loads.add_to(self.server.grpc)


async def _watchdog() -> None:
    """Tells systemd's watchdog that the event loop turns."""
    interval = watchdog_interval_s()
    while interval:
        sd_notify("WATCHDOG=1")
        await asyncio.sleep(interval)
