"""The steps of each strategy: what the deployment's targets are at each of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.check import new_versions
from coordinator.rollout.course import hold_s

MOST_BATCHES = 50
"""Steps of a rolling rollout, at most."""


def make_steps(
    spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, old: routing_pb2.Target, most: int
) -> list[rollout_pb2.Step]:
    """All steps, when there may be so many replicas at once. The spec's defaults are filled in."""
    kind = spec.WhichOneof("strategy")
    if kind == "canary":
        return [_canary(spec, before, old, percent, most) for percent in spec.canary.steps]
    if kind == "rolling":
        return _rolling(spec, before, old)
    if kind == "blue_green":
        return _blue_green(spec, before, old)
    step = _shadow(spec, before, old) if kind == "shadow" else _experiment(spec, before, old, most)
    return [step, rollout_pb2.Step(targets=before.targets)]


def last_targets(
    spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, old: routing_pb2.Target
) -> Sequence[routing_pb2.Target]:
    """What it comes to in the end."""
    if spec.WhichOneof("strategy") in ("shadow", "experiment"):
        return list(before.targets)
    return targets(before, old, {spec.version: (spec.replicas, 100)}, 0, 0)


def brought(spec: rollout_pb2.RolloutSpec, old: routing_pb2.Target) -> dict[str, int]:
    """The most replicas of each new version at any step."""
    return {version: _replicas_of(spec, version) for version in new_versions(spec, old)}


def targets(
    before: routing_pb2.Deployment,
    old: routing_pb2.Target,
    new: Mapping[str, tuple[int, int]],
    old_weight: int,
    old_replicas: int,
) -> list[routing_pb2.Target]:
    """Those of before, with the old version and the new ones ({version: (replicas, weight)}) as given."""
    made, had = [], {target.version: target.replicas for target in before.targets}
    for target in before.targets:
        if target.version == old.version:
            if old_replicas:
                made.append(routing_pb2.Target(version=old.version, replicas=old_replicas, weight=old_weight))
        elif target.version not in new:
            made.append(target)
    for version, (count, weight) in new.items():
        made.append(routing_pb2.Target(version=version, replicas=max(count, had.get(version, 0)), weight=weight))
    return made


def _canary(
    spec: rollout_pb2.RolloutSpec,
    before: routing_pb2.Deployment,
    old: routing_pb2.Target,
    percent: int,
    most: int,
) -> rollout_pb2.Step:
    """The old version keeps all its replicas while there is room: the way back is a change of weights then."""
    count = _share(percent, spec.replicas)
    kept = 0 if percent == 100 else max(1, min(old.replicas, most - _beside(before, old, spec.version) - count))
    new = {spec.version: (count, percent)}
    step = rollout_pb2.Step(targets=targets(before, old, new, 100 - percent, kept), percent=percent)
    if percent < 100:
        step.hold.CopyFrom(spec.canary.hold)
    return step


def _rolling(
    spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, old: routing_pb2.Target
) -> list[rollout_pb2.Step]:
    batch = max(1, spec.max_surge + spec.max_unavailable, math.ceil(spec.replicas / MOST_BATCHES))
    steps = []
    for count in [*range(batch, spec.replicas, batch), spec.replicas]:
        left = math.ceil(old.replicas * (spec.replicas - count) / spec.replicas)
        percent = min(99, max(1, round(100 * count / (count + left)))) if left else 100
        new = {spec.version: (count, percent)}
        steps.append(rollout_pb2.Step(targets=targets(before, old, new, 100 - percent, left), percent=percent))
    return steps


def _blue_green(
    spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, old: routing_pb2.Target
) -> list[rollout_pb2.Step]:
    new = {spec.version: (spec.replicas, 100)}
    kept = rollout_pb2.Step(targets=targets(before, old, new, 0, old.replicas), percent=100)
    kept.hold.CopyFrom(spec.blue_green.keep)
    done = rollout_pb2.Step(targets=targets(before, old, new, 0, 0), percent=100)
    return [kept, done] if hold_s(kept) else [done]


def _shadow(spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, old: routing_pb2.Target) -> rollout_pb2.Step:
    new = {spec.version: (_replicas_of(spec, spec.version), 0)}
    copied = targets(before, old, new, old.weight, old.replicas)
    step = rollout_pb2.Step(targets=copied, mirror_percent=spec.shadow.percent)
    step.hold.CopyFrom(spec.shadow.duration)
    return step


def _experiment(
    spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, old: routing_pb2.Target, most: int
) -> rollout_pb2.Step:
    shares = {arm.version: arm.percent for arm in spec.experiment.arms}
    new = {version: (count, shares[version]) for version, count in brought(spec, old).items()}
    room = most - _beside(before, old, *new) - sum(count for count, _ in new.values())
    kept = max(1 if old.version in shares else 0, min(old.replicas, room))
    split = targets(before, old, new, shares.get(old.version, 0), kept)
    step = rollout_pb2.Step(targets=split, percent=shares[spec.version])
    step.hold.CopyFrom(spec.experiment.duration)
    return step


def _replicas_of(spec: rollout_pb2.RolloutSpec, version: str) -> int:
    kind = spec.WhichOneof("strategy")
    if kind == "experiment":
        return _share(next(arm.percent for arm in spec.experiment.arms if arm.version == version), spec.replicas)
    return _share(spec.shadow.percent, spec.replicas) if kind == "shadow" else spec.replicas


def _share(percent: float, replicas: int) -> int:
    return max(1, math.ceil(percent * replicas / 100))


def _beside(before: routing_pb2.Deployment, old: routing_pb2.Target, *new: str) -> int:
    """Replicas of versions that the rollout does not touch."""
    return sum(target.replicas for target in before.targets if target.version not in (old.version, *new))
