"""The leader's controller of latency-adaptive weights: measures, adapts, writes what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.election import Election
from coordinator.etcd import Created, Delete, Etcd, Put
from coordinator.mirror import Mirror
from coordinator.policy.adapt import Measurement, adapt
from coordinator.state import State, serving_nodes
from meshkit.errors import SupersededError, UnavailableError

log = structlog.get_logger()

STEP_S = 5.0
"""Time between two steps: at most one write of etcd a deployment in that time."""
_FLUTTER = 0.25
"""A smoothed latency is written anew when it moved by more than this share."""

Loads = Mapping[str, membership_pb2.Load]
"""By node id."""
_Counters = Mapping[tuple[str, str, str], membership_pb2.ModelLoad]
"""What each model did since it was loaded, by node, model and version."""


@dataclass
class AdaptiveController:
    """Runs on every coordinator and acts on the leader. A new leader needs one step to have something to compare."""

    etcd: Etcd
    mirror: Mirror
    election: Election
    loads: Callable[[], Awaitable[Loads]]
    step_s: float = STEP_S
    _before: _Counters = field(default_factory=dict, init=False)
    _latest: dict[str, routing_pb2.NodeWeights] = field(default_factory=dict, init=False)
    """By deployment: also what was not worth writing."""

    async def run(self) -> None:
        """Takes a step again and again until cancelled."""
        while True:
            await asyncio.sleep(self.step_s)
            if not self.election.term or self.mirror.frozen or not concerned(self.mirror.state):
                self._before, self._latest = {}, {}
                continue
            try:
                await self._step(self.mirror.state, self.election.fence())
            except (SupersededError, UnavailableError) as error:
                log.warning("weights.not_written", reason=error.message)

    async def _step(self, state: State, fence: Created) -> None:
        now = counters(await self.loads())
        before, self._before = self._before, now
        self._latest = next_weights(state, {**state.weights, **self._latest}, before, now)
        for name in sorted({*state.weights, *self._latest}):
            key, weights = keys.weights(name), self._latest.get(name)
            if worth_writing(state.weights.get(name), weights):
                change = Put(key, keys.encode(weights)) if weights is not None else Delete(key)
                await self.etcd.txn([fence], [change])  # written or not, the next step compares again


def concerned(state: State) -> bool:
    """Whether any deployment has adaptive weights, or had."""
    return bool(state.weights) or any(_adaptive(each) for each in state.deployments.values())


def counters(loads: Loads) -> _Counters:
    """The models' counters of all nodes."""
    return {(node, each.name, each.version): each for node, load in loads.items() for each in load.models}


def next_weights(
    state: State, held: Mapping[str, routing_pb2.NodeWeights], before: _Counters, now: _Counters
) -> dict[str, routing_pb2.NodeWeights]:
    """The weights of each deployment that has the balancer, by name, after a step from those held."""
    return {
        name: _weights(state, deployment, held.get(name, routing_pb2.NodeWeights()), before, now)
        for name, deployment in state.deployments.items()
        if _adaptive(deployment)
    }


def worth_writing(written: routing_pb2.NodeWeights | None, latest: routing_pb2.NodeWeights | None) -> bool:
    """Whether what etcd holds would mislead clients or readers; latencies that only flutter are not written."""
    if written is None or latest is None:
        return written is not latest
    if [_place(entry) for entry in written.nodes] != [_place(entry) for entry in latest.nodes]:
        return True
    pairs = zip(written.nodes, latest.nodes, strict=True)
    return any(_moved(old.latency.ToNanoseconds(), new.latency.ToNanoseconds()) for old, new in pairs)


def _place(entry: routing_pb2.NodeWeight) -> tuple[str, str, int]:
    return entry.version, entry.node, entry.weight


def _moved(old: int, new: int) -> bool:
    return abs(new - old) > _FLUTTER * old


def _adaptive(deployment: routing_pb2.Deployment) -> bool:
    return deployment.policy.balancer.WhichOneof("kind") == "latency_adaptive"


def _weights(
    state: State,
    deployment: routing_pb2.Deployment,
    held: routing_pb2.NodeWeights,
    before: _Counters,
    now: _Counters,
) -> routing_pb2.NodeWeights:
    name, least = deployment.name, deployment.policy.balancer.latency_adaptive.least_percent
    found = routing_pb2.NodeWeights()
    for version in sorted(target.version for target in deployment.targets):
        previous = {entry.node: entry for entry in held.nodes if entry.version == version}
        measured = {
            node.id: measure(before.get((node.id, name, version)), now.get((node.id, name, version)))
            for node in serving_nodes(state, name, version)
        }
        found.nodes.extend(adapt(previous, measured, version, least_percent=least))
    return found


def measure(before: membership_pb2.ModelLoad | None, now: membership_pb2.ModelLoad | None) -> Measurement:
    """What was done between two heartbeats. Nothing, when the model was loaded anew in between or one is missing."""
    if before is None or now is None or now.successes <= before.successes or now.success_ns < before.success_ns:
        return Measurement(0, 0.0)
    requests = now.successes - before.successes
    return Measurement(requests, (now.success_ns - before.success_ns) / requests)
