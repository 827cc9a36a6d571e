"""Small pure parts of a coordinator: probe's judgement, health, who holds which blob."""

from __future__ import annotations

import grpc
import pytest

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.blob_exchange import COPIES, owned, owners
from coordinator.health import BRAKE, ETCD, MIRROR, health_of
from coordinator.probe import judge
from coordinator.session import Session
from coordinator.state import State

_CLOSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect: "


@pytest.mark.parametrize(
    ("code", "details", "probe"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", membership_pb2.PROBE_SILENT),
        (grpc.StatusCode.UNAVAILABLE, _CLOSED + "Connection refused (111)", membership_pb2.PROBE_REFUSED),
        (grpc.StatusCode.UNAVAILABLE, _CLOSED + "No route to host", membership_pb2.PROBE_SILENT),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", membership_pb2.PROBE_REFUSED),
        (grpc.StatusCode.UNAVAILABLE, "Ssl handshake failed", membership_pb2.PROBE_SILENT),
        (grpc.StatusCode.UNIMPLEMENTED, "", membership_pb2.PROBE_REFUSED),
    ],
)
def test_what_a_failed_question_says(code: grpc.StatusCode, details: str, probe: int) -> None:
    assert judge(code, details) == probe


def test_a_frozen_coordinator_sends_writers_away_and_keeps_readers() -> None:
    services, readers = ("writes", "reads"), ("reads",)
    well = health_of(services, readers, frozen=False, braked=False, behind=False)
    assert all(well.values())
    assert set(well) == {"", "writes", "reads", ETCD, BRAKE, MIRROR}
    frozen = health_of(services, readers, frozen=True, braked=False, behind=True)
    assert {name for name, serves in frozen.items() if serves} == {"reads", BRAKE}
    braked = health_of(services, readers, frozen=False, braked=True, behind=False)
    assert {name for name, serves in braked.items() if not serves} == {BRAKE}


def test_each_blob_has_two_owners_and_moves_only_from_the_one_that_died() -> None:
    digests = [f"{number:064x}" for number in range(50)]
    files = [registry_pb2.ModelFile(digest=digest) for digest in digests]
    version = registry_pb2.ModelVersion(files=files)
    ids = ("c1", "c2", "c3")
    state = State(
        versions={("m", "1.0.0"): version}, coordinators={each: cluster_pb2.Coordinator(id=each) for each in ids}
    )
    held = {each: owned(state, each) for each in ids}
    for digest in digests:
        assert sum(digest in each for each in held.values()) == COPIES
        left = owners(digest, ("c1", "c2"))
        assert set(owners(digest, ids)) - {"c3"} <= set(left)
    assert all(len(each) > 20 for each in held.values())
    assert owners(digests[0], ("c1",)) == ["c1"]


def test_assignments_are_sent_again_when_they_or_the_scheduling_changed_and_not_otherwise() -> None:
    version = registry_pb2.ModelVersion(name="m", version="1.0.0")

    def state(revision: int, size: int) -> State:
        policy = routing_pb2.RoutePolicy(scheduling=routing_pb2.Scheduling(max_queue_size=size))
        return State(
            versions={("m", "1.0.0"): version},
            deployments={"m": routing_pb2.Deployment(name="m", policy=policy if size else None)},
            assignments={"n1": frozenset({("m", "1.0.0")})} if revision else {},
            assignment_revisions={"n1": revision} if revision else {},
        )

    node = membership_pb2.Node(id="n1")
    session = Session(node, 1, 1, 0.0, node.report)
    for each in (state(0, 0), state(0, 9), state(5, 0), state(5, 0), state(5, 9), state(5, 9), state(6, 9)):
        session.assign(each)
    sent = []
    while not session.outgoing.empty():
        message = session.outgoing.get_nowait()
        assert message is not None
        sent.append(message.assignments)
    assert [(each.revision, len(each.models), each.scheduling["m"].max_queue_size) for each in sent] == [
        (0, 0, 0),
        (5, 1, 0),
        (5, 1, 9),
        (6, 1, 9),
    ]
