"""How long a rollout takes forward, and back from its worst moment: its steps played through. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.advance import BACK_PATIENCE_S
from coordinator.rollout.capacity import no_room
from coordinator.rollout.course import hold_s, rising, room, shaped, weighted
from coordinator.rollout.orders import Course, Kind, Replicas, Room, next_move

PACE_S = 0.5
"""How often the leader looks: about the least time that anything awaited takes."""
JUDGE_S = 1.0
"""How often a step is judged."""
DRAIN_S = 5.0
"""About how long an old replica needs to end what it has in flight, and to be unloaded."""


@dataclass(frozen=True)
class Moves:
    """How often something is awaited."""

    loads: int = 0
    acknowledgements: int = 0
    drains: int = 0


def time_to_promote(
    spec: rollout_pb2.RolloutSpec,
    before: routing_pb2.Deployment,
    steps: Sequence[rollout_pb2.Step],
    load_s: float,
) -> tuple[float, list[str], list[routing_pb2.Deployment]]:
    """(seconds until the new version has everything when every gate passes at once, how that comes about, the
    deployment as each step leaves it). `load_s` is 0 when it is not known.

    Raises PreconditionError when there is no way within the spec's max_surge and max_unavailable.
    """
    moves, arrivals = _walk(spec, before, steps)
    first = next((index for index, step in enumerate(steps) if step.percent == 100), len(steps) - 1)
    held, waits = sum(hold_s(step) for step in steps[:first]), moves.acknowledgements + moves.drains
    lines = [
        f"forward: {held:g} s of hold times before the last step",
        f"forward: new replicas are waited for {_times(moves.loads)}, {_known(load_s)}",
        f"forward: clients are waited for {_times(moves.acknowledgements)} and old replicas {_times(moves.drains)}, "
        f"{PACE_S:g} s each at least",
    ]
    return held + moves.loads * load_s + waits * PACE_S, lines, arrivals


def time_to_roll_back(
    spec: rollout_pb2.RolloutSpec,
    before: routing_pb2.Deployment,
    steps: Sequence[rollout_pb2.Step],
    arrivals: Sequence[routing_pb2.Deployment],
    load_s: float,
) -> tuple[float, list[str]]:
    """(the most seconds from a bad moment's judgement until no request reaches the new version, how)."""
    ways = [_walk_back(before, room(spec, before, steps), each) for each in arrivals]
    worst = max(ways, key=lambda moves: (moves.loads, moves.drains, moves.acknowledgements))
    patience = min(BACK_PATIENCE_S, spec.step_timeout.ToNanoseconds() / 1e9)
    old = f"are waited for {_times(worst.loads)}, {_known(load_s)}" if worst.loads else "are still loaded"
    lines = [
        f"back: judged every {JUDGE_S:g} s",
        f"back: old replicas {old}",
        f"back: clients are waited for {_times(worst.acknowledgements)}, {patience:g} s each at most "
        f"({PACE_S:g} s when all follow)",
        f"back: replicas are drained {_times(worst.drains)}, about {DRAIN_S:g} s each",
    ]
    return JUDGE_S + worst.loads * load_s + worst.acknowledgements * patience + worst.drains * DRAIN_S, lines


def measured_s(loads: Mapping[str, float], versions: Sequence[str]) -> float:
    """The longest known load time of these versions; 0 when none is known."""
    return max((loads.get(version, 0.0) for version in versions), default=0.0)


def _walk(
    spec: rollout_pb2.RolloutSpec, before: routing_pb2.Deployment, steps: Sequence[rollout_pb2.Step]
) -> tuple[Moves, list[routing_pb2.Deployment]]:
    """Plays the steps as though everything came at once: (moves until the new version has all, where each arrives)."""
    within = room(spec, before, steps)
    now, moves, arrivals = before, Moves(), []
    promoted: Moves | None = None
    for step in steps:
        goal = shaped(spec, before, step)
        course = Course(now, goal, rising(goal, before), within)
        if step.percent == 100 and promoted is None:
            _, promoted = _play(course, moves, until_routed=True)
        now, moves = _play(course, moves)
        arrivals.append(now)
    return promoted or moves, arrivals


def _walk_back(before: routing_pb2.Deployment, within: Room, start: routing_pb2.Deployment) -> Moves:
    """The moves until no weight is left on what had none before."""
    course = Course(start, before, weighted(before.targets), within, eager=True)
    return _play(course, Moves(), until_routed=True)[1]


def _play(course: Course, moves: Moves, *, until_routed: bool = False) -> tuple[routing_pb2.Deployment, Moves]:
    while True:
        now = course.now
        seen = {target.version: Replicas(target.replicas, target.replicas) for target in now.targets}
        move = next_move(replace(course, seen=seen))
        if move.kind == Kind.STUCK:
            shown = ", ".join(f"{target.replicas} of {target.version}" for target in course.goal.targets)
            raise no_room(f"there is no way to {shown}: {move.reason}")
        if move.deployment is None:
            return now, moves
        course, moves = replace(course, now=move.deployment), _counted(moves, move.kind)
        if until_routed and move.kind == Kind.ROUTE:
            return move.deployment, moves


def _counted(moves: Moves, kind: Kind) -> Moves:
    if kind == Kind.SHRINK:
        return replace(moves, drains=moves.drains + 1)
    loads = moves.loads + (kind == Kind.GROW)
    return replace(moves, loads=loads, acknowledgements=moves.acknowledgements + 1)


def _known(load_s: float) -> str:
    return f"{load_s:g} s each as measured" if load_s else "for a time that is not known yet and not counted"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
