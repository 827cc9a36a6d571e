"""What becomes of a job next: a pure function of its record and of what is seen. None when it stays as it is.

One move at a time, each a record that a leader may die before or after: whoever leads next works out the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aimesh.training.v1 import training_pb2
from coordinator.training.attempts import brought_back, released
from coordinator.training.losses import FAILED, SUCCEEDED, Loss
from coordinator.training.record import (
    CANCEL,
    FINISHING,
    PAUSE,
    PAUSED,
    PLANNING,
    PREPARING,
    QUEUED,
    STOPPING,
    TRAINING,
    copy,
    in_phase_s,
    is_over,
)
from coordinator.training.running import training, until_stopped
from coordinator.training.seen import Move, Seen
from coordinator.training.starting import planning, preparing, queued


def advance(job: training_pb2.Job, seen: Seen) -> Move | None:
    """The next move of a job."""
    if is_over(job) or job.state == PAUSED:
        return None
    found = _STEPS[job.phase](job, seen)
    return Move(found) if isinstance(found, training_pb2.Job) else found


FINISH_MOST_S = 3600.0
"""How long an agent may take to pack a result. To record it may take longer: a coordinator fetches it."""


def _finishing(job: training_pb2.Job, seen: Seen) -> Move | training_pb2.Job | None:
    if job.order == CANCEL:
        return released(job, seen.now_ns)
    if job.order == PAUSE:  # it came too late
        made = copy(job)
        made.order = training_pb2.JOB_ORDER_UNSPECIFIED
        return made
    status, node = seen.finish, job.attempt.workers[0].node
    if status is not None and status.state == FAILED:
        return brought_back(job, seen, Loss(f"packing the result on {node}: {status.message}", status.may_retry))
    if 0 in seen.away:
        return brought_back(job, seen, Loss(f"packing the result on {node}: {seen.away[0]}", may_retry=True))
    packed = status is not None and status.state == SUCCEEDED
    if not packed and in_phase_s(job, seen.now_ns) > FINISH_MOST_S:
        late = f"packing the result on {node} took longer than {FINISH_MOST_S:g} s"
        return brought_back(job, seen, Loss(late, may_retry=True))
    return None


_Step = Callable[[training_pb2.Job, Seen], Move | training_pb2.Job | None]
_STEPS: Mapping[int, _Step] = {
    QUEUED: queued,
    PLANNING: planning,
    PREPARING: preparing,
    TRAINING: training,
    STOPPING: until_stopped,
    FINISHING: _finishing,
}
