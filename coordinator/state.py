"""The cluster's state as every coordinator mirrors it from etcd: plain values that the deciding code works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from aimesh.cluster.v1 import cluster_pb2
from aimesh.experiment.v1 import experiment_pb2
from aimesh.identity.v1 import identity_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from aimesh.training.v1 import training_pb2
from coordinator.brake import takes_requests, why_braked

VersionKey = tuple[str, str]
"""(model name, semantic version)."""
FailureKey = tuple[str, str, str]
"""(node id, model name, semantic version)."""


@dataclass(frozen=True, eq=False)
class State:
    """Everything under /aimesh/v1/ at one etcd revision. The messages in it are never changed in place.

    Two states are equal when they are the same object.
    """

    revision: int = 0
    nodes: Mapping[str, membership_pb2.Node] = field(default_factory=dict)
    """Nodes with a live lease, by id."""
    members: Mapping[str, membership_pb2.Node] = field(default_factory=dict)
    """Every node that joined and did not leave, by id, as it is or was last; DEAD once the leader judged so."""
    versions: Mapping[VersionKey, registry_pb2.ModelVersion] = field(default_factory=dict)
    """Recorded model versions."""
    models: Mapping[str, registry_pb2.Model] = field(default_factory=dict)
    """Aliases and tags, by model; one that has neither may not be here."""
    measured: Mapping[VersionKey, registry_pb2.Measured] = field(default_factory=dict)
    """What versions took where they were loaded."""
    trust: registry_pb2.Trust = field(default_factory=registry_pb2.Trust)
    """Whose signatures of versions count."""
    deployments: Mapping[str, routing_pb2.Deployment] = field(default_factory=dict)
    """Deployments, by name."""
    rollouts: Mapping[str, rollout_pb2.Rollout] = field(default_factory=dict)
    """The newest rollout of each deployment that had one, by its name."""
    quarantined: Mapping[str, experiment_pb2.Quarantine] = field(default_factory=dict)
    """Configurations that are not to be tried again, by hash; those with a review may."""
    weights: Mapping[str, routing_pb2.NodeWeights] = field(default_factory=dict)
    """What the leader has measured for deployments with the balancer latency_adaptive, by their name."""
    assignments: Mapping[str, frozenset[VersionKey]] = field(default_factory=dict)
    """What the leader has given each node to run, by node id. At most one version of a name a node."""
    assignment_revisions: Mapping[str, int] = field(default_factory=dict)
    """etcd revision of each node's last assignment, by node id."""
    drains: Mapping[str, int] = field(default_factory=dict)
    """Nodes that an operator drains, by id, with the revision at which that was said."""
    failures: Mapping[FailureKey, membership_pb2.LoadFailure] = field(default_factory=dict)
    """Versions whose load failed again and again on a node."""
    jobs: Mapping[str, training_pb2.Job] = field(default_factory=dict)
    """Training jobs that were not removed, by id."""
    job_revisions: Mapping[str, int] = field(default_factory=dict)
    """etcd revision of each job's last write, by id."""
    strategies: training_pb2.StrategyTable = field(default_factory=training_pb2.StrategyTable)
    """What finished jobs have taught of strategies."""
    strategies_revision: int = 0
    """etcd revision of the strategies' last write; 0 before the first."""
    coordinators: Mapping[str, cluster_pb2.Coordinator] = field(default_factory=dict)
    """Coordinators with a live lease, by id. `leader` is not set here: see `leader`."""
    api_keys: Mapping[str, identity_pb2.ApiKey] = field(default_factory=dict)
    """API keys that were not revoked, by id. One that has ended may still be here for a moment: see `expires_at`."""
    join_tokens: Mapping[str, identity_pb2.JoinToken] = field(default_factory=dict)
    """Join tokens that were not used or revoked, by id."""
    revoked: Mapping[str, identity_pb2.Revocation] = field(default_factory=dict)
    """Since when an identity's certificates must have been issued to be taken, by "<role>/<id>"."""
    key_file: str = ""
    """Fingerprint of the key with which the coordinators sign API keys; empty before the first."""
    leader: str = ""
    """Id of the coordinator that leads; empty while there is none."""
    brake_share: float = 0.5
    """Share of silent nodes beyond which the brake is on; of the settings, the same on every coordinator."""

    @cached_property
    def known(self) -> Mapping[str, membership_pb2.Node]:
        """Every node by id, in order: as its session keeps it, or as it was last."""
        return dict(sorted({**self.members, **self.nodes}.items()))

    @cached_property
    def braked(self) -> str:
        """Why the mass-failure brake is on; empty while it is off."""
        return why_braked(self.nodes, self.members, self.brake_share)

    @cached_property
    def answering(self) -> Mapping[str, membership_pb2.Node]:
        """Nodes whose Triton takes requests, by id, in order; see coordinator.brake.takes_requests."""
        braked = bool(self.braked)
        return {
            node_id: node
            for node_id, node in self.known.items()
            if takes_requests(node, leased=node_id in self.nodes, braked=braked)
        }

    @cached_property
    def serving(self) -> Mapping[VersionKey, tuple[membership_pb2.Node, ...]]:
        """Nodes that answer requests for each version right now, by id.

        A node answers when its Triton takes requests, its agent said the version is READY, and it was assigned it, or
        was assigned the one that is about to replace it there (which Triton loads before it lets go of the old one).
        The latter counts only for a version that is no target any more, replaced by one that may take its requests:
        from one moment to the next they are answered by the other one.
        """
        found: dict[VersionKey, list[membership_pb2.Node]] = {}
        for node in self.answering.values():
            assigned = self.assignments.get(node.id, frozenset())
            for model in node.report.models:
                key = (model.name, model.version)
                if model.state == membership_pb2.MODEL_STATE_READY and self._answers(key, assigned):
                    found.setdefault(key, []).append(node)
        return {key: tuple(nodes) for key, nodes in found.items()}

    def _answers(self, key: VersionKey, assigned: frozenset[VersionKey]) -> bool:
        """Whether requests for a version that a node has READY may go there, given what it was assigned."""
        if key in assigned:
            return True
        weights = self.target_weights.get(key[0], {})
        successors = [version for name, version in assigned if name == key[0]]
        return key[1] not in weights and any(weights.get(version, 1) for version in successors)

    @cached_property
    def target_weights(self) -> Mapping[str, Mapping[str, int]]:
        """The weight of each target, by deployment, then version."""
        return {
            name: {target.version: target.weight for target in deployment.targets}
            for name, deployment in self.deployments.items()
        }

    @cached_property
    def versions_serving(self) -> Mapping[str, frozenset[str]]:
        """The versions of each name that some node answers for."""
        found: dict[str, set[str]] = {}
        for name, version in self.serving:
            found.setdefault(name, set()).add(version)
        return {name: frozenset(versions) for name, versions in found.items()}

    @cached_property
    def routables(self) -> Mapping[str, list[tuple[str, int]]]:
        """What `routable` says of each deployment, by name: a snapshot asks for it again and again."""
        return {name: _routable(self, deployment) for name, deployment in self.deployments.items()}

    @cached_property
    def serving_ids(self) -> Mapping[VersionKey, frozenset[str]]:
        """The same as ids."""
        return {key: frozenset(node.id for node in nodes) for key, nodes in self.serving.items()}


def serving_nodes(state: State, name: str, version: str) -> Sequence[membership_pb2.Node]:
    """Nodes that answer requests for a version right now, by id; see State.serving."""
    return state.serving.get((name, version), ())


def routable(state: State, deployment: routing_pb2.Deployment) -> list[tuple[str, int]]:
    """The versions that get a deployment's requests, with their weights: its targets first, in the deployment's order.

    They are its targets with a weight, ready or not. While some replicas of the targets do not answer yet and versions
    that are being replaced still do, those go on answering, each by the number of its replicas.
    """
    if state.deployments.get(deployment.name) is deployment:
        return state.routables[deployment.name]
    return _routable(state, deployment)


def _routable(state: State, deployment: routing_pb2.Deployment) -> list[tuple[str, int]]:
    name = deployment.name
    targets = [(target.version, target.weight) for target in deployment.targets if target.weight]
    known = {target.version for target in deployment.targets}
    retiring = sorted(state.versions_serving.get(name, frozenset()) - known)
    complete = all(len(serving_nodes(state, name, t.version)) >= t.replicas for t in deployment.targets)
    if complete or not retiring:
        return targets
    both = [version for version, _ in targets] + retiring
    return [(version, len(nodes)) for version in both if (nodes := serving_nodes(state, name, version))]
