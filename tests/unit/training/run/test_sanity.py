"""When a job is stopped because of its loss, when a checkpoint is due, and what is said of an error."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest

from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError, DataLossError, InvalidInputError, UnavailableError
from training.run.policy import policy_of
from training.run.reporting import Place, explain
from training.run.sanity import FIRST, Sanity

HERE = Place("training", 12, (3, 5))
CODE = Path("/nowhere")


def fed(losses: list[float], limit: float | None = None) -> Sanity:
    sanity = Sanity(limit)
    for loss in losses:
        sanity.check(loss, 1.0, loss, HERE)
    return sanity


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_what_is_not_finite_names_the_step_and_the_batch(loss: float, norm: float) -> None:
    with pytest.raises(InvalidInputError, match="in step 12, samples 3, 5: ") as caught:
        Sanity(None).check(loss, norm, 1.0, HERE)
    assert caught.value.reason == "NOT_FINITE"


def test_one_bad_batch_is_no_divergence_but_staying_there_is() -> None:
    fed([1.0] * FIRST + [5e3])
    with pytest.raises(InvalidInputError, match="it diverges") as caught:
        fed([1.0] * FIRST + [5e3] * 10)
    assert caught.value.reason == "DIVERGED"


def test_the_trainers_own_limit_holds_at_once() -> None:
    with pytest.raises(InvalidInputError, match="beyond 4"):
        fed([1.0, 4.5], limit=4)
    fed([1.0, 3.9] * 20, limit=4)


def test_a_beginning_outlives_a_checkpoint() -> None:
    again = Sanity(None)
    again.load(fed([0.01] * 20).state())
    with pytest.raises(InvalidInputError, match="it diverges"):
        again.check(50.0, 1.0, 50.0, HERE)


def test_a_checkpoint_is_due_by_steps_by_time_and_every_minute_otherwise() -> None:
    by_steps = policy_of(training_pb2.CheckpointPolicy(every_steps=10), 0)
    assert [step for step in range(1, 31) if by_steps.due(step, 1e9)] == [10, 20, 30]
    by_default = policy_of(training_pb2.CheckpointPolicy(), 100)
    assert not by_default.due(1, 159)
    assert by_default.due(1, 160)
    by_default.written(160)
    assert not by_default.due(2, 219)


@pytest.mark.parametrize(
    ("error", "reason", "may_retry"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), "PEER_LOST", True),
        (RuntimeError("Application timeout caused pair closure"), "PEER_LOST", True),
        (RuntimeError("Cannot use ReduceOp.PREMUL_SUM with Gloo"), "TRAINER_FAILED", False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "TRAINER_FAILED", False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "OUT_OF_MEMORY", False),
        (RuntimeError("Expected to have finished reduction in the prior iteration"), "BAD_TRAINER", False),
        (MemoryError(), "OUT_OF_MEMORY", False),
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL", True),
        (UnavailableError("x", reason="PEER_LOST"), "PEER_LOST", True),
        (DataLossError("x"), "DATA_LOSS", True),
        (InvalidInputError("x"), "INVALID_ARGUMENT", False),
    ],
)  # fmt: skip
def test_an_error_is_told_by_what_it_is(error: BaseException, reason: str, may_retry: bool) -> None:
    known, retry = explain(error, HERE, CODE)
    assert (known.reason, retry) == (reason, may_retry)
    assert isinstance(known, AimeshError)


def test_many_samples_are_not_all_named() -> None:
    assert str(Place("training", 1, tuple(range(30)))).endswith("18, 19 and 10 more")
    assert str(Place("making the model")) == "while making the model"
