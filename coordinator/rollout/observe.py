"""What is seen of a rollout in a state. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aimesh.membership.v1 import membership_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.orders import Replicas
from coordinator.rollout.record import Judged, Observed
from coordinator.state import State


def observe(
    state: State,
    rollout: rollout_pb2.Rollout,
    now_ns: int,
    unacknowledged: Sequence[str] | None = None,
    judged: Judged | None = None,
) -> Observed:
    """A rollout's replicas and failures in a state, and what was asked and judged besides."""
    name = rollout.spec.name
    versions = {target.version for target in rollout.before.targets}
    versions |= {target.version for step in rollout.steps for target in step.targets}
    return Observed(
        now_ns,
        state.revision,
        {version: _replicas(state, name, version) for version in versions},
        {version: _failures(state, name, version) for version in versions},
        unacknowledged,
        judged,
    )


def _replicas(state: State, name: str, version: str) -> Replicas:
    key = (name, version)
    present = {node_id for node_id, held in state.assignments.items() if key in held}
    present |= {
        node.id
        for node in [*state.nodes.values(), *state.answering.values()]
        for model in node.report.models
        if (model.name, model.version) == key and _is_there(model)
    }
    return Replicas(len(state.serving_ids.get(key, ())), len(present))


def _is_there(model: membership_pb2.ModelStatus) -> bool:
    """Whether something of it may be loaded: not of one that failed, which its node forgets when it is not wanted."""
    return model.state != membership_pb2.MODEL_STATE_FAILED


def _failures(state: State, name: str, version: str) -> list[str]:
    """One "node: why" for each node in session that gave the version up since it joined."""
    return [
        f"{node_id}: {failure.message}"
        for (node_id, model, number), failure in sorted(state.failures.items())
        if (model, number) == (name, version) and node_id in state.nodes and state.nodes[node_id].epoch == failure.epoch
    ]
