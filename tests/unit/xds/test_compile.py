"""What compiling promises, for any state."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2 as envoy_cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from google.protobuf import any_pb2, duration_pb2, json_format
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.state import State, routable, serving_nodes
from coordinator.xds.compile import compile_snapshot
from coordinator.xds.gateway_routes import GATEWAY_ROUTES
from coordinator.xds.policy import CLIENT_SLACK_MS, MOST_CLIENT_RETRIES
from coordinator.xds.snapshot import CDS, EDS, LDS, RDS, Snapshot
from tests.unit.xds.states import extreme_states, shuffled, states

PROPERTY = settings(max_examples=40)
_KINDS: dict[str, type[Message]] = {
    CDS: envoy_cluster_pb2.Cluster,
    EDS: endpoint_pb2.ClusterLoadAssignment,
    LDS: listener_pb2.Listener,
    RDS: route_pb2.RouteConfiguration,
}


def unpack(snapshot: Snapshot, type_url: str, name: str) -> Any:
    message = _KINDS[type_url]()
    assert any_pb2.Any.FromString(snapshot.resources[type_url][name]).Unpack(message)
    return message


def endpoints(snapshot: Snapshot, cluster: str) -> list[tuple[str, str, int]]:
    """(region, address, port) of each endpoint."""
    return [
        (locality.locality.region, address.address, address.port_value)
        for locality in unpack(snapshot, EDS, cluster).endpoints
        for endpoint in locality.lb_endpoints
        if (address := endpoint.endpoint.address.socket_address)
    ]


@PROPERTY
@given(states())
def test_every_ready_endpoint_appears_exactly_once_and_no_other(state: State) -> None:
    snapshot = compile_snapshot(state)
    for name, deployment in state.deployments.items():
        for target in deployment.targets:
            ready = serving_nodes(state, name, target.version)
            found = endpoints(snapshot, f"{name}/{target.version}")
            assert Counter(found) == Counter((node.id, node.address, node.report.triton.grpc_port) for node in ready)
            http = endpoints(snapshot, f"{name}/{target.version}/http")
            assert [(node.id, node.report.triton.http_port) for node in ready] == [(each[0], each[2]) for each in http]
    ready_ids = sorted(n.id for n in state.nodes.values() if n.state == membership_pb2.NODE_STATE_READY)
    assert [each[0] for each in endpoints(snapshot, "any")] == ready_ids
    assert [each[0] for each in endpoints(snapshot, "coordinators")] == sorted(state.coordinators)


@PROPERTY
@given(states())
def test_localities_have_one_endpoint_each_and_equal_weights(state: State) -> None:
    snapshot = compile_snapshot(state)
    for cluster in snapshot.resources[EDS]:
        for locality in unpack(snapshot, EDS, cluster).endpoints:
            assert len(locality.lb_endpoints) == 1
            assert locality.load_balancing_weight.value == 1


@PROPERTY
@given(states())
def test_weights_are_those_of_the_routable_versions_that_are_ready(state: State) -> None:
    snapshot = compile_snapshot(state)
    for name, deployment in state.deployments.items():
        routed = dict(routable(state, deployment))
        ready = {version: weight for version, weight in routed.items() if serving_nodes(state, name, version)}
        shared = ready or routed
        assert weights_of(client_action(snapshot, name)) == {
            f"{name}/{version}": weight if len(shared) > 1 else None for version, weight in shared.items()
        }


def test_a_version_that_is_being_replaced_answers_until_the_new_one_does() -> None:
    def state(**ready: str) -> State:
        nodes = [
            membership_pb2.Node(
                id=node_id,
                address="10.0.0.1",
                state=membership_pb2.NODE_STATE_READY,
                report=membership_pb2.ModelReport(
                    models=[
                        membership_pb2.ModelStatus(name="m", version=version, state=membership_pb2.MODEL_STATE_READY)
                    ]
                ),
            )
            for node_id, version in ready.items()
        ]
        targets = [routing_pb2.Target(version="2.0.0", replicas=1, weight=1)]
        return State(
            nodes={node.id: node for node in nodes},
            deployments={"m": routing_pb2.Deployment(name="m", targets=targets)},
            assignments={node.id: frozenset({("m", "2.0.0")}) for node in nodes},
        )

    old, both = compile_snapshot(state(a="1.0.0")), compile_snapshot(state(a="1.0.0", b="2.0.0"))
    assert weights_of(client_action(old, "m")) == {"m/1.0.0": None}
    assert [each[0] for each in endpoints(old, "m/1.0.0")] == ["a"]
    assert weights_of(client_action(both, "m")) == {"m/2.0.0": None}
    assert "m/1.0.0" not in both.resources[CDS]


def test_a_deployment_without_any_weight_is_no_route() -> None:
    deployment = routing_pb2.Deployment(name="m", targets=[routing_pb2.Target(version="1.0.0", replicas=1)])
    snapshot = compile_snapshot(State(deployments={"m": deployment}))
    assert "m" not in snapshot.resources[LDS]
    assert "m" not in snapshot.resources[RDS]


@PROPERTY
@given(states())
def test_the_same_state_gives_the_same_bytes(state: State) -> None:
    assert compile_snapshot(shuffled(state)) == compile_snapshot(state)


@PROPERTY
@given(states())
def test_every_name_that_is_pointed_at_exists(state: State) -> None:
    snapshot = compile_snapshot(state)
    clusters = snapshot.resources[CDS]
    assert clusters.keys() == snapshot.resources[EDS].keys()
    for name in snapshot.resources[LDS]:
        manager = hcm_pb2.HttpConnectionManager()
        assert unpack(snapshot, LDS, name).api_listener.api_listener.Unpack(manager)
        assert manager.rds.route_config_name in snapshot.resources[RDS]
    for name in snapshot.resources[RDS]:
        for action in actions(unpack(snapshot, RDS, name)):
            assert weights_of(action).keys() <= clusters.keys()
    gateway = {name for action in actions(unpack(snapshot, RDS, GATEWAY_ROUTES)) for name in weights_of(action)}
    assert gateway >= {"any", "any/http", "coordinators"}


@PROPERTY
@given(states())
def test_every_route_leaves_time_to_the_caller_and_retries_as_its_policy_says(state: State) -> None:
    snapshot = compile_snapshot(state)
    for name, deployment in state.deployments.items():
        action = client_action(snapshot, name)
        policy = deployment.policy
        assert action.HasField("timeout")
        assert action.timeout.ToNanoseconds() == 0
        bound = action.max_stream_duration.max_stream_duration
        assert bound.ToMilliseconds() == (policy.timeout.seconds and policy.timeout.seconds * 1000 + CLIENT_SLACK_MS)
        assert action.HasField("max_stream_duration") == bool(policy.timeout.seconds)
        retries = policy.retry.max_retries if policy.HasField("retry") else 2
        assert action.HasField("retry_policy") == (retries > 0)
        assert action.retry_policy.num_retries.value == min(retries, MOST_CLIENT_RETRIES)


@PROPERTY
@given(states(), st.integers(0, 5))
def test_what_changes_is_only_what_the_change_concerns(state: State, number: int) -> None:
    """A node that comes or goes changes endpoints and at most the clusters of retiring versions, never listeners."""
    other = dataclasses.replace(state, nodes={k: v for k, v in state.nodes.items() if k != f"node-{number}"})
    before, after = compile_snapshot(state), compile_snapshot(other)
    asked = {f"{d.name}/{target.version}" for d in state.deployments.values() for target in d.targets}
    assert asked <= before.resources[CDS].keys() & after.resources[CDS].keys()
    assert all(before.resources[CDS][name] == after.resources[CDS][name] for name in asked)
    assert before.resources[LDS] == after.resources[LDS]


def test_an_address_that_is_a_name_is_left_out_with_a_reason() -> None:
    model = membership_pb2.ModelStatus(name="m", version="1.0.0", state=membership_pb2.MODEL_STATE_READY)
    node = membership_pb2.Node(id="n", address="gpu-host", state=membership_pb2.NODE_STATE_READY)
    node.report.models.append(model)
    state = State(
        nodes={"n": node},
        deployments={"m": routing_pb2.Deployment(name="m", targets=[routing_pb2.Target(version="1.0.0", weight=1)])},
        assignments={"n": frozenset({("m", "1.0.0")})},
        versions={("m", "1.0.0"): registry_pb2.ModelVersion()},
        coordinators={"c": cluster_pb2.Coordinator(id="c", address="coordinator-host:8503")},
    )
    snapshot = compile_snapshot(state)
    assert endpoints(snapshot, "m/1.0.0") == endpoints(snapshot, "any") == endpoints(snapshot, "coordinators") == []
    assert b"n: address 'gpu-host' is not an IP address" in snapshot.resources[RDS][GATEWAY_ROUTES]


@PROPERTY
@given(extreme_states())
def test_nothing_is_compiled_that_envoy_would_refuse(state: State) -> None:
    snapshot = compile_snapshot(state)
    for name in snapshot.resources[RDS]:
        routes = unpack(snapshot, RDS, name)
        assert max((len(text.encode()) for text in literals(routes)), default=0) < 4096
        for action in actions(routes):
            weights = [weight for weight in weights_of(action).values() if weight is not None]
            assert sum(weights) < 2**32
            assert all(weights)
        for duration in found(routes, duration_pb2.Duration):
            assert 0 <= duration.ToMilliseconds() <= 2 * 365 * 24 * 3600 * 1000
    for name, deployment in state.deployments.items():
        bound = client_action(snapshot, name).max_stream_duration.max_stream_duration
        assert (bound.ToMilliseconds() > 0) == (deployment.policy.timeout.ToNanoseconds() > 0)


@pytest.mark.parametrize("char", ["a", "%", '"', "錯", "😀"])
def test_reasons_of_any_length_make_replies_that_envoy_takes(char: str) -> None:
    key = ("m", "1.0.0")
    model = membership_pb2.ModelStatus(
        name=key[0], version=key[1], state=membership_pb2.MODEL_STATE_FAILED, message=char * 5000
    )
    report = membership_pb2.ModelReport(models=[model])
    ready = membership_pb2.NODE_STATE_READY
    nodes = {f"n{i}": membership_pb2.Node(id=f"n{i}", state=ready, report=report) for i in range(9)}
    state = State(
        nodes=nodes,
        deployments={"m": routing_pb2.Deployment(name="m", targets=[routing_pb2.Target(version="1.0.0", weight=1)])},
        assignments=dict.fromkeys(nodes, frozenset({key})),
    )
    lengths = [len(text.encode()) for text in literals(unpack(compile_snapshot(state), RDS, GATEWAY_ROUTES))]
    assert 900 < max(lengths) < 4096


def test_weights_too_large_to_sum_up_keep_their_shares() -> None:
    weights = {"1.0.0": 2**32 - 1, "2.0.0": 2**32 - 1, "3.0.0": 1}
    targets = [routing_pb2.Target(version=version, weight=weight) for version, weight in weights.items()]
    snapshot = compile_snapshot(State(deployments={"m": routing_pb2.Deployment(name="m", targets=targets)}))
    assert weights_of(client_action(snapshot, "m")) == {"m/1.0.0": 2**30 - 1, "m/2.0.0": 2**30 - 1, "m/3.0.0": 1}


def test_a_policy_written_by_a_newer_coordinator_is_compiled_as_far_as_it_is_known() -> None:
    stored = b'{"name": "m", "targets": [{"version": "1.0.0", "weight": 1}], "policy": {"retry": {"max_retries": 1, '
    stored += b'"codes": ["ABORTED", "INTERNAL"]}, "balancer": {"by_moon_phase": {}}, "tides": "2s"}}'
    deployment = keys.parse(stored, routing_pb2.Deployment())
    retry = client_action(compile_snapshot(State(deployments={"m": deployment})), "m").retry_policy
    assert retry.retry_on == "internal"


@pytest.mark.parametrize("revision", [0, 7])
def test_an_empty_state_still_configures_the_gateway(revision: int) -> None:
    snapshot = compile_snapshot(State(revision=revision))
    assert snapshot.version == str(revision)
    assert set(snapshot.resources[RDS]) == {GATEWAY_ROUTES}
    assert set(snapshot.resources[CDS]) == {"any", "any/http", "coordinators"}


def client_action(snapshot: Snapshot, name: str) -> Any:
    """The one action of a client's routes."""
    (action,) = actions(unpack(snapshot, RDS, name))
    return action


def actions(message: Message) -> Iterator[Any]:
    """Every RouteAction in a message."""
    return found(message, route_components_pb2.RouteAction)


def found(message: Message, kind: type[Message]) -> Iterator[Any]:
    """Every outermost message of a kind in a message, through matchers and what is packed in them."""
    if isinstance(message, kind):
        yield message
        return
    if isinstance(message, any_pb2.Any):
        routes = route_components_pb2.RouteList()
        if message.Unpack(routes):
            yield from found(routes, kind)
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            children = value.values()
        else:
            children = value if field.is_repeated else [value]
        for child in children:
            if isinstance(child, Message):
                yield from found(child, kind)


def literals(routes: Message) -> Iterator[str]:
    """What the routes answer themselves: bodies, formats of bodies, and headers."""
    for reply in found(routes, route_components_pb2.DirectResponseAction):
        yield reply.body.inline_string
        yield reply.body_format.text_format_source.inline_string
        yield json_format.MessageToJson(reply.body_format.json_format)
    for header in found(routes, base_pb2.HeaderValue):
        yield header.value


def weights_of(action: Any) -> dict[str, int | None]:
    """Weight of each cluster of an action; None where there is only one."""
    if action.cluster:
        return {action.cluster: None}
    return {each.name: each.weight.value for each in action.weighted_clusters.clusters}
