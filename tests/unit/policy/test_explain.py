"""`explain` says what clients were told, for every state and request."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.policy.effects import effects, partial
from coordinator.policy.explain import explain
from coordinator.state import State, serving_nodes
from coordinator.xds.compile import compile_snapshot
from coordinator.xds.gateway_routes import GATEWAY_ROUTES
from coordinator.xds.snapshot import CDS, EDS, RDS
from coordinator.xds.weights import node_shares
from tests.unit.policy.policies import policies
from tests.unit.xds.states import states
from tests.unit.xds.test_compile import actions, unpack, weights_of
from tools.cli.policy_file import parse_policy
from tools.cli.routes_view import explained


@st.composite
def with_policies(draw: st.DrawFn) -> State:
    state = draw(states())
    for name, deployment in state.deployments.items():
        others = sorted(state.deployments.keys() - {name})
        silent = [target.version for target in deployment.targets if not target.weight]
        deployment.policy.CopyFrom(draw(policies([target.version for target in deployment.targets], others, silent)))
    return state


@settings(max_examples=60)
@given(with_policies(), st.sampled_from([{}, {"x-tenant": "acme"}, {"x-tenant": "nobody"}]))
def test_every_request_has_a_way_and_its_shares_are_whole(state: State, headers: dict[str, str]) -> None:
    for name, deployment in state.deployments.items():
        found = explain(state, deployment, headers)
        for way in (found.gateway, found.programs):
            assert way.decided_by
            assert round(sum(share.percent for share in way.shares)) == 100
            for share in way.shares:
                ready = [node.id for node in serving_nodes(state, share.deployment, share.version)]
                assert [each.node for each in share.endpoints if each.address] == ready
                assert all(each.reason for each in share.endpoints if not each.address)
        assert {share.deployment for share in found.programs.shares} == {name}
        assert not found.programs.copies
        assert not found.programs.HasField("hedge_delay")
        assert not found.programs.HasField("try_timeout")
        assert explained(name, headers, found)


@settings(max_examples=60)
@given(with_policies())
def test_every_cluster_that_routes_point_at_exists_and_has_endpoints_of_its_own(state: State) -> None:
    snapshot = compile_snapshot(state)
    assert snapshot.resources[CDS].keys() == snapshot.resources[EDS].keys()
    for name in snapshot.resources[RDS]:
        for action in actions(unpack(snapshot, RDS, name)):
            mirrors = {each.cluster for each in action.request_mirror_policies}
            assert {*weights_of(action), *mirrors} <= snapshot.resources[CDS].keys()
            assert name == GATEWAY_ROUTES or not mirrors


@settings(max_examples=60)
@given(policies(["1.0.0"], ["a", "b"]))
def test_no_rule_that_is_set_goes_unsaid(policy: routing_pb2.RoutePolicy) -> None:
    target = routing_pb2.Target(version="1.0.0", replicas=1, weight=1)
    said = " ".join(each.rule for each in effects(routing_pb2.Deployment(name="m", targets=[target], policy=policy)))
    for field, _ in policy.ListFields():
        word = "match " if field.name == "matches" else field.name
        if field.name == "retry" or field.name != "limits" or policy.limits.max_requests:
            assert word in said, (field.name, said)


def state_of(policy: dict[str, Any], *ready: str) -> State:
    """chat in two versions and backup, each on a node of its own; `ready` names the nodes that answer."""
    served = {"n1": ("chat", "1.0.0"), "n2": ("chat", "2.0.0"), "n3": ("backup", "1.0.0")}
    nodes = {}
    for index, (node_id, (name, version)) in enumerate(served.items()):
        state = membership_pb2.NODE_STATE_READY if node_id in ready else membership_pb2.NODE_STATE_SUSPECT
        node = membership_pb2.Node(id=node_id, address=f"10.0.0.{index}", state=state)
        node.report.models.add(name=name, version=version, state=membership_pb2.MODEL_STATE_READY)
        node.report.triton.grpc_port = 8001
        nodes[node_id] = node
    targets = [routing_pb2.Target(version=f"{n}.0.0", replicas=1, weight=w) for n, w in ((1, 90), (2, 10))]
    backup = routing_pb2.Deployment(name="backup", targets=targets[:1])
    chat = routing_pb2.Deployment(name="chat", targets=targets, policy=parse_policy(policy, "test"))
    return State(
        revision=7,
        nodes=nodes,
        members=nodes,
        deployments={"chat": chat, "backup": backup},
        assignments={node_id: frozenset({key}) for node_id, key in served.items()},
    )


def ways(state: State, **headers: str) -> routing_pb2.ExplainRouteResponse:
    return explain(state, state.deployments["chat"], {key.replace("_", "-"): value for key, value in headers.items()})


def test_the_match_that_decides_and_the_one_that_is_passed_over_are_named() -> None:
    policy = {"matches": [{"header": "x-tenant", "value": "acme", "version": "2.0.0"}]}
    found = ways(state_of(policy, "n1", "n2"), x_tenant="acme")
    assert found.gateway.decided_by == found.programs.decided_by == "match x-tenant = acme: version 2.0.0"
    assert [(each.version, each.percent) for each in found.gateway.shares] == [("2.0.0", 100)]
    found = ways(state_of(policy, "n1"), x_tenant="acme")
    assert found.gateway.decided_by == "no match holds: the weights"
    assert found.gateway.passed_over == ["match x-tenant = acme: no replica of 2.0.0 is ready"]
    assert [(each.version, each.percent) for each in found.gateway.shares] == [("1.0.0", 100)]


def test_shares_endpoints_and_times_are_those_of_the_routes() -> None:
    policy = {"timeout": "2s", "hedge": {"delay": "100ms"}, "mirror": {"deployment": "backup", "percent": 5}}
    found = ways(state_of(policy, "n1", "n2", "n3"))
    assert [(each.version, each.percent) for each in found.gateway.shares] == [("1.0.0", 90), ("2.0.0", 10)]
    assert [each.address for share in found.programs.shares for each in share.endpoints] == [
        "10.0.0.0:8001",
        "10.0.0.1:8001",
    ]
    assert [(each.deployment, each.percent) for each in found.gateway.copies] == [("backup", 5)]
    assert (found.gateway.timeout.seconds, found.programs.timeout.seconds) == (2, 4)
    assert found.gateway.hedge_delay.nanos == 100_000_000
    assert found.gateway.retries == 2


def test_copies_for_another_version_go_to_it_and_not_of_what_is_sent_there_already() -> None:
    match = {"header": "x-tenant", "value": "acme", "version": "2.0.0"}
    state = state_of({"mirror": {"version": "2.0.0", "percent": 50}, "matches": [match]}, "n1", "n2")
    state.deployments["chat"].targets[1].weight = 0
    (rule,) = (each for each in partial(state.deployments["chat"]) if each.rule.startswith("mirror"))
    assert rule.gateway == "50 % of the requests are copied to version 2.0.0; its answers are dropped"
    found = ways(state)
    assert [(each.version, each.percent) for each in found.gateway.shares] == [("1.0.0", 100)]
    assert [(each.deployment, each.version, each.percent) for each in found.gateway.copies] == [("chat", "2.0.0", 50)]
    assert not found.programs.copies
    assert not ways(state, x_tenant="acme").gateway.copies
    state.nodes["n2"].report.models[0].state = membership_pb2.MODEL_STATE_LOADING
    assert not ways(dataclasses.replace(state)).gateway.copies


def test_a_fallback_is_named_for_the_gateway_and_a_refusal_for_programs() -> None:
    found = ways(state_of({"fallbacks": ["backup"]}, "n3"))
    assert found.gateway.decided_by == "no replica of chat with a weight is ready: its fallback backup"
    assert [each.deployment for each in found.gateway.shares] == ["backup"]
    assert found.programs.decided_by.startswith("refused with UNAVAILABLE: model chat 1.0.0: 0 of 1 replicas ready")
    assert [(each.node, each.reason) for each in found.programs.shares[0].endpoints] == [("n1", "node is suspect")]


def test_a_node_that_claims_what_no_machine_has_gets_the_least_share() -> None:
    state = state_of({"balancer": {"by_capacity": {}}}, "n1", "n2", "n3")
    for node, cores in zip(state.nodes.values(), (math.inf, math.nan, 8.0), strict=True):
        node.capacity.cpu_cores = cores
        node.report.models[0].name, node.report.models[0].version = "chat", "1.0.0"
    state = dataclasses.replace(state, assignments=dict.fromkeys(state.nodes, frozenset({("chat", "1.0.0")})))
    assert [each.weight for each in node_shares(state, state.deployments["chat"], "1.0.0", list(state.nodes))] == [
        1000
    ] * 3


def test_what_grpc_retries_less_than_asked_is_said() -> None:
    state = state_of({"retry": {"max_retries": 5}}, "n1")
    (rule,) = partial(state.deployments["chat"])
    assert "up to 4 more tries" in rule.programs
    assert (ways(state).gateway.retries, ways(state).programs.retries) == (5, 4)


def test_weights_come_with_their_reason() -> None:
    state = state_of({"balancer": {"latency_adaptive": {}}}, "n1")
    entry = routing_pb2.NodeWeight(version="1.0.0", node="n1", weight=700, reason="20 ms a request, 10 ms is typical")
    state = dataclasses.replace(state, weights={"chat": routing_pb2.NodeWeights(nodes=[entry])})
    (share,) = ways(state).gateway.shares
    assert [(each.percent, each.reason) for each in share.endpoints] == [(100, "20 ms a request, 10 ms is typical")]


def test_what_one_engine_cannot_do_is_among_the_partial_rules() -> None:
    policy = {
        "balancer": {"least_request": {}},
        "sticky": {"header": "x-user"},
        "try_timeout": "1s",
        "mirror": {"deployment": "backup", "percent": 1},
        "fallbacks": ["backup"],
        "limits": {"max_requests": 3},
        "outlier": {},
        "retry": {"max_retries": 1, "budget_percent": 10},
    }
    deployment = state_of(policy).deployments["chat"]
    rules = [each.rule.split(" ")[0] for each in partial(deployment)]
    assert rules == [
        "balancer.least_request",
        "sticky",
        "retry.budget_percent",
        "try_timeout",
        "outlier.consecutive_errors",
        "limits.max_requests",
        "mirror",
        "fallbacks",
    ]
    assert not partial(state_of({"balancer": {"by_capacity": {}}, "timeout": "1s"}).deployments["chat"])
