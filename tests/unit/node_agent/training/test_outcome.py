from __future__ import annotations

import errno
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from node_agent.training.outcome import Ending, last_lines, outcome

DONE, STOPPED = training_pb2.Done(step=7), training_pb2.Done(step=7, stopped=True)


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        (Ending(code=0, done=DONE), training_pb2.TASK_STATE_SUCCEEDED),
        (Ending(code=0, done=STOPPED), training_pb2.TASK_STATE_STOPPED),
        (Ending(code=None, done=DONE), training_pb2.TASK_STATE_SUCCEEDED),
        (Ending(code=-9, done=STOPPED, ended=True), training_pb2.TASK_STATE_STOPPED),
    ],
)
def test_a_last_word_counts(ending: Ending, state: int) -> None:
    found = outcome(ending)
    assert (found.state, found.message, found.step) == (state, "", 7)


@pytest.mark.parametrize(
    ("ending", "may_retry", "says"),
    [
        (Ending(code=0), False, "ended without saying that it was done"),
        (Ending(code=3, log="Traceback"), False, "ended with exit code 3; its log ends with: Traceback"),
        (Ending(code=errno.ENOSPC), True, "ended without its last word, for which its node's disk has no room"),
        (Ending(code=1, done=DONE), True, "exit code 1 after it had said that it was done"),
        (Ending(code=-signal.SIGSEGV), True, "was ended by SIGSEGV"),
        (Ending(code=-signal.SIGKILL, out_of_memory=True), True, "for want of memory"),
        (Ending(code=-99), True, "signal 99"),
        (Ending(), True, "ended while no agent watched it"),
        (Ending(ended=True), True, "did not stop in time"),
    ],
)
def test_everything_else_is_a_failure(ending: Ending, may_retry: bool, says: str) -> None:
    found = outcome(ending)
    assert found.state == training_pb2.TASK_STATE_FAILED
    assert found.may_retry is may_retry
    assert says in found.message


@given(st.one_of(st.none(), st.integers(-64, 255)), st.booleans(), st.booleans(), st.text(max_size=5000))
def test_a_failure_always_says_why(code: int | None, ended: bool, out_of_memory: bool, log: str) -> None:
    found = outcome(Ending(code, None, ended, out_of_memory, log))
    assert found.state == training_pb2.TASK_STATE_FAILED
    assert 10 < len(found.message) < 2500


def test_last_lines_leave_out_what_is_empty() -> None:
    assert last_lines("a\n\n  \nb  \n" + "x" * 400, 2) == "b | " + "x" * 300
