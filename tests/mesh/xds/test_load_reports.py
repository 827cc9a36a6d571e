"""What a real Envoy reports of the versions that it is asked for, and what it counts as failed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, replace

import grpc
import pytest

from aimesh.rollout.v1 import rollout_pb2
from coordinator.state import State
from coordinator.xds.loads import Counted, rolled_out
from tests.mesh.xds import harness
from tests.mesh.xds.coded import BOTH, NAME, NEW, OLD, ask, coded_server, deployment, node
from tests.mesh.xds.harness import Coordinator
from tests.processes import free_ports

RUNNING, SUCCEEDED = rollout_pb2.ROLLOUT_STATE_RUNNING, rollout_pb2.ROLLOUT_STATE_SUCCEEDED
FAILED = {"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED", "DATA_LOSS"}
_revisions = itertools.count(1)


@dataclass(frozen=True)
class Stage:
    """A gateway before a server for 1.0.0; nothing listens where 2.0.0 is said to be."""

    coordinator: Coordinator
    gateway: str
    port: int
    dead_port: int

    def publish(self, *, over: bool = False, shadow: bool = False) -> None:
        """Requests go to 1.0.0, those with a header to 2.0.0; as a shadow 2.0.0 gets copies, on the same server."""
        wanted = deployment(100, 0)
        wanted.policy.matches.add(header="x-version", value="new", version=NEW)
        if shadow:
            wanted.policy.mirror.version, wanted.policy.mirror.percent = NEW, 100
        nodes = [node(0, OLD, self.port), node(1, NEW, self.port if shadow else self.dead_port)]
        state = harness.state_of(next(_revisions), nodes, [wanted])
        rollout = rollout_pb2.Rollout(state=SUCCEEDED if over else RUNNING)
        state = replace(state, rollouts={NAME: rollout})
        self.coordinator.publish(state)
        self.coordinator.call(self.coordinator.loads.ask, rolled_out(state))
        self.acknowledged(state)

    def acknowledged(self, state: State) -> None:
        xds = self.coordinator.xds
        harness.eventually(lambda: not self.coordinator.call(xds.unacknowledged, NAME, state.revision), "the routes")

    def counts(self) -> list[Counted]:
        found = self.coordinator.call(self.coordinator.loads.gateway_counts)
        return [found[NAME, version] for version in BOTH]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("loads")
    with coded_server() as port, harness.coordinator() as coordinator:
        coordinator.publish(harness.state_of(next(_revisions), [], []))
        with harness.envoy(folder, [coordinator.address], access_log=str(folder / "access.log")) as gateway:
            yield Stage(coordinator, gateway, port, free_ports(1)[0])


def test_what_callers_saw_is_counted_by_grpc_status_wherever_it_comes(stage: Stage) -> None:
    stage.publish()
    codes = [code.name for code in grpc.StatusCode if code.name != "OK"]
    with grpc.insecure_channel(stage.gateway) as channel:
        asked = ["OK late", *(f"{code} {when}" for code in codes for when in ("early", "late"))]
        assert [ask(channel, code) for code in asked] == [code.partition(" ")[0] for code in asked]
        assert ask(channel, "", ("x-version", "new")) == "UNAVAILABLE"
        assert ask(channel, "sleep 0.5", timeout_s=0.1) == "DEADLINE_EXCEEDED"
        expected = [Counted(len(asked), 2 * len(FAILED)), Counted(1, 1)]
        # What its caller gave up is in neither count, or an error when the server's own answer came first.
        given_up = [Counted(len(asked) + 1, 2 * len(FAILED) + 1), Counted(1, 1)]
        harness.eventually(lambda: stage.counts() in (expected, given_up), "all is counted, and as failed what did")


def test_copies_are_counted_for_the_version_that_gets_them(stage: Stage) -> None:
    stage.publish(shadow=True)
    before = stage.counts()
    with grpc.insecure_channel(stage.gateway) as channel, futures.ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: ask(channel), range(50))) == {"OK"}

    def counted() -> bool:
        return [now.requests - then.requests for now, then in zip(stage.counts(), before, strict=True)] == [50, 50]

    harness.eventually(counted, "both had fifty")


def test_nothing_is_counted_once_the_rollout_is_over_until_there_is_another(stage: Stage) -> None:
    stage.publish(over=True)
    loads = stage.coordinator.loads
    assert stage.coordinator.call(loads.gateway_counts) == {}
    with grpc.insecure_channel(stage.gateway) as channel, contextlib.suppress(grpc.RpcError):
        assert ask(channel) == "OK"
        stage.publish()
        assert ask(channel) == "OK"
        harness.eventually(lambda: stage.counts()[0] == Counted(1, 0), "only what came since")
