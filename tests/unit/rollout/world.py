"""A mesh of plain values: real placement and routing, agents that do what they are told step by step, no process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.placement import place
from coordinator.rollout.advance import advance
from coordinator.rollout.course import is_over
from coordinator.rollout.observe import observe
from coordinator.rollout.plan import Planned, plan
from coordinator.rollout.record import LOADING, RUNNING, Judged
from coordinator.roster import GIB
from coordinator.state import State

NAME = "m"
OLD, NEW, NEWER = "1.0.0", "1.1.0", "1.2.0"
READY = membership_pb2.MODEL_STATE_READY
LOADING_MODEL = membership_pb2.MODEL_STATE_LOADING
UNLOADING = membership_pb2.MODEL_STATE_UNLOADING
FAILED = membership_pb2.MODEL_STATE_FAILED
SECOND = 1_000_000_000


def target(version: str = OLD, replicas: int = 1, weight: int = 100) -> routing_pb2.Target:
    return routing_pb2.Target(version=version, replicas=replicas, weight=weight)


def state_of(nodes: int, *targets: routing_pb2.Target, memory_gib: int = 4, **policy: Any) -> State:
    """So many nodes with room for four replicas each, and the targets deployed and answering."""
    made = {f"n{index}": _node(f"n{index}", memory_gib) for index in range(nodes)}
    deployed = routing_pb2.Deployment(name=NAME, targets=targets, policy=routing_pb2.RoutePolicy(**policy))
    state = State(
        revision=1,
        nodes=made,
        members=made,
        versions={(NAME, version): _version(version) for version in (OLD, NEW, NEWER)},
        deployments={NAME: deployed} if targets else {},
    )
    return settled(state)


def settled(state: State) -> State:
    """Once every agent has done what it was told."""
    for _ in range(4):
        state = work(replace(state, assignments=place(state).assignments), set(state.nodes))
    return state


def work(state: State, agents: set[str], broken: set[str] = frozenset()) -> State:  # type: ignore[assignment]
    """The state after these agents took one step each; versions in `broken` fail to load."""
    nodes = {
        node_id: _stepped(node, state.assignments.get(node_id, frozenset()), broken) if node_id in agents else node
        for node_id, node in state.nodes.items()
    }
    return replace(state, nodes=nodes, members=nodes, revision=state.revision + 1)


def _stepped(node: membership_pb2.Node, wanted: frozenset[tuple[str, str]], broken: set[str]) -> membership_pb2.Node:
    """READY of what is not wanted becomes UNLOADING and then nothing; what is wanted becomes LOADING and then READY."""
    made = membership_pb2.Node()
    made.CopyFrom(node)
    del made.report.models[:]
    held = {(model.name, model.version): model.state for model in node.report.models}
    for (name, version), state in sorted(held.items()):
        if (name, version) in wanted:
            after = FAILED if version in broken else READY
        elif state == READY and name not in {each for each, _ in wanted}:
            after = UNLOADING
        else:
            continue  # it is gone, or was replaced in place
        made.report.models.add(name=name, version=version, state=after)
    for name, version in sorted(wanted - set(held)):
        made.report.models.add(name=name, version=version, state=LOADING_MODEL)
    return made


def spec(version: str = NEW, **fields: Any) -> rollout_pb2.RolloutSpec:
    fields.setdefault("gates", rollout_pb2.Gates(none=True))
    return rollout_pb2.RolloutSpec(name=NAME, version=version, **fields)


def canary(*steps: int, hold_s: float = 1, **fields: Any) -> rollout_pb2.RolloutSpec:
    made = spec(**fields)
    made.canary.steps.extend(steps)
    made.canary.hold.FromNanoseconds(int(hold_s * SECOND))
    return made


def begin(state: State, planned: Planned, now_ns: int = 0) -> State:
    """The state once a rollout has started."""
    rollout = rollout_pb2.Rollout(
        id="r1", spec=planned.spec, before=planned.before, state=RUNNING, phase=LOADING, steps=planned.plan.steps
    )
    rollout.since.FromNanoseconds(now_ns)
    return replace(state, rollouts={NAME: rollout}, revision=state.revision + 1)


@dataclass
class World:
    """One rollout on one mesh, moved by hand."""

    state: State
    now_ns: int = 0
    broken: set[str] = field(default_factory=set)
    acknowledged: int = 0
    """The revision that every client has."""
    judged: Judged | None = None
    seen: list[Mapping[str, int]] = field(default_factory=list)
    """The weights after each write."""

    def start(self, wanted: rollout_pb2.RolloutSpec) -> None:
        self.state = begin(self.state, plan(self.state, wanted), self.now_ns)

    @property
    def rollout(self) -> rollout_pb2.Rollout:
        return self.state.rollouts[NAME]

    @property
    def deployment(self) -> routing_pb2.Deployment:
        return self.state.deployments[NAME]

    @property
    def over(self) -> bool:
        return is_over(self.rollout)

    def weights(self) -> dict[str, int]:
        return {each.version: each.weight for each in self.deployment.targets if each.weight}

    def replicas(self) -> dict[str, int]:
        return {each.version: each.replicas for each in self.deployment.targets}

    def lead(self) -> bool:
        """The leader looks once. Whether it wrote something."""
        awaited = self.rollout.awaited_revision
        missing = None if not awaited else ([] if self.acknowledged >= awaited else ["client c1"])
        found = advance(
            self.rollout, self.deployment, observe(self.state, self.rollout, self.now_ns, missing, self.judged)
        )
        if found is None:
            return False
        deployments = {NAME: found.deployment} if found.deployment is not None else self.state.deployments
        revision = self.state.revision + 1
        self.state = replace(self.state, rollouts={NAME: found.rollout}, deployments=deployments, revision=revision)
        if found.deployment is not None:
            self.seen.append(self.weights())
        return True

    def place(self) -> None:
        assignments = place(self.state).assignments
        self.state = replace(self.state, assignments=assignments, revision=self.state.revision + 1)

    def agents(self, *nodes: str) -> None:
        self.state = work(self.state, set(nodes or self.state.nodes), self.broken)

    def follow(self) -> None:
        """Every client acknowledges what there is."""
        self.acknowledged = self.state.revision

    def tick(self, seconds: float = 0.5) -> None:
        """Everybody does something once."""
        self.lead()
        self.place()
        self.agents()
        self.follow()
        self.now_ns += int(seconds * SECOND)

    def run(self, most: int = 2000) -> rollout_pb2.Rollout:
        """Until it is over. Fails when it never is."""
        for _ in range(most):
            if self.over:
                return self.rollout
            self.tick()
        raise AssertionError(f"not over: {self.rollout}")


def _node(node_id: str, memory_gib: int) -> membership_pb2.Node:
    report = membership_pb2.ModelReport(
        triton=membership_pb2.Triton(state=membership_pb2.TRITON_STATE_READY, grpc_port=1)
    )
    return membership_pb2.Node(
        id=node_id,
        state=membership_pb2.NODE_STATE_READY,
        address="127.0.0.1",
        report=report,
        capacity=membership_pb2.Capacity(memory_bytes=memory_gib * GIB),
    )


def _version(version: str) -> registry_pb2.ModelVersion:
    return registry_pb2.ModelVersion(
        name=NAME, version=version, requirements=registry_pb2.Requirements(memory_bytes=GIB)
    )
