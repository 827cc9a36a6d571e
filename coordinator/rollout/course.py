"""What a rollout's step makes of the deployment, and how much room there is on the way. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.orders import Room

COMPARING = ("shadow", "experiment")
"""Strategies that compare versions and promote none by themselves: they end as it was before."""
OVER = (rollout_pb2.ROLLOUT_STATE_SUCCEEDED, rollout_pb2.ROLLOUT_STATE_ROLLED_BACK)


def is_over(rollout: rollout_pb2.Rollout | None) -> bool:
    """Whether nothing of it is to be done any more; also when there is none."""
    return rollout is None or rollout.state in OVER


def goal_of(rollout: rollout_pb2.Rollout) -> routing_pb2.Deployment:
    """What the deployment is to be at the end of the present step, or of the way back."""
    if rollout.state == rollout_pb2.ROLLOUT_STATE_ROLLING_BACK:
        return rollout.before
    return shaped(rollout.spec, rollout.before, rollout.steps[min(rollout.step, len(rollout.steps) - 1)])


def shaped(
    spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, step: rollout_pb2.Step
) -> routing_pb2.Deployment:
    """The deployment as a step wants it."""
    made = routing_pb2.Deployment()
    made.CopyFrom(before)
    del made.targets[:]
    made.targets.extend(step.targets)
    if step.mirror_percent:
        made.policy.mirror.CopyFrom(routing_pb2.Mirror(version=spec.version, percent=step.mirror_percent))
    if spec.WhichOneof("strategy") == "experiment" and _is_split(spec, step):
        made.policy.sticky.CopyFrom(routing_pb2.Sticky(header=spec.experiment.header))
    return made


def rising(goal: routing_pb2.Deployment, before: routing_pb2.Deployment) -> frozenset[str]:
    """The versions that take requests over, or copies of them, on the way from one to the other."""
    had = {target.version: target.weight for target in before.targets}
    found = {target.version for target in goal.targets if target.weight > had.get(target.version, 0)}
    return frozenset(found | ({goal.policy.mirror.version} - {""}))


def weighted(targets: Iterable[routing_pb2.Target]) -> frozenset[str]:
    """The versions that get requests."""
    return frozenset(target.version for target in targets if target.weight)


def compared(rollout: rollout_pb2.Rollout) -> tuple[str, list[str]]:
    """(what others are held against, those others). The first is empty when nothing had requests before."""
    old = min(weighted(rollout.before.targets), default="")
    arms = [arm.version for arm in rollout.spec.experiment.arms]
    if rollout.spec.WhichOneof("strategy") != "experiment":
        return old, [rollout.spec.version]
    base = old if old in arms else arms[0]
    return base, [version for version in arms if version != base]


def room_of(rollout: rollout_pb2.Rollout) -> Room:
    """What it may take and must leave, from its spec, whose defaults are filled in."""
    return room(rollout.spec, rollout.before, rollout.steps)


def room(spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, steps: Iterable[rollout_pb2.Step]) -> Room:
    """The same of a plan."""
    last = [step.targets for step in steps][-1]
    answering = min(replicas(before.targets, routed=True), replicas(last, routed=True))
    most = max(replicas(before.targets), replicas(last)) + spec.max_surge
    return Room(most, max(0, answering - spec.max_unavailable))


def replicas(targets: Iterable[routing_pb2.Target], *, routed: bool = False) -> int:
    """How many replicas they want; with `routed` those with a weight only."""
    return sum(target.replicas for target in targets if target.weight or not routed)


def hold_s(step: rollout_pb2.Step) -> float:
    """How long a step lasts at least, in seconds."""
    return step.hold.ToNanoseconds() / 1e9


def _is_split(spec: rollout_pb2.RolloutSpec, step: rollout_pb2.Step) -> bool:
    return weighted(step.targets) == {arm.version for arm in spec.experiment.arms}
