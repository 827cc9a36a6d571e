"""How much room nodes have for a rollout: what fills max_surge and max_unavailable in. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.placement import place
from coordinator.rollout.course import replicas
from coordinator.roster import Roster, Slot, limit
from coordinator.state import State
from meshkit.errors import PreconditionError

_MOST_NAMED = 5


@dataclass(frozen=True)
class Capacity:
    """What nodes could take."""

    free: int
    """Nodes that could take a replica now."""
    later: int
    """Those that could take one once they have given up what they have of the name."""
    reasons: tuple[str, ...]
    """"node: why" of each that cannot take one now."""


def capacity(state: State, name: str, versions: Sequence[str]) -> Capacity:
    """For replicas of any of these versions of a name."""
    roster = _filled_roster(state)
    free, later, reasons = 0, 0, []
    for slot in list(roster.slots.values()):
        found = _limit(state, slot, name, versions)
        if found is None:
            free += 1
            continue
        held = [key for key in slot.versions if key[0] == name]
        for key in held:
            roster.give_back(slot, key)
        slot.holds = frozenset(key for key in slot.holds if key[0] != name)
        found = _limit(state, slot, name, versions) if held else found
        later += found is None
        reasons.append(f"{slot.id}: {found[1] if found else f'runs {held[0][0]} {held[0][1]}'}")
    return Capacity(free, later, tuple(reasons))


def fill_room(
    state: State,
    spec: rollout_pb2.RolloutSpec,
    before: routing_pb2.Deployment,
    brought: Mapping[str, int],
    last: Sequence[routing_pb2.Target],
) -> None:
    """Fills max_surge and max_unavailable in by what the nodes have room for. Raises PreconditionError."""
    found = capacity(state, spec.name, list(brought))
    loaded = sum(target.replicas for target in before.targets if target.version in brought)
    needed = sum(brought.values()) - loaded
    had, finally_ = replicas(before.targets), replicas(last)
    if needed > found.free + found.later:
        raise no_room(f"{needed} more replicas are wanted, nodes could take {found.free + found.later}", found.reasons)
    beyond = had + found.free - max(had, finally_)
    if beyond < 0:
        raise no_room(f"{finally_} replicas are wanted, there is room for {had + found.free}", found.reasons)
    spec.max_surge = min(spec.max_surge, beyond) if spec.HasField("max_surge") else beyond
    extra = max(had, finally_) + spec.max_surge - had
    if spec.WhichOneof("strategy") in ("blue_green", "shadow") and extra < needed:
        raise no_room(
            f"{spec.WhichOneof('strategy')} needs room for {needed} replicas beside the {had} that run; there is room "
            f"for {extra}",
            found.reasons,
        )
    if not spec.HasField("max_unavailable"):
        spec.max_unavailable = 0 if extra or not needed else 1
        if spec.max_unavailable and replicas(before.targets, routed=True) == 1:
            raise no_room(
                f"{spec.name} has one replica, and no node could take another beside it",
                found.reasons,
                "; or accept that nobody answers while it changes: --max-unavailable 1",
            )


def no_room(message: str, reasons: Sequence[str] = (), more: str = "") -> PreconditionError:
    """The error, with the numbers and what to do."""
    shown = "; ".join(reasons[:_MOST_NAMED])
    rest = f"; and {len(reasons) - _MOST_NAMED} more" if len(reasons) > _MOST_NAMED else ""
    return PreconditionError(
        f"{message}{f': {shown}{rest}' if shown else ''}",
        hint=f"add a node, or make room on one (aimesh undeploy){more}",
        reason="ROLLOUT_NO_ROOM",
    )


def _filled_roster(state: State) -> Roster:
    roster = Roster(state)
    for node_id, held in sorted(place(state).assignments.items()):
        for key in sorted(held) if node_id in roster.slots else ():
            if key in state.versions:
                roster.take(roster.slots[node_id], key)
    return roster


def _limit(state: State, slot: Slot, name: str, versions: Sequence[str]) -> tuple[str, str] | None:
    """The first limit that keeps any of the versions off a node."""
    for version in versions:
        if (found := limit(state.versions[(name, version)], slot, new=True)) is not None:
            return found
    return None
