"""Who is still to acknowledge, with gRPC's own client and a real Envoy; and what they may be sent in which order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest

from aimesh.cluster.v1 import cluster_pb2
from coordinator.xds.snapshot import RDS
from tests.mesh.xds import harness
from tests.mesh.xds.clients import own_xds
from tests.mesh.xds.coded import NAME, NEW, OLD, ask, coded_server, deployment, node
from tests.mesh.xds.harness import Coordinator
from tests.unit.xds.test_server import Client

_revisions = itertools.count(1)


@dataclass(frozen=True)
class Stage:
    """A gateway, and a server for each of two versions."""

    coordinator: Coordinator
    gateway: str
    ports: tuple[int, int]

    def publish(self, old: int, new: int, *, both: bool = True) -> int:
        """The revision at which the versions have these weights; only the first is served unless `both`."""
        revision = next(_revisions)
        nodes = [node(0, OLD, self.ports[0]), node(1, NEW, self.ports[1])]
        self.coordinator.publish(harness.state_of(revision, nodes if both else nodes[:1], [deployment(old, new)]))
        return revision

    def missing(self, revision: int) -> list[cluster_pb2.Unacknowledged]:
        return self.coordinator.call(self.coordinator.xds.unacknowledged, NAME, revision)

    def who_misses(self, revision: int) -> set[str]:
        return {each.client.partition("#")[0] for each in self.missing(revision)}

    def all_have(self, revision: int) -> None:
        harness.eventually(lambda: not self.missing(revision), f"everybody has revision {revision}")

    @contextlib.contextmanager
    def channels(self) -> Iterator[list[grpc.Channel]]:
        """One to the gateway, and one that is a gRPC program's own."""
        program = f"xds:///{NAME}"
        with grpc.insecure_channel(self.gateway) as one, grpc.insecure_channel(program, own_xds(program)) as other:
            for channel in (one, other):
                harness.eventually(lambda channel=channel: ask(channel) == "OK", "it answers")  # type: ignore[misc]
            yield [one, other]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("acknowledgements")
    with (
        pytest.MonkeyPatch.context() as patch,
        coded_server() as one,
        coded_server() as other,
        harness.coordinator() as coordinator,
    ):
        bootstrap = harness.write_client_bootstrap(folder / "client.json", [coordinator.address])
        patch.setitem(os.environ, "GRPC_XDS_BOOTSTRAP", str(bootstrap))
        coordinator.publish(harness.state_of(next(_revisions), [], []))
        with harness.envoy(folder, [coordinator.address], access_log=str(folder / "access.log")) as gateway:
            yield Stage(coordinator, gateway, (one, other))


def test_everybody_acknowledges_who_can_and_who_never_does_is_named(stage: Stage) -> None:
    first = stage.publish(100, 0)
    with stage.channels():
        stage.all_have(first)
        (ahead,) = stage.missing(first + 1)
        assert (ahead.client, ahead.why) == ("", f"this coordinator has not published revision {first + 1} yet")
        with _silent(stage.coordinator.address):
            harness.eventually(lambda: stage.who_misses(first) == {"silent"}, "it was sent the routes")
            moved = stage.publish(50, 50)
            harness.eventually(lambda: stage.who_misses(moved) == {"silent"}, "all others have them")
            said = {each.type: (each.user_agent, each.why) for each in stage.missing(moved)}
            assert said["rds"] == ("test 1", "sent, not acknowledged")
        stage.all_have(moved)


@contextlib.contextmanager
def _silent(address: str) -> Iterator[None]:
    """A client that asks for the deployment's routes and never says a word about them."""
    connected, done = threading.Event(), threading.Event()

    async def run() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            client = Client(channel, "silent")
            await client.ask(RDS, NAME)
            await client.next()
            connected.set()
            await asyncio.to_thread(done.wait)
            client.cancel()

    with futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, run())
        assert connected.wait(10)
        try:
            yield
        finally:
            done.set()
        running.result(10)


def test_no_request_meets_a_version_whose_last_replica_has_just_gone(stage: Stage) -> None:
    stage.all_have(stage.publish(50, 50))
    stop, seen = threading.Event(), [0, 0]

    def call(index: int, channel: grpc.Channel) -> set[str]:
        codes: set[str] = set()
        while not stop.is_set():
            codes.add(ask(channel))
            seen[index] += 1
        return codes

    with stage.channels() as channels, futures.ThreadPoolExecutor(4) as pool:
        calling = [pool.submit(call, index, channel) for index, channel in enumerate(channels) for _ in range(2)]
        try:
            for _ in range(10):
                for both in (False, True):
                    before, revision = list(seen), stage.publish(50, 50, both=both)
                    stage.all_have(revision)
                    harness.eventually(lambda: min(map(int.__sub__, seen, before)) > 10, "it is used")  # noqa: B023
        finally:
            stop.set()
        assert [each.result() for each in calling] == [{"OK"}] * 4
