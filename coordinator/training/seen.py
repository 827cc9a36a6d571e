"""What is seen of a job at one moment, as values that the next move is worked out from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aimesh.training.v1 import training_pb2
from coordinator.training.checkpoints import Held, Statuses
from coordinator.training.schedule import Offer


def _nothing(job: training_pb2.Job) -> Offer:
    return Offer(reason=f"{job.id}: there are no nodes")


@dataclass(frozen=True)
class Seen:
    """Of one job; everything of its newest attempt unless said otherwise."""

    now_ns: int
    """Nanoseconds since the epoch."""
    statuses: Statuses = field(default_factory=dict)
    """What agents say of its workers."""
    away: Mapping[int, str] = field(default_factory=dict)
    """Ranks of which no agent speaks, or that their agent knows no more, beyond the moment that is granted: why."""
    planning: training_pb2.TaskStatus | None = None
    """What the agent that plans says."""
    planned_elsewhere: bool = False
    """Whether an agent still speaks of an earlier planning: its answer would be taken for the next one's."""
    finish: training_pb2.TaskStatus | None = None
    """What the agent that packs the result says."""
    late: Sequence[training_pb2.TaskStatus] = ()
    """Errors of the code of the attempt before, of which agents said so when it was over already."""
    held: Held = field(default_factory=dict)
    """Digests that its nodes hold, of those that are there."""
    step: int = 0
    """The last step that any worker has made."""
    quiet_s: float = 0.0
    """Seconds since a step was made, or since this leader first looked."""
    evict: str = ""
    """Why it must give its nodes up; empty when it need not."""
    offer: Callable[[training_pb2.Job], Offer] = _nothing
    """The nodes for its next attempt."""
    model: Callable[[], str] = str
    """NAME:VERSION that its result gets."""
    resume_lost: bool = False
    """Whether its recorded checkpoint is held by nobody any more."""


@dataclass(frozen=True)
class Move:
    """What to write."""

    job: training_pb2.Job
    lacked: bool = False
    """Whether it failed for want of resources: what its strategy can be blamed for."""
