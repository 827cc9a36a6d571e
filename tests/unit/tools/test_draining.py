"""How far a drained node is, as the command line judges it."""

from __future__ import annotations

import pytest

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from meshkit.errors import NotFoundError
from tests.unit.tools.statuses import node, status
from tests.unit.tools.test_status_view import LOCAL, rendered
from tools.cli.draining import draining_json, judge
from tools.cli.status_view import status_json, status_tables


def drained(replicas: int = 1) -> cluster_pb2.NodeStatus:
    entry = node("node-1")
    entry.drained, entry.replicas = True, replicas
    entry.node.state = membership_pb2.NODE_STATE_DRAINING
    return entry


def test_a_replica_on_its_way() -> None:
    found = judge(status(drained(), node("node-2"), wanted=1), "node-1")
    assert (found.empty, found.stuck) == (False, False)
    assert found.describe() == "1 replica to move, still there: m:1.0.0"


def test_a_replica_with_nowhere_to_go() -> None:
    found = judge(status(drained(), limit="memory"), "node-1")
    assert found.stuck
    assert "no place for m:1.0.0" in found.describe()
    assert draining_json(found)["homeless"] == ["m:1.0.0"]


def test_an_empty_node_and_one_that_is_gone() -> None:
    empty = drained(0)
    assert not judge(status(empty), "node-1").empty, "the agent still unloads"
    del empty.node.report.models[:]
    assert judge(status(empty), "node-1").empty
    with pytest.raises(NotFoundError, match="node-9"):
        judge(status(empty), "node-9")


def test_status_shows_drained_silent_braked_and_behind() -> None:
    silent = node("node-2")
    silent.node.state, silent.node.probe = membership_pb2.NODE_STATE_SUSPECT, membership_pb2.PROBE_ANSWERS
    shown = status(drained(), silent)
    shown.braked = "2 of 3 nodes are silent at once"
    shown.behind.FromMilliseconds(4200)
    text = rendered(status_tables(LOCAL, shown))
    for expected in (
        "DRAINING: 1 to move",
        "agent silent, Triton answers",
        "BRAKED",
        "nodes forget",
        "BEHIND",
        "4.2 s",
    ):
        assert expected in text
    found = status_json(LOCAL, shown)
    assert found["cluster"]["braked"] == shown.braked
    assert found["cluster"]["behind_s"] == 4.2
    assert [each["drained"] for each in found["nodes"]] == [True, False]
