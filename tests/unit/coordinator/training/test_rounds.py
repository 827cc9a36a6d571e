"""Which round a federated job has made: the aggregator's word, for clients speak of the one that is under way."""

from __future__ import annotations

import pytest

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.state import State
from coordinator.training.attempts import reached
from coordinator.training.progress import progress_of
from coordinator.training.record import TRAINING
from coordinator.training.seen import Seen
from coordinator.training.watch import JobWatch

CASES = [(training_pb2.STRATEGY_FEDERATED, 4, 0.5), (training_pb2.STRATEGY_DDP, 5, 0.7)]
"""Strategy, steps made, and their loss, when rank 0 speaks of step 4 and rank 1 of step 5."""


def job(strategy: training_pb2.Strategy.ValueType) -> training_pb2.Job:
    workers = [training_pb2.Worker(rank=rank, node=f"n{rank}") for rank in range(2)]
    made = training_pb2.Job(id="j", phase=TRAINING, attempt=training_pb2.Attempt(number=1, workers=workers))
    made.plan.strategy = strategy
    return made


def loads() -> dict[str, membership_pb2.Load]:
    found = {}
    for rank, step, loss in ((0, 4, 0.5), (1, 5, 0.7)):
        point = training_pb2.MetricPoint(step=step, loss=loss)
        task = training_pb2.TaskProgress(job="j", attempt=1, rank=rank, point=point)
        found[f"n{rank}"] = membership_pb2.Load(tasks=[task])
    return found


@pytest.mark.parametrize(("strategy", "step", "loss"), CASES)
def test_what_is_shown_is_what_is_made(strategy: training_pb2.Strategy.ValueType, step: int, loss: float) -> None:
    shown = progress_of(State(), job(strategy), loads())
    assert (shown.step, shown.loss) == (step, loss)


@pytest.mark.parametrize(("strategy", "step", "loss"), CASES)
def test_what_the_leader_counts_is_what_is_made(
    strategy: training_pb2.Strategy.ValueType, step: int, loss: float
) -> None:
    known, watch = job(strategy), JobWatch()
    watch.observe(State(jobs={"j": known}), loads(), 1.0)
    assert watch.step(known) == step
    statuses = {rank: training_pb2.TaskStatus(rank=rank, step=4 + rank) for rank in range(2)}
    assert reached(known, Seen(0, statuses=statuses, step=4)) == step
