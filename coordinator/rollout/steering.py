"""What people do to a rollout: pause, resume, promote, abort, undo. Pure; refuses what its state does not allow."""

from __future__ import annotations

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.order import Order
from coordinator.rollout.course import COMPARING, is_over
from coordinator.rollout.record import HELD, ROLLING_BACK, RUNNING, SUCCEEDED, at_step, back, decided
from meshkit.errors import InvalidInputError, PreconditionError

PAUSED = rollout_pb2.ROLLOUT_STATE_PAUSED


def paused(rollout: rollout_pb2.Rollout, order: Order) -> rollout_pb2.Rollout:
    """Stopped at the weights it has. Raises PreconditionError unless it runs."""
    if rollout.state != RUNNING:
        raise _not(rollout, "paused", "only one that runs can be")
    made = decided(rollout, order.now_ns, rollout_pb2.VERDICT_UNSPECIFIED, order.said("paused"), by=order.by)
    made.state = PAUSED
    return made


def resumed(rollout: rollout_pb2.Rollout, order: Order) -> rollout_pb2.Rollout:
    """Going on; the step's hold time begins anew. Raises PreconditionError unless it is paused or held."""
    if rollout.state not in (PAUSED, HELD):
        raise _not(rollout, "resumed", "only one that is paused or held can be")
    made = decided(rollout, order.now_ns, rollout_pb2.VERDICT_UNSPECIFIED, order.said("resumed"), by=order.by)
    made.state = RUNNING
    made.since.FromNanoseconds(order.now_ns)
    return made


def promoted(rollout: rollout_pb2.Rollout, order: Order, version: str = "") -> rollout_pb2.Rollout:
    """At its last step, past every gate; of a comparison, towards one of its versions.

    Raises PreconditionError when it is over, goes back or is at its last step already, InvalidInputError for a version
    that it does not compare.
    """
    compares = rollout.spec.WhichOneof("strategy") in COMPARING
    if is_over(rollout) or rollout.state == ROLLING_BACK:
        name, to = rollout.spec.name, version or rollout.spec.version
        hint = f"bring it in by a rollout of its own: aimesh rollout start {name}:{to}" if compares else ""
        raise _not(rollout, "promoted", "it is too late", hint)
    if rollout.step == len(rollout.steps) - 1:
        raise _not(rollout, "promoted", "it is at its last step")
    made = decided(rollout, order.now_ns, rollout_pb2.VERDICT_PASS, order.said("promoted"), by=order.by)
    if compares or version not in ("", rollout.spec.version):
        _aim_at(made, version)
    return at_step(made, len(made.steps) - 1, order.now_ns)


def aborted(rollout: rollout_pb2.Rollout, order: Order) -> rollout_pb2.Rollout:
    """Going back. Raises PreconditionError when it is over or goes back already."""
    if is_over(rollout) or rollout.state == ROLLING_BACK:
        raise _not(rollout, "aborted", "it is too late")
    return back(rollout, order.now_ns, order.said("aborted"), by=order.by)


def check_undo(rollout: rollout_pb2.Rollout, deployment: routing_pb2.Deployment | None) -> None:
    """Raises PreconditionError unless it succeeded, changed something, and the deployment is as it left it."""
    name = rollout.spec.name
    if rollout.state != SUCCEEDED:
        raise _not(rollout, "undone", "only one that succeeded can be")
    left = rollout.steps[-1].targets
    if left == rollout.before.targets:
        raise _not(rollout, "undone", "it compared, and changed nothing")
    if deployment is None or deployment.targets != left:
        raise PreconditionError(
            f"{name} was deployed anew since its rollout to {rollout.spec.version}",
            hint=f"go on from what there is: aimesh rollout start {name}:VERSION",
            reason="ROLLOUT_STATE",
        )


def _aim_at(rollout: rollout_pb2.Rollout, version: str) -> None:
    """Makes the last step one at which a version of a comparison has everything."""
    spec = rollout.spec
    arms = [arm.version for arm in spec.experiment.arms] or [spec.version]
    chosen = version or (arms[0] if len(arms) == 1 else "")
    if chosen not in arms:
        raise InvalidInputError(
            f"{spec.name} does not compare version {chosen!r}" if chosen else "an experiment's winner must be named",
            hint=f"--version with one of {', '.join(arms)}",
            reason="BAD_ROLLOUT",
        )
    kept = [each for each in rollout.before.targets if not each.weight and each.version != chosen]
    last = rollout.steps[-1]
    del last.targets[:]
    last.targets.extend([*kept, routing_pb2.Target(version=chosen, replicas=spec.replicas, weight=100)])
    last.percent, spec.version = 100, chosen


def _not(rollout: rollout_pb2.Rollout, verb: str, why: str, hint: str = "") -> PreconditionError:
    state = rollout_pb2.RolloutState.Name(rollout.state).removeprefix("ROLLOUT_STATE_")
    name = rollout.spec.name
    return PreconditionError(
        f"the rollout of {name} to {rollout.spec.version} is {state} and cannot be {verb}: {why}",
        hint=hint or f"see: aimesh rollout status {name}",
        reason="ROLLOUT_STATE",
    )
