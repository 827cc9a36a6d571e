from __future__ import annotations

from pathlib import Path

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from meshkit.errors import ExhaustedError, PreconditionError
from meshkit.process import ProcessId
from tests.unit.tools.statuses import node, status
from tools.cli.placement import describe, explain, judge
from tools.local.layout import Layout
from tools.local.probes import judge as judge_parts
from tools.local.record import MeshRecord

PIDS = {"etcd": 44, "coordinator": 55, "node-1": 66, "node-2": 66, "gateway": 88}
RECORD = MeshRecord(Layout(Path("/m"), 8500, 2), processes={name: ProcessId(pid, 0.0) for name, pid in PIDS.items()})


def test_all_replicas_ready() -> None:
    fare = judge(status(node("node-1")), "m", "1.0.0")
    assert fare.ready
    assert not fare.stuck


def test_work_in_progress_is_not_stuck_even_with_rejections() -> None:
    loading = node("node-1", model_state="LOADING")
    fare = judge(status(loading, ready=0, wanted=2, limit="memory"), "m", "1.0.0")
    assert not fare.ready
    assert not fare.stuck
    assert describe(fare) == "0 of 2 ready, node-1 loading"


def test_replicas_that_a_smaller_deployment_gives_up_are_told_apart() -> None:
    assert describe(judge(status(node("node-1"), ready=3, wanted=2), "m", "1.0.0")) == "2 of 2 ready, 1 more leaving"


def test_bytes_that_came_are_shown_while_fetching() -> None:
    entry = node("node-1", model_state="FETCHING")
    entry.node.report.models[0].bytes_done, entry.node.report.models[0].bytes_total = 25, 100
    assert describe(judge(status(entry, ready=0), "m", "1.0.0")) == "0 of 1 ready, node-1 fetching 25%"


def test_no_capacity_is_exhausted_and_names_the_limit() -> None:
    fare = judge(status(node("node-1"), wanted=2, limit="memory"), "m", "1.0.0")
    assert fare.stuck
    assert fare.missing == 1
    error = explain("m", fare)
    assert isinstance(error, ExhaustedError)
    assert "1 of 2 replicas" in error.message
    assert "node-9: memory: 1 of 2" in error.message


def test_a_failed_load_names_node_and_reason() -> None:
    fare = judge(status(node("node-1", model_state="FAILED", message="bad file"), ready=0), "m", "1.0.0")
    assert fare.stuck
    error = explain("m", fare)
    assert isinstance(error, PreconditionError)
    assert "node-1: bad file" in error.message


def test_a_replica_that_failed_and_was_taken_away_still_counts_as_failed() -> None:
    error = explain("m", judge(status(ready=0, limit="load_failed"), "m", "1.0.0"))
    assert isinstance(error, PreconditionError)


def test_a_deployment_nobody_has_seen_yet_is_waited_for() -> None:
    fare = judge(cluster_pb2.Status(), "m", "1.0.0")
    assert not fare.ready
    assert not fare.stuck


def two_nodes() -> cluster_pb2.Status:
    return status(node("node-1"), node("node-2"))


def test_a_mesh_is_ready_when_every_part_answers() -> None:
    parts = judge_parts(RECORD, two_nodes(), etcd=[True], gateway=True)
    assert {name: part.state for name, part in parts.items()} == dict.fromkeys(
        ("etcd", "coordinator", "gateway", "node-1", "node-2"), "ready"
    )


def test_nothing_is_ready_when_nobody_answers() -> None:
    parts = judge_parts(RECORD, None, etcd=[False], gateway=False)
    assert {part.state for part in parts.values()} == {"starting"}


def test_what_etcd_still_says_of_killed_processes_does_not_count() -> None:
    state = two_nodes()
    state.coordinators[0].pid = state.nodes[1].node.pid = 99
    parts = judge_parts(RECORD, state, etcd=[True], gateway=True)
    assert {name for name, part in parts.items() if part.state != "ready"} == {"coordinator", "node-2"}


def test_a_gateway_without_routes_and_a_coordinator_without_leader_are_not_ready() -> None:
    state = two_nodes()
    state.coordinators[0].leader = False
    del state.xds_clients[:]
    parts = judge_parts(RECORD, state, etcd=[True], gateway=True)
    assert (parts["coordinator"].message, parts["gateway"].message) == ("no leader yet", "no routes yet")


def test_a_triton_in_a_crash_loop_fails_the_start_with_its_reason() -> None:
    state = two_nodes()
    state.nodes[0].node.state = membership_pb2.NODE_STATE_JOINING
    state.nodes[0].node.report.triton.state = membership_pb2.TRITON_STATE_CRASH_LOOP
    state.nodes[0].node.report.triton.message = "no libpython"
    part = judge_parts(RECORD, state, etcd=[True], gateway=True)["node-1"]
    assert (part.state, part.message) == ("failed", "no libpython")
