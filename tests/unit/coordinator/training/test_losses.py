"""Which worker is said to have ended an attempt: the one that was lost, not those who lost it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimesh.training.v1 import training_pb2
from coordinator.training.losses import CAUSE_S, LOST_ANOTHER, loss_of
from coordinator.training.record import TRAINING, timestamp
from tests.unit.coordinator.training.world import FAILED, RUNNING, SECOND
from training.run.reporting import Place, explain

NOW = 1000 * SECOND
KILLED = "the process was ended by SIGKILL"


def job() -> training_pb2.Job:
    workers = [training_pb2.Worker(rank=rank, node=f"n{rank}") for rank in range(3)]
    return training_pb2.Job(phase=TRAINING, attempt=training_pb2.Attempt(number=1, workers=workers))


def status(rank: int, message: str = "", after_s: float = 0.0) -> training_pb2.TaskStatus:
    state = FAILED if message else RUNNING
    at = timestamp(NOW + int(after_s * SECOND))
    return training_pb2.TaskStatus(rank=rank, state=state, message=message, may_retry=True, failed_at=at)


def said(now_s: float, *known: training_pb2.TaskStatus, away: dict[int, str] | None = None) -> str:
    found = loss_of(job(), {each.rank: each for each in known}, away or {}, NOW + int(now_s * SECOND))
    return found.error if found is not None else ""


LOSER = f"step 3: {LOST_ANOTHER}: Connection closed by peer"


def test_who_was_killed_is_the_cause_though_others_say_sooner_what_they_lost() -> None:
    assert said(0.1, status(0, LOSER), status(1, KILLED, 0.05), status(2)) == f"rank 1 on n1: {KILLED}"


def test_of_several_causes_the_first_by_time_counts() -> None:
    assert said(1.0, status(1, KILLED, 0.2), status(2, "exit 3", 0.1)).startswith("rank 2")


@pytest.mark.parametrize(("now_s", "found"), [(0.0, ""), (CAUSE_S - 0.01, ""), (CAUSE_S, "rank 0"), (-5.0, "rank 0")])
def test_the_cause_is_waited_for_and_not_for_long_whatever_the_nodes_clock_says(now_s: float, found: str) -> None:
    assert said(now_s, status(0, LOSER), status(1), status(2)).partition(" on")[0] == found


def test_nothing_is_waited_for_that_cannot_come() -> None:
    losers = [status(rank, LOSER) for rank in range(3)]
    assert said(0.0, *losers).startswith("rank 0")
    assert said(0.0, *losers[:2], away={2: "the node is silent"}).startswith("rank 0")


def test_it_is_told_by_the_words_that_workers_use() -> None:
    error, _ = explain(RuntimeError("Connection closed by peer"), Place("training", 12, (3, 5)), Path(__file__))
    assert LOST_ANOTHER in str(error)
