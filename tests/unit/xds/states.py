"""Generated cluster states: nodes in every state, models half loaded, deployments split over versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from google.protobuf import duration_pb2
from hypothesis import strategies as st

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import State, VersionKey

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Key = TypeVar("Key")
Value = TypeVar("Value")
NAMES = ("a", "ab", "a.b", "model-1", "gateway", "any", "coordinators")
VERSIONS = ("1.0.0", "1.1.0", "2.0.0-rc.1")
NODE_IDS = tuple(f"node-{number}" for number in range(5))

_keys: SearchStrategy[VersionKey] = st.tuples(st.sampled_from(NAMES), st.sampled_from(VERSIONS))
_model_states = st.sampled_from([value for value in membership_pb2.ModelState.values() if value])
# READY is drawn most often: it is what the interesting states are made of.
_node_states = st.sampled_from(
    [membership_pb2.NODE_STATE_READY] * 4 + [value for value in membership_pb2.NodeState.values() if value]
)


@st.composite
def _nodes(draw: st.DrawFn, node_id: str) -> membership_pb2.Node:
    number = int(node_id.rpartition("-")[2])
    models = draw(st.dictionaries(_keys, st.tuples(_model_states, st.text(max_size=20)), max_size=4))
    report = membership_pb2.ModelReport(
        triton=membership_pb2.Triton(grpc_port=8000 + number, http_port=9000 + number),
        models=[
            membership_pb2.ModelStatus(name=name, version=version, state=state, message=message)
            for (name, version), (state, message) in models.items()
        ],
    )
    address = draw(st.sampled_from([f"10.0.0.{number}", "fd00::1"]))
    return membership_pb2.Node(id=node_id, state=draw(_node_states), address=address, report=report)


@st.composite
def _deployments(draw: st.DrawFn, name: str) -> routing_pb2.Deployment:
    versions = draw(st.lists(st.sampled_from(VERSIONS), min_size=1, unique=True))
    targets = [
        routing_pb2.Target(version=version, replicas=draw(st.integers(1, 3)), weight=draw(st.integers(0, 100)))
        for version in versions
    ]
    if not any(target.weight for target in targets):
        targets[0].weight = 1
    policy = routing_pb2.RoutePolicy()
    if draw(st.booleans()):
        policy.timeout.CopyFrom(duration_pb2.Duration(seconds=draw(st.integers(0, 5))))
    if draw(st.booleans()):
        policy.retry.max_retries = draw(st.integers(0, 5))
    return routing_pb2.Deployment(name=name, targets=targets, policy=policy)


@st.composite
def states(draw: st.DrawFn) -> State:
    node_ids = draw(st.lists(st.sampled_from(NODE_IDS), unique=True))
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    nodes = {node_id: draw(_nodes(node_id)) for node_id in node_ids}
    return State(
        revision=draw(st.integers(1, 1000)),
        nodes=nodes,
        members=nodes,
        versions={key: registry_pb2.ModelVersion() for key in draw(st.sets(_keys, max_size=4))},
        deployments={name: draw(_deployments(name)) for name in names},
        assignments={node_id: draw(_assigned(node)) for node_id, node in nodes.items() if draw(st.booleans())},
        coordinators={
            f"c{number}": cluster_pb2.Coordinator(id=f"c{number}", address=f"10.1.0.{number}:8503")
            for number in draw(st.sets(st.integers(0, 3)))
        },
    )


@st.composite
def extreme_states(draw: st.DrawFn) -> State:
    """States that no API call gives any more: weights and timeouts of any size, and messages without end."""
    state = draw(states())
    for deployment in state.deployments.values():
        for target in deployment.targets:
            target.weight = draw(st.one_of(st.integers(1, 2**32 - 1), st.just(2**32 - 1)))
        deployment.policy.timeout.seconds = draw(st.sampled_from([0, 1, 10**8, 315_576_000_000]))
        deployment.policy.timeout.nanos = draw(st.integers(0, 999_999_999))
    letter = draw(st.sampled_from(["a", "%", '"', "é", "錯", "😀", "\x00"]))
    for node in state.nodes.values():
        for model in node.report.models:
            model.message = letter * draw(st.integers(0, 5000))
    return state


def _assigned(node: membership_pb2.Node) -> SearchStrategy[frozenset[VersionKey]]:
    reported = frozenset((model.name, model.version) for model in node.report.models)
    return st.one_of(st.just(reported), st.frozensets(_keys, max_size=4))


def shuffled(state: State) -> State:
    """The same state, its mappings filled in the opposite order."""
    return State(
        revision=state.revision,
        nodes=_reversed(state.nodes),
        members=_reversed(state.members),
        versions=_reversed(state.versions),
        deployments=_reversed(state.deployments),
        assignments=_reversed(state.assignments),
        coordinators=_reversed(state.coordinators),
    )


def _reversed(mapping: Mapping[Key, Value]) -> dict[Key, Value]:
    return dict(reversed(list(mapping.items())))
