"""`aimesh coordinator`: one process of the control plane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine

import structlog
import tritonclient.grpc.service_pb2  # noqa: F401  # registers the inference service for reflection

from aimesh.artifacts.v1 import artifacts_pb2_grpc
from aimesh.cluster.v1 import cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2_grpc
from aimesh.registry.v1 import registry_pb2_grpc
from aimesh.routing.v1 import routing_pb2_grpc
from coordinator.api.artifacts import ArtifactsService
from coordinator.api.cluster import ClusterService
from coordinator.api.registry import RegistryService
from coordinator.api.routing import RoutingService
from coordinator.controller import PlacementController
from coordinator.election import Election
from coordinator.etcd import Etcd
from coordinator.mirror import Mirror
from coordinator.sessions import Sessions
from coordinator.settings import CoordinatorSettings
from coordinator.xds.compile import compile_snapshot
from coordinator.xds.server import SERVICE_NAME as ADS
from coordinator.xds.server import XdsServer
from meshkit.backoff import Backoff
from meshkit.blobs import BlobStore
from meshkit.errors import DataLossError, UnavailableError
from meshkit.sdnotify import sd_notify, watchdog_interval_s
from meshkit.server import MeshServer
from meshkit.shutdown import Shutdown

log = structlog.get_logger()

SERVICES = (
    "aimesh.membership.v1.MembershipService",
    "aimesh.registry.v1.RegistryService",
    "aimesh.routing.v1.RoutingService",
    "aimesh.artifacts.v1.ArtifactsService",
    "aimesh.cluster.v1.ClusterService",
    ADS,
)


PUBLISH_PACE_S = 0.05


async def run(settings: CoordinatorSettings) -> None:
    """Serves until SIGTERM. Raises ExhaustedError when the port is taken, ConflictError when the id is."""
    await serve(settings, Shutdown.install())


async def serve(settings: CoordinatorSettings, shutdown: Shutdown) -> None:
    """Serves until told to go; the life of a coordinator from top to bottom."""
    coordinator = Coordinator(settings)
    # 1. Nothing works without etcd: wait for it, saying so.
    version = await coordinator.wait_for_etcd(shutdown)
    if version is None:
        return
    # 2. Take the port before anybody is told of it.
    await coordinator.server.start()
    log.info("coordinator.serving", address=settings.address, etcd=version)
    # 3. Work until told to stop, or until a part fails.
    async with asyncio.TaskGroup() as tasks:
        loops = {name: tasks.create_task(loop, name=name) for name, loop in coordinator.loops().items()}
        sd_notify("READY=1")
        await shutdown.requested.wait()
        # 4. Take no more decisions, let another lead at once, send agents and clients elsewhere.
        sd_notify("STOPPING=1")
        for name in ("placement", "election"):
            loops[name].cancel()
        await coordinator.leave()
        # 5. Nothing is left to serve.
        for loop in loops.values():
            loop.cancel()
    await coordinator.etcd.close()
    log.info("coordinator.stopped")


class Coordinator:
    """The parts of one coordinator, wired together; `run` moves them."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        self.settings = settings
        self.etcd = Etcd(settings.etcd)
        self.mirror = Mirror(self.etcd)
        self.election = Election(self.etcd, self.mirror, settings)
        self.sessions = Sessions(self.etcd, self.mirror, settings)
        self.controller = PlacementController(self.etcd, self.mirror, self.election, settings, time.monotonic)
        self.xds = XdsServer()
        self.server = MeshServer(
            f"{settings.host}:{settings.port}", SERVICES, described=("inference.GRPCInferenceService",)
        )
        self._serve()

    async def wait_for_etcd(self, shutdown: Shutdown) -> str | None:
        """Tries until etcd answers and its state is read. etcd's version; None when told to stop before."""
        backoff = Backoff(first_s=0.2, most_s=2.0)
        while not shutdown.requested.is_set():
            try:
                version = await self.etcd.connect()
                await self.mirror.load()
            except (UnavailableError, DataLossError) as error:
                log.warning("etcd.not_ready", endpoints=self.settings.etcd.endpoints, reason=str(error))
                await asyncio.sleep(backoff.next_delay())
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
            "xds": self._publish(),
            "blobs": self.artifacts.forget_unused(self.mirror),
            "watchdog": _watchdog(),
        }

    async def leave(self) -> None:
        """Gives up leadership, ends the sessions, gives calls in flight their time, stops the server."""
        await self.server.set_serving(False)
        self.sessions.end_all()
        try:
            await self.election.resign()
        except UnavailableError as error:
            log.warning("election.not_resigned", reason=error.message)
        self.xds.close()
        await self.server.stop(self.settings.drain_s)

    async def _publish(self) -> None:
        async for state in self.mirror.changes():
            self.xds.publish(compile_snapshot(state))
            await asyncio.sleep(PUBLISH_PACE_S)  # a burst of changes becomes one snapshot

    def _serve(self) -> None:
        blobs = BlobStore(self.settings.data_dir)
        self.artifacts = ArtifactsService(blobs)
        registry = RegistryService(self.etcd, self.mirror, blobs)
        routing = RoutingService(self.etcd, self.mirror, self.controller.absent)
        cluster = ClusterService(
            self.mirror, self.sessions, self.settings.etcd.endpoints, self.xds.clients, self.controller.absent
        )
        membership_pb2_grpc.add_MembershipServiceServicer_to_server(self.sessions, self.server.grpc)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, self.server.grpc)
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(routing, self.server.grpc)
        artifacts_pb2_grpc.add_ArtifactsServiceServicer_to_server(self.artifacts, self.server.grpc)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(cluster, self.server.grpc)
        self.xds.add_to(self.server.grpc)


async def _watchdog() -> None:
    """Tells systemd's watchdog that the event loop turns."""
    interval = watchdog_interval_s()
    while interval:
        sd_notify("WATCHDOG=1")
        await asyncio.sleep(interval)
