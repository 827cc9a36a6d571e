"""What became of a task, from how its process ended and what it said. Pure."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass

from aimesh.training.v1 import training_pb2

_MOST_LOG = 2_000
"""Characters of a log in a message."""
_NO_ROOM = errno.ENOSPC
"""Exit status of a process that could not say its last word: training/process.py."""


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    code: int | None = None
    """Exit status, negative for a signal; None when it is not known: another agent started it."""
    done: training_pb2.Done | None = None
    """Its last word, when that was it."""
    ended: bool = False
    """Whether this agent ended it, after it was done or because it did not stop in time."""
    out_of_memory: bool = False
    """Whether the kernel ended a process for want of memory meanwhile."""
    log: str = ""
    """Its log's last lines."""


@dataclass(frozen=True)
class Outcome:
    """What is reported."""

    state: training_pb2.TaskState.ValueType
    message: str = ""
    may_retry: bool = False
    step: int = 0


def outcome(ending: Ending) -> Outcome:
    """Of a process that is gone and named no error of its own."""
    done = ending.done
    if done is not None and (ending.ended or not ending.code):
        state = training_pb2.TASK_STATE_STOPPED if done.stopped else training_pb2.TASK_STATE_SUCCEEDED
        return Outcome(state, step=done.step)
    lost = ending.code in (None, _NO_ROOM) or ending.code < 0
    message = f"the process {_how(ending)}"
    if done is not None:
        message += " after it had said that it was done"
    if ending.log and ending.code != -signal.SIGKILL:  # of that a process knows nothing
        message += f"; its log ends with: {ending.log[-_MOST_LOG:]}"
    return Outcome(training_pb2.TASK_STATE_FAILED, message, may_retry=lost or ending.ended or done is not None)


def _how(ending: Ending) -> str:
    code = ending.code
    if ending.ended:
        return "did not stop in time and was ended"
    if code is None:
        return "ended while no agent watched it"
    if code == 0:
        return "ended without saying that it was done"
    if code == _NO_ROOM:
        return "ended without its last word, for which its node's disk has no room"
    if code > 0:
        return f"ended with exit code {code}"
    name = _signal(-code)
    if code == -signal.SIGKILL and ending.out_of_memory:
        return f"was ended by the kernel ({name}) for want of memory: give its workers more, or smaller batches"
    return f"was ended by {name}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_lines(text: str, most: int = 5) -> str:
    """The last lines that say something, in one."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return " | ".join(line[:300] for line in lines[-most:])
