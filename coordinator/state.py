"""The cluster's state as every coordinator mirrors it from etcd: plain values that the deciding code works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2

VersionKey = tuple[str, str]
"""(model name, semantic version)."""


@dataclass(frozen=True, eq=False)
class State:
    """Everything under /aimesh/v1/ at one etcd revision. The messages in it are never changed in place.

    Two states are equal when they are the same object.
    """

    revision: int = 0
    nodes: Mapping[str, membership_pb2.Node] = field(default_factory=dict)
    """Nodes with a live lease, by id."""
    members: Mapping[str, membership_pb2.Node] = field(default_factory=dict)
    """Every node that joined and did not leave, by id, as it was at its join; those not in `nodes` are dead."""
    versions: Mapping[VersionKey, registry_pb2.ModelVersion] = field(default_factory=dict)
    """Recorded model versions."""
    deployments: Mapping[str, routing_pb2.Deployment] = field(default_factory=dict)
    """Deployments, by name."""
    assignments: Mapping[str, frozenset[VersionKey]] = field(default_factory=dict)
    """What the leader has given each node to run, by node id. At most one version of a name a node."""
    assignment_revisions: Mapping[str, int] = field(default_factory=dict)
    """etcd revision of each node's last assignment, by node id."""
    coordinators: Mapping[str, cluster_pb2.Coordinator] = field(default_factory=dict)
    """Coordinators with a live lease, by id. `leader` is not set here: see `leader`."""
    leader: str = ""
    """Id of the coordinator that leads; empty while there is none."""

    @cached_property
    def serving(self) -> Mapping[VersionKey, tuple[membership_pb2.Node, ...]]:
        """Nodes that answer requests for each version right now, by id.

        A node answers when it is READY, reports the version READY, and was assigned it, or was assigned the one that is
        about to replace it there (which Triton loads before it lets go of the old one).
        """
        found: dict[VersionKey, list[membership_pb2.Node]] = {}
        for _, node in sorted(self.nodes.items()):
            if node.state != membership_pb2.NODE_STATE_READY:
                continue
            assigned = {name for name, _ in self.assignments.get(node.id, ())}
            for model in node.report.models:
                key = (model.name, model.version)
                if model.state == membership_pb2.MODEL_STATE_READY and model.name in assigned:
                    found.setdefault(key, []).append(node)
        return {key: tuple(nodes) for key, nodes in found.items()}


def serving_nodes(state: State, name: str, version: str) -> Sequence[membership_pb2.Node]:
    """Nodes that answer requests for a version right now, by id; see State.serving."""
    return state.serving.get((name, version), ())


def routable(state: State, deployment: routing_pb2.Deployment) -> list[tuple[str, int]]:
    """The versions that get a deployment's requests, with their weights: its targets first, in the deployment's order.

    They are its targets with a weight, ready or not. While some replicas of the targets do not answer yet and versions
    that are being replaced still do, those go on answering, each by the number of its replicas.
    """
    name = deployment.name
    targets = [(target.version, target.weight) for target in deployment.targets if target.weight]
    known = {target.version for target in deployment.targets}
    retiring = sorted(v for n, v in state.serving if n == name and v not in known)
    complete = all(len(serving_nodes(state, name, t.version)) >= t.replicas for t in deployment.targets)
    if complete or not retiring:
        return targets
    both = [version for version, _ in targets] + retiring
    return [(version, len(nodes)) for version in both if (nodes := serving_nodes(state, name, version))]
