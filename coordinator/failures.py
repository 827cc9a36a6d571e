"""Which versions fail to load again and again on a node: counted in the leader's memory, remembered in etcd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from aimesh.membership.v1 import membership_pb2
from coordinator.state import FailureKey, State

MOST_TRIES = 3
"""Failures after which a replica is placed elsewhere."""
MOST_S = 60.0
"""The same for one that fails slowly: seconds since the first failure."""


@dataclass
class _Trouble:
    """One version on one node since its first failure."""

    since: float
    tries: int = 0
    failing: bool = False


@dataclass
class FailureWatch:
    """Counts failures from the agents' reports. A new leader counts from the start."""

    _troubles: dict[FailureKey, _Trouble] = field(default_factory=dict, init=False)

    def observe(self, state: State, now: float) -> tuple[list[membership_pb2.LoadFailure], list[FailureKey]]:
        """(failures to remember, those to forget). `now` is seconds of a clock that only rises."""
        seen = dict(_loads(state))
        self._troubles = {key: trouble for key, trouble in self._troubles.items() if key in seen}
        for key, model in seen.items():
            if model.state == membership_pb2.MODEL_STATE_READY:
                self._troubles.pop(key, None)
                continue
            failing = model.state == membership_pb2.MODEL_STATE_FAILED
            trouble = self._troubles.get(key)
            if failing and trouble is None:
                trouble = self._troubles[key] = _Trouble(now)
            if trouble is not None:
                trouble.tries += failing and not trouble.failing
                trouble.failing = failing
        return list(self._due(state, seen, now)), list(_forgiven(state, seen))

    def _due(
        self, state: State, seen: dict[FailureKey, membership_pb2.ModelStatus], now: float
    ) -> Iterator[membership_pb2.LoadFailure]:
        for key, trouble in self._troubles.items():
            node_id, name, version = key
            epoch = state.nodes[node_id].epoch
            known = key in state.failures and state.failures[key].epoch == epoch
            if trouble.failing and not known and (trouble.tries >= MOST_TRIES or now - trouble.since >= MOST_S):
                yield membership_pb2.LoadFailure(
                    node_id=node_id, epoch=epoch, name=name, version=version, message=seen[key].message
                )


def _loads(state: State) -> Iterator[tuple[FailureKey, membership_pb2.ModelStatus]]:
    """What each node in session says of each version that it was assigned."""
    for node_id, assigned in state.assignments.items():
        for model in state.nodes[node_id].report.models if node_id in state.nodes else ():
            if (model.name, model.version) in assigned:
                yield (node_id, model.name, model.version), model


def _forgiven(state: State, seen: dict[FailureKey, membership_pb2.ModelStatus]) -> Iterator[FailureKey]:
    """Failures that say nothing any more: it loads after all, nobody wants it, or the node has joined anew or left."""
    for key, failure in state.failures.items():
        node_id, name, version = key
        node, deployment = state.known.get(node_id), state.deployments.get(name)
        wanted = deployment is not None and any(target.version == version for target in deployment.targets)
        loads = key in seen and seen[key].state == membership_pb2.MODEL_STATE_READY
        if loads or not wanted or node is None or node.epoch != failure.epoch:
            yield key
