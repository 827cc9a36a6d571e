"""What to do next about each model: a pure function of what is wanted and what is there."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from aimesh.membership.v1 import membership_pb2

ModelState: TypeAlias = membership_pb2.ModelState.ValueType
FETCHING = membership_pb2.MODEL_STATE_FETCHING
LOADING = membership_pb2.MODEL_STATE_LOADING
READY = membership_pb2.MODEL_STATE_READY
FAILED = membership_pb2.MODEL_STATE_FAILED
UNLOADING = membership_pb2.MODEL_STATE_UNLOADING


class Action(enum.Enum):
    """One step for one model."""

    SERVE = "serve"
    """Fetch, verify, lay out, load and test the version that is wanted."""
    CANCEL = "cancel"
    """Stop the work that runs; what comes next is decided when it has ended."""
    UNLOAD = "unload"
    """Unload it and remove its files from the repository."""


@dataclass(frozen=True)
class Held:
    """What the node does with one name."""

    key: str
    """The version that work is or was done for."""
    state: ModelState
    busy: bool = False
    """A task works on it."""
    cancelled: bool = False
    """That task has been told to stop, and is still doing what cannot be interrupted."""
    pinned: bool = False
    """That task cannot be cancelled: Triton goes on loading whether it is waited for or not."""
    generation: int = 0
    """The generation of Triton that it was loaded in; 0 when it was not."""
    retry_at: float = 0.0
    """When what failed is tried again, in the clock's seconds."""


def decide(wanted: Mapping[str, str], held: Mapping[str, Held], generation: int, now: float) -> dict[str, Action]:
    """The next action for each name that needs one.

    `wanted` and `held` are by name, wanted's values the versions' keys; `generation` is that of the Triton that is
    ready, 0 while none is. Level-triggered: deciding again on the same values gives the same actions.
    """
    actions = {}
    for name in sorted({*wanted, *held}):
        action = _decide_one(wanted.get(name), held.get(name), generation, now)
        if action is not None:
            actions[name] = action
    return actions


def next_retry(held: Iterable[Held]) -> float | None:
    """When `decide` may have something new to say without any event, in the clock's seconds; None for never."""
    return min((item.retry_at for item in held if not item.busy and item.state in (FAILED, UNLOADING)), default=None)


def _decide_one(wanted: str | None, held: Held | None, generation: int, now: float) -> Action | None:
    if held is None:
        return Action.SERVE
    if held.busy:
        unwelcome = held.key != wanted and held.state != UNLOADING
        return Action.CANCEL if unwelcome and not (held.pinned or held.cancelled) else None
    if wanted is None:
        return Action.UNLOAD if held.state != UNLOADING or now >= held.retry_at else None
    if held.key != wanted or held.state in (FETCHING, LOADING, UNLOADING):
        return Action.SERVE
    if held.state == FAILED:
        return Action.SERVE if now >= held.retry_at else None
    return Action.SERVE if held.generation != generation else None
