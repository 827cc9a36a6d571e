"""What is written of a job: copies with one thing changed, each with its reason. Pure."""

from __future__ import annotations

from google.protobuf import duration_pb2, timestamp_pb2

from aimesh.training.v1 import training_pb2

PENDING = training_pb2.JOB_STATE_PENDING
RUNNING = training_pb2.JOB_STATE_RUNNING
PAUSED = training_pb2.JOB_STATE_PAUSED
SUCCEEDED = training_pb2.JOB_STATE_SUCCEEDED
FAILED = training_pb2.JOB_STATE_FAILED

NONE = training_pb2.JOB_PHASE_UNSPECIFIED
QUEUED = training_pb2.JOB_PHASE_QUEUED
PLANNING = training_pb2.JOB_PHASE_PLANNING
PREPARING = training_pb2.JOB_PHASE_PREPARING
TRAINING = training_pb2.JOB_PHASE_TRAINING
STOPPING = training_pb2.JOB_PHASE_STOPPING
FINISHING = training_pb2.JOB_PHASE_FINISHING

PAUSE = training_pb2.JOB_ORDER_PAUSE
CANCEL = training_pb2.JOB_ORDER_CANCEL

_BUSY = (PLANNING, PREPARING, TRAINING, STOPPING, FINISHING)
_WAITING = (QUEUED, PLANNING, PREPARING)
_ATTEMPTING = (PREPARING, TRAINING, STOPPING, FINISHING)
_STATE_OF = {QUEUED: PENDING, **dict.fromkeys(_BUSY, RUNNING)}
MOST_NODES = 32
"""Nodes that a record remembers."""
MOST_TEXT = 2000
"""Characters of a reason or an error: a record lies in etcd, and every coordinator holds all of them."""


def is_over(job: training_pb2.Job) -> bool:
    """Whether nothing will be done for it any more."""
    return job.state in (SUCCEEDED, FAILED)


def busy(job: training_pb2.Job) -> bool:
    """Whether nodes are to do something for it."""
    return job.phase in _BUSY


def attempting(job: training_pb2.Job) -> bool:
    """Whether its newest attempt's workers are to run."""
    return job.phase in _ATTEMPTING


def is_federated(job: training_pb2.Job) -> bool:
    """Whether its rank 0 holds an aggregator, and workers may be lost."""
    strategy = job.plan.strategy if job.HasField("plan") else job.spec.strategy
    return strategy == training_pb2.STRATEGY_FEDERATED


def copy(job: training_pb2.Job) -> training_pb2.Job:
    """Another record of the same content."""
    made = training_pb2.Job()
    made.CopyFrom(job)
    return made


def entered(
    job: training_pb2.Job, phase: training_pb2.JobPhase.ValueType, now_ns: int, reason: str
) -> training_pb2.Job:
    """A copy in another phase, from now on.

    What its workers took until now is added up when it leaves an attempt. Its wait goes on until they train: being
    planned, or a preparation that fails, does not put it behind others again.
    """
    made = copy(job)
    if attempting(job) and phase not in _ATTEMPTING:
        made.ran.CopyFrom(duration(ran_ns(job, now_ns)))
    made.phase, made.state, made.reason = phase, _STATE_OF.get(phase, job.state), reason[:MOST_TEXT]
    made.phase_at.CopyFrom(timestamp(now_ns))
    if phase not in _WAITING:
        made.ClearField("waiting_since")
    elif not made.HasField("waiting_since"):
        made.waiting_since.CopyFrom(timestamp(now_ns))
    return made


def ended(
    job: training_pb2.Job, state: training_pb2.JobState.ValueType, now_ns: int, reason: str, error: str = ""
) -> training_pb2.Job:
    """A copy that is over."""
    made = entered(job, NONE, now_ns, reason)
    made.state, made.order, made.error = state, training_pb2.JOB_ORDER_UNSPECIFIED, error[:MOST_TEXT]
    made.ended_at.CopyFrom(timestamp(now_ns))
    if state == FAILED:
        made.model = ""
    return made


def failed(job: training_pb2.Job, now_ns: int, error: str) -> training_pb2.Job:
    """A copy that is given up, and why."""
    return ended(job, FAILED, now_ns, error, error)


def told(job: training_pb2.Job, reason: str) -> training_pb2.Job | None:
    """A copy with another reason; None when it is the same."""
    reason = reason[:MOST_TEXT]
    if job.reason == reason:
        return None
    made = copy(job)
    made.reason = reason
    return made


def ran_ns(job: training_pb2.Job, now_ns: int) -> int:
    """Nanoseconds that workers were there for it, in all attempts until now."""
    before = job.ran.ToNanoseconds()
    if not attempting(job):
        return before
    return before + max(0, now_ns - attempt_ns(job))


def attempt_ns(job: training_pb2.Job) -> int:
    """When its newest attempt began, in nanoseconds since the epoch."""
    return job.attempt.began_at.ToNanoseconds()


def in_phase_s(job: training_pb2.Job, now_ns: int) -> float:
    """Seconds since its phase began."""
    return max(0, now_ns - job.phase_at.ToNanoseconds()) / 1e9


def waited_s(job: training_pb2.Job, now_ns: int) -> float:
    """Seconds that it has wanted nodes without training; 0 for a job that trains, is paused or is over."""
    if not job.HasField("waiting_since"):
        return 0.0
    return max(0, now_ns - job.waiting_since.ToNanoseconds()) / 1e9


def remembered(nodes: list[str], before: list[str], at_most: int = MOST_NODES) -> list[str]:
    """The nodes that ran a worker, newest first, each once."""
    return list(dict.fromkeys([*nodes, *before]))[:at_most]


def seconds(length: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return length.seconds + length.nanos / 1e9


def duration(nanoseconds: int) -> duration_pb2.Duration:
    """Nanoseconds as a duration."""
    made = duration_pb2.Duration()
    made.FromNanoseconds(nanoseconds)
    return made


def timestamp(now_ns: int) -> timestamp_pb2.Timestamp:
    """Nanoseconds since the epoch as a timestamp."""
    made = timestamp_pb2.Timestamp()
    made.FromNanoseconds(now_ns)
    return made


def word(state: training_pb2.JobState.ValueType) -> str:
    """JOB_STATE_PAUSED as "paused"."""
    return training_pb2.JobState.Name(state).removeprefix("JOB_STATE_").lower()


def strategy_word(strategy: training_pb2.Strategy.ValueType) -> str:
    """STRATEGY_DDP as "ddp"."""
    return training_pb2.Strategy.Name(strategy).removeprefix("STRATEGY_").lower()


def phase_word(phase: training_pb2.JobPhase.ValueType) -> str:
    """JOB_PHASE_TRAINING as "training"."""
    return training_pb2.JobPhase.Name(phase).removeprefix("JOB_PHASE_").lower()
