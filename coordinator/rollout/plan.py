"""What a rollout would do: its steps, the room they need and the time they take. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.api.validate import check_deployment
from coordinator.policy.effects import partial
from coordinator.rollout.capacity import fill_room
from coordinator.rollout.check import check_against, filled, old_target
from coordinator.rollout.course import COMPARING, replicas, room, shaped, weighted
from coordinator.rollout.steps import brought, last_targets, make_steps
from coordinator.rollout.timing import measured_s, time_to_promote, time_to_roll_back
from coordinator.state import State
from meshkit.errors import PreconditionError


@dataclass(frozen=True)
class Planned:
    """A rollout as it would start."""

    spec: rollout_pb2.RolloutSpec
    """With every default filled in."""
    before: routing_pb2.Deployment
    plan: rollout_pb2.Plan


def plan(state: State, wanted: rollout_pb2.RolloutSpec) -> Planned:
    """The whole course of a rollout.

    Raises InvalidInputError for what can never be right, NotFoundError for what does not exist, and PreconditionError
    for what is not possible in this state: another rollout, a split deployment, no room.
    """
    spec = filled(wanted)
    check_against(state, spec)
    before, old = state.deployments[spec.name], old_target(state, spec)
    _check_mirror(spec, before)
    spec.replicas = spec.replicas or old.replicas
    last = last_targets(spec, before, old)
    fill_room(state, spec, before, brought(spec, old), last)
    most = max(replicas(before.targets), replicas(last)) + spec.max_surge
    return _planned(state, spec, before, make_steps(spec, before, old, most))


def plan_back(state: State, ended: rollout_pb2.Rollout) -> Planned:
    """The rollout back to what was there before one that succeeded. Raises PreconditionError when there is no room."""
    before, goal = state.deployments[ended.spec.name], ended.before.targets
    spec = rollout_pb2.RolloutSpec(
        name=ended.spec.name,
        version=max(goal, key=lambda target: target.weight).version,
        rolling=rollout_pb2.Rolling(),
        replicas=replicas(goal, routed=True),
        gates=rollout_pb2.Gates(none=True),
        allow_downgrade=True,
    )
    had = {target.version for target in before.targets if target.weight}
    fill_room(state, spec := filled(spec), before, {t.version: t.replicas for t in goal if t.version not in had}, goal)
    return _planned(state, spec, before, [rollout_pb2.Step(targets=goal, percent=100)])


def _planned(
    state: State,
    spec: rollout_pb2.RolloutSpec,
    before: routing_pb2.Deployment,
    steps: Sequence[rollout_pb2.Step],
) -> Planned:
    for step in steps:  # a match on a version that goes, for example
        check_deployment(shaped(spec, before, step))
    loads = _load_times(state, spec.name)
    new = {target.version for step in steps for target in step.targets} - weighted(before.targets)
    promote_s, forward, arrivals = time_to_promote(spec, before, steps, measured_s(loads, sorted(new)))
    old_load_s = measured_s(loads, sorted(weighted(before.targets)))
    back_s, backward = time_to_roll_back(spec, before, steps, arrivals, old_load_s)
    within = room(spec, before, steps)
    limits = (
        f"room: at most {within.most} replicas at once and at least {within.least} that answer "
        f"(max_surge {spec.max_surge}, max_unavailable {spec.max_unavailable})"
    )
    made = rollout_pb2.Plan(steps=steps, reasons=[limits, *forward, *backward])
    made.warnings.extend(_warnings(state, spec, before, steps))
    made.time_to_promote.FromNanoseconds(round(promote_s * 1e9))
    made.time_to_roll_back.FromNanoseconds(round(back_s * 1e9))
    return Planned(spec, before, made)


def _load_times(state: State, name: str) -> dict[str, float]:
    """Seconds, by version."""
    return {
        version: measured.load_time.ToNanoseconds() / 1e9
        for (model, version), measured in state.measured.items()
        if model == name
    }


def _check_mirror(spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment) -> None:
    if spec.WhichOneof("strategy") == "shadow" and before.policy.HasField("mirror"):
        other = before.policy.mirror.deployment or before.policy.mirror.version
        raise PreconditionError(
            f"requests of {spec.name} are copied to {other} already",
            hint=f"take the mirror out of its policy first: aimesh routes set {spec.name} --policy FILE",
            reason="ROLLOUT_NOT_POSSIBLE",
        )


def _warnings(
    state: State,
    spec: rollout_pb2.RolloutSpec,
    before: routing_pb2.Deployment,
    steps: Sequence[rollout_pb2.Step],
) -> list[str]:
    found = []
    if not spec.max_surge:
        found.append("no room for a replica more: old ones go before new ones load, and the way back loads them again")
    for rule in partial(shaped(spec, before, steps[0])):
        if rule.rule.startswith(("sticky", "mirror")):
            found.append(f"{rule.rule}: not for programs on xds:///: {rule.programs}")
    for target in before.targets:
        if target.weight and (spec.name, target.version) not in state.serving:
            found.append(f"{target.version} does not answer now: going back would lead to nothing that does")
        if target.alias and spec.WhichOneof("strategy") not in COMPARING:
            found.append(f"the deployment follows alias {target.alias} now; afterwards it is of {spec.version} alone")
    return found
