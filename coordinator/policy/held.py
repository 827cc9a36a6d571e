"""Holds a deployment's policy against the versions and the other deployments that it is about, as they were read."""

from __future__ import annotations

from collections.abc import Sequence

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.etcd import KeyValue
from coordinator.policy.check import check_batching
from coordinator.policy.references import check_references, check_signatures
from coordinator.state import State
from meshkit.signing import check_allowed


def check_held(
    state: State,
    deployment: routing_pb2.Deployment,
    versions: Sequence[registry_pb2.ModelVersion],
    others: Sequence[KeyValue],
) -> None:
    """`versions` are the targets', `others` the deployments that the policy leads to.

    Raises InvalidInputError, and PreconditionError for a version that is new there and that no node may load.
    """
    _check_allowed(state, deployment.name, versions)
    check_batching(deployment.policy, [(each.version, each.signature.max_batch_size) for each in versions])
    deployments = dict(state.deployments)
    for each in others:
        name = each.key.removeprefix(keys.deployment(""))
        if each.value is None:
            deployments.pop(name, None)
        else:
            deployments[name] = keys.parse(each.value, routing_pb2.Deployment())
    check_references(deployment, deployments)
    check_signatures(state.versions, deployment, deployments)


def _check_allowed(state: State, name: str, versions: Sequence[registry_pb2.ModelVersion]) -> None:
    """What serves already goes on when signatures are asked for later: its replicas may still be changed."""
    serving = state.target_weights.get(name, {})
    for version in versions:
        if version.version not in serving:
            check_allowed(version, state.trust)
