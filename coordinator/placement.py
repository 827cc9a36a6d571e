"""Which node runs what: a pure function from the state to assignments, with a reason for every replica not placed.

First fit in a stable order: replicas that are placed and still fit stay where they are; a new one goes to a ready node
that holds none of the same name, first to those that hold its blobs, then to the one with the most memory left. A
version that is no longer a target stays until its successors answer, so that a change of version never leaves a name
unserved while there is room for both. A version that is a target is never replaced by another one where it runs: a
node that gave up its replica (a target's replicas may be 0) is free for others of the name once it was told so and does
not report it any more. In the same way replicas on their way out (of a node that is drained, or whose
agent is dead while its Triton still answers) are not counted, and stay until others answer in their place.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.roster import Roster, limit
from coordinator.state import State, VersionKey, serving_nodes


@dataclass(frozen=True)
class Placement:
    """What each node is to run, and why replicas are missing."""

    assignments: Mapping[str, frozenset[VersionKey]]
    """By node id; nodes with nothing to run are not in it."""
    rejections: Mapping[VersionKey, tuple[routing_pb2.Rejection, ...]]
    """By version: one entry for each node that could not take a missing replica."""

    @functools.cached_property
    def nodes(self) -> Mapping[VersionKey, list[str]]:
        """The nodes of each version, by id."""
        found: dict[VersionKey, list[str]] = {}
        for node_id, held in sorted(self.assignments.items()):
            for key in held:
                found.setdefault(key, []).append(node_id)
        return found


@functools.lru_cache(maxsize=4)
def place(state: State) -> Placement:
    """Assigns the replicas of every deployment.

    Nodes that are silent keep what they have until the leader judges them dead. The last few answers are kept: a state
    never changes, and the controller and every status ask for the same.
    """
    roster = Roster(state)
    for _, deployment in sorted(state.deployments.items()):
        _keep(roster, deployment)
    rejections: dict[VersionKey, tuple[routing_pb2.Rejection, ...]] = {}
    for name, deployment in sorted(state.deployments.items()):
        for target in deployment.targets:
            rejected = _fill(roster, (name, target.version), target.replicas)
            if rejected:
                rejections[(name, target.version)] = tuple(rejected)
            _release(roster, (name, target.version), target.replicas)
        _retire(roster, deployment)
    assignments = {key: frozenset(slot.versions) for key, slot in roster.slots.items() if slot.versions}
    return Placement(assignments, rejections)


def target_status(
    state: State, placement: Placement, name: str, target: routing_pb2.Target
) -> routing_pb2.TargetStatus:
    """Where a target's replicas are and why the missing ones are missing; failed loads are among the reasons."""
    key = (name, target.version)
    assigned = placement.nodes.get(key, [])
    failed = [
        routing_pb2.Rejection(node=node, limit="load_failed", message=model.message)
        for node in assigned
        for model in (state.nodes[node].report.models if node in state.nodes else ())
        if (model.name, model.version) == key and model.state == membership_pb2.MODEL_STATE_FAILED
    ]
    return routing_pb2.TargetStatus(
        version=target.version,
        wanted=target.replicas,
        ready=len(serving_nodes(state, name, target.version)),
        nodes=assigned,
        rejections=[*placement.rejections.get(key, ()), *failed],
    )


def _keep(roster: Roster, deployment: routing_pb2.Deployment) -> None:
    """Gives each node what it has of a name, when that still fits: targets and retiring versions alike.

    Of more replicas than wanted, those that answer stay; those on their way out are not counted.
    """
    wanted = {target.version: target.replicas for target in deployment.targets}
    kept = dict.fromkeys(wanted, 0)
    for slot, held in roster.assigned(deployment.name):
        version = roster.state.versions.get(held)
        if version is None or limit(version, slot) is not None:
            continue
        if held[1] in kept:
            counted = not slot.gives_up(held)
            if slot.unfit or (counted and kept[held[1]] == wanted[held[1]]):
                continue
            kept[held[1]] += counted
        roster.take(slot, held)


def _fill(roster: Roster, key: VersionKey, replicas: int) -> list[routing_pb2.Rejection]:
    """Adds the replicas that are missing. The reasons of all nodes that took none, when some stay missing."""
    version = roster.state.versions.get(key)
    if version is None:
        return []
    missing = replicas - len(roster.settled(key))
    missing -= _spread(roster, version, missing)
    missing -= _replace_in_place(roster, key, missing)
    if missing <= 0:
        return []
    rejections = [
        routing_pb2.Rejection(node=slot.id, limit=found[0], message=found[1])
        for slot in roster.slots.values()
        if (found := limit(version, slot, new=True)) is not None
    ]
    # Nowhere else to go: better a node on which it failed before than none.
    _spread(roster, version, missing - len(roster.outgoing(key)), again=True)
    return rejections


def _spread(roster: Roster, version: registry_pb2.ModelVersion, most: int, *, again: bool = False) -> int:
    """Gives a version to at most so many nodes that can take it, the best first. To how many it did."""
    blobs, given = {file.digest for file in version.files}, 0
    for slot in roster.preferred(blobs) if most > 0 else ():
        if given == most:
            break
        if limit(version, slot, new=True, again=again) is None:
            roster.take(slot, (version.name, version.version))
            given += 1
    return given


def _replace_in_place(roster: Roster, key: VersionKey, missing: int) -> int:
    """With no free node left, hands nodes of retiring versions over to their successor. How many it handed over.

    Nodes whose old version does not answer go at once; those that answer go one at a time, the next when all that went
    before answer again.
    """
    name, handed, versions = key[0], 0, roster.state.versions
    targets = {target.version for target in roster.state.deployments[name].targets}
    waiting = any(not roster.serves(slot, key) for slot in roster.settled(key))
    for slot in roster.of(name):
        old = next((held for held in slot.versions if held[0] == name and held[1] not in targets), None)
        if handed == missing or old is None or slot.unfit or (waiting and roster.serves(slot, old)):
            continue
        roster.give_back(slot, old)
        fits = limit(versions[key], slot, new=True) is None
        roster.take(slot, key if fits else old)
        handed += fits
        waiting = waiting or fits
    return handed


def _release(roster: Roster, key: VersionKey, replicas: int) -> None:
    """Takes replicas on their way out away as others take their place.

    Those that answer stay while fewer than wanted answer without them; those that do not, while some have no place.
    """
    settled = roster.settled(key)
    needed, homeless = replicas - roster.serving(settled, key), replicas - len(settled)
    # The drained stay before the dead, which nobody looks after.
    for slot in sorted(roster.outgoing(key), key=lambda slot: (slot.id not in roster.state.nodes, slot.id)):
        answers = roster.serves(slot, key)
        if (needed if answers else homeless) > 0:
            needed -= answers
            homeless -= 1
        else:
            roster.give_back(slot, key)


def _retire(roster: Roster, deployment: routing_pb2.Deployment) -> None:
    """Takes retiring versions away once all replicas that every target could be given answer, at least one of each."""
    name = deployment.name
    for target in deployment.targets:
        if not target.replicas:
            continue  # it gives up its own
        settled = roster.settled((name, target.version))
        if roster.serving(settled, (name, target.version)) < max(1, len(settled)):
            return
    targets = {target.version for target in deployment.targets}
    for slot in roster.of(name):
        for held in [key for key in slot.versions if key[0] == name and key[1] not in targets]:
            roster.give_back(slot, held)
