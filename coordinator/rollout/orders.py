"""How a deployment gets from the targets it has to those it is to have without a request lost: one move at a time.

The order is the same in both directions. Replicas come first, weights follow once those answer, and replicas go last. A
node never changes from one version to another in place while both are routed: nothing is added while anything that was
given up is still there.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from aimesh.routing.v1 import routing_pb2


class Kind(enum.Enum):
    """What a move is."""

    GROW = "replicas are added"
    LOAD = "replicas are awaited"
    ROUTE = "weights move"
    SHRINK = "replicas are given up"
    DRAIN = "replicas are to be gone"
    STUCK = "there is no room"
    DONE = "it is as it is to be"


@dataclass(frozen=True)
class Replicas:
    """One version's replicas as they are."""

    serving: int = 0
    """Nodes that answer requests for it."""
    present: int = 0
    """Nodes that were given it or still report it, in whatever state."""


@dataclass(frozen=True)
class Room:
    """What a rollout may take and must leave."""

    most: int
    """Replicas of all versions of the name at once."""
    least: int
    """Replicas of versions with a weight that must go on answering."""


@dataclass(frozen=True)
class Move:
    """The next thing to do. `deployment` is what to write, None where something is awaited."""

    kind: Kind
    deployment: routing_pb2.Deployment | None = None
    reason: str = ""


@dataclass(frozen=True)
class Course:
    """Where a deployment is, and where it is to go."""

    now: routing_pb2.Deployment
    goal: routing_pb2.Deployment
    rising: Collection[str]
    """Versions that are to take over: their replicas have to answer first."""
    room: Room
    seen: Mapping[str, Replicas] = field(default_factory=dict)
    eager: bool = False
    """Weights move as soon as enough of the goal's replicas answer, before everything else: the way back."""

    def replicas(self, version: str) -> Replicas:
        """What there is of a version. One that is given up already does not count as answering, though it still may."""
        found = self.seen.get(version, Replicas())
        kept = next((target.replicas for target in self.now.targets if target.version == version), 0)
        return Replicas(min(found.serving, kept), found.present)


def next_move(course: Course) -> Move:
    """The first thing that is to be done, or waited for, on the way to the goal."""
    held, wanted = _by_version(course.now), _by_version(course.goal)
    routed = _routing(course.now) == _routing(course.goal)
    if course.eager and not routed and _may_route(course, wanted):
        return Move(Kind.ROUTE, _rerouted(course, wanted))
    for version, target in held.items():
        if (extra := course.replicas(version).present - target.replicas) > 0:
            return Move(Kind.DRAIN, reason=f"{_count(extra)} of {version} still there")
    if (grown := _grown(course, held, wanted)) is not None:
        return Move(Kind.GROW, grown)
    for version in sorted(set(course.rising) & held.keys() & wanted.keys()):
        awaited, serving = min(held[version].replicas, wanted[version].replicas), course.replicas(version).serving
        if serving < awaited:
            return Move(Kind.LOAD, reason=f"{serving} of {_count(awaited)} of {version} answer")
    return _moved(course, held, wanted, routed=routed)


def _moved(
    course: Course, held: Mapping[str, routing_pb2.Target], wanted: Mapping[str, routing_pb2.Target], *, routed: bool
) -> Move:
    complete = all(version in held and held[version].replicas >= each.replicas for version, each in wanted.items())
    shrunk = _shrunk(course, held, wanted)
    if not routed and (complete or shrunk is None) and _may_route(course, wanted):
        return Move(Kind.ROUTE, _rerouted(course, wanted))
    if shrunk is not None:
        return Move(Kind.SHRINK, shrunk)
    if routed and complete:
        return Move(Kind.DONE)
    if not routed and (blended := _blended(course, wanted)) is not None:
        return Move(Kind.ROUTE, blended)
    taken = sum(_occupied(course, version, target) for version, target in held.items())
    return Move(Kind.STUCK, reason=f"{taken} replicas of at most {course.room.most}, none to be spared")


def _grown(
    course: Course, held: Mapping[str, routing_pb2.Target], wanted: Mapping[str, routing_pb2.Target]
) -> routing_pb2.Deployment | None:
    """With as many of the missing replicas as there is room for; None when none is missing or there is none."""
    free = course.room.most - sum(_occupied(course, version, target) for version, target in held.items())
    grown = _copy(course.now)
    for version, target in wanted.items():
        given = min(free, target.replicas - (held[version].replicas if version in held else 0))
        if given <= 0:
            continue
        free -= given
        found = next((each for each in grown.targets if each.version == version), None)
        if found is None:
            found = grown.targets.add(version=version)
        found.replicas += given
    return grown if grown != course.now else None


def _shrunk(
    course: Course, held: Mapping[str, routing_pb2.Target], wanted: Mapping[str, routing_pb2.Target]
) -> routing_pb2.Deployment | None:
    """With those replicas less that are too many and can be spared; None when there is none."""
    spare = _answering(course, held) - course.room.least
    mirrored = course.now.policy.mirror.version
    shrunk = _copy(course.now)
    for target in shrunk.targets:
        version = target.version
        too_many = target.replicas - (wanted[version].replicas if version in wanted else 0)
        if too_many <= 0:
            continue
        if target.weight:
            idle = max(0, target.replicas - course.replicas(version).serving)
            floor = 1 if course.room.least else 0
            given_up = min(too_many, max(0, spare) + idle, target.replicas - floor)
            spare -= max(0, given_up - idle)
        else:
            given_up = 0 if mirrored == version else too_many
        target.replicas -= max(0, given_up)
    return shrunk if shrunk != course.now else None


def _may_route(course: Course, wanted: Mapping[str, routing_pb2.Target]) -> bool:
    """Whether everything that is to have a weight, or copies, answers, and enough of it."""
    weighted = [version for version, target in wanted.items() if target.weight]
    mirrored = course.goal.policy.mirror.version
    rising = [version for version in weighted if version in course.rising] + ([mirrored] if mirrored else [])
    enough = _answering(course, wanted) >= min(course.room.least, sum(wanted[each].replicas for each in weighted))
    return enough and all(course.replicas(version).serving for version in rising)


def _rerouted(course: Course, wanted: Mapping[str, routing_pb2.Target]) -> routing_pb2.Deployment:
    """With the goal's weights and policy, and the replicas as they are."""
    made = _copy(course.now)
    made.policy.CopyFrom(course.goal.policy)
    for target in made.targets:
        target.weight = wanted[target.version].weight if target.version in wanted else 0
    return made


def _blended(course: Course, wanted: Mapping[str, routing_pb2.Target]) -> routing_pb2.Deployment | None:
    """With the requests shared between what has them and what is to have them, each by the replicas that answer.

    The way on when neither can carry all alone and there is no room for more: both count then, and one can be spared.
    None when that changes nothing.
    """
    made = _copy(course.now)
    taking = {version for version, target in wanted.items() if target.weight}
    serving = {
        target.version: course.replicas(target.version).serving
        for target in made.targets
        if target.weight or target.version in taking
    }
    total, gained = sum(serving.values()), sum(serving.get(version, 0) for version in taking)
    if not gained or gained == total:
        return None
    for target in made.targets:
        target.weight = 100 * serving.get(target.version, 0) // total
    most = max(made.targets, key=lambda target: target.weight)
    most.weight += 100 - sum(target.weight for target in made.targets)
    return made if _routing(made) != _routing(course.now) else None


def _routing(deployment: routing_pb2.Deployment) -> tuple[object, ...]:
    weights = sorted((target.version, target.weight) for target in deployment.targets if target.weight)
    return tuple(weights), deployment.policy.SerializeToString(deterministic=True)


def _answering(course: Course, targets: Mapping[str, routing_pb2.Target]) -> int:
    return sum(course.replicas(version).serving for version, target in targets.items() if target.weight)


def _occupied(course: Course, version: str, target: routing_pb2.Target) -> int:
    return max(target.replicas, course.replicas(version).present)


def _by_version(deployment: routing_pb2.Deployment) -> dict[str, routing_pb2.Target]:
    return {target.version: target for target in deployment.targets}


def _copy(deployment: routing_pb2.Deployment) -> routing_pb2.Deployment:
    made = routing_pb2.Deployment()
    made.CopyFrom(deployment)
    return made


def _count(replicas: int) -> str:
    return f"{replicas} replica" if replicas == 1 else f"{replicas} replicas"
