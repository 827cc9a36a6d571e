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


@pytest.mark.parametrize(
    ("strategy", "steps_until_s", "lost_at_s"),
    [
        (training_pb2.STRATEGY_DDP, 0, 3),
        (training_pb2.STRATEGY_DDP, 6, 9),
        (training_pb2.STRATEGY_DDP, 99, 10),
        (training_pb2.STRATEGY_FEDERATED, 6, 3),
    ],
)
def test_a_silent_node_is_not_given_up_while_its_worker_is_seen_at_work(
    strategy: training_pb2.Strategy.ValueType, steps_until_s: int, lost_at_s: int
) -> None:
    """Node n1 is silent from second 0 on; rank 0 tells of a step each second for as long as there are any."""
    known, watch = job(strategy), JobWatch()
    status = training_pb2.TaskStatus(job="j", attempt=1, rank=0, kind=training_pb2.TASK_KIND_TRAIN)
    speaks = membership_pb2.Node(id="n0", state=membership_pb2.NODE_STATE_READY)
    speaks.report.tasks.append(status)
    silent = membership_pb2.Node(id="n1", state=membership_pb2.NODE_STATE_SUSPECT)
    state, lost = State(jobs={"j": known}, nodes={"n0": speaks, "n1": silent}), []
    for second in range(12):
        point = training_pb2.MetricPoint(step=1 + min(second, steps_until_s))
        task = training_pb2.TaskProgress(job="j", attempt=1, rank=0, point=point)
        watch.observe(state, {"n0": membership_pb2.Load(tasks=[task])}, float(second))
        lost += [second] if watch.away(state, known, float(second)) else []
    assert lost[0] == lost_at_s


def test_a_worker_is_given_up_with_its_nodes_lease_whatever_it_does() -> None:
    known, watch = job(training_pb2.STRATEGY_DDP), JobWatch()
    dead = membership_pb2.Node(id="n1", state=membership_pb2.NODE_STATE_DEAD)
    state = State(jobs={"j": known}, members={"n1": dead, "n0": dead})
    watch.observe(state, loads(), 0.0)
    assert watch.away(state, known, 0.0)[1] == "the node is dead"


@pytest.mark.parametrize(("back_s", "lost_s"), [(99, 10), (6, 8)])
def test_nobody_is_given_up_in_haste_when_nobody_could_say_more(back_s: int, lost_s: int) -> None:
    """Both nodes are silent from second 0 on; n0 speaks again at some time, and no step is made any more."""
    known, watch, lost = job(training_pb2.STRATEGY_FEDERATED), JobWatch(), []
    for second in range(12):
        states = {"n0": membership_pb2.NODE_STATE_SUSPECT, "n1": membership_pb2.NODE_STATE_SUSPECT}
        if second >= back_s:
            states["n0"] = membership_pb2.NODE_STATE_READY
        nodes = {name: membership_pb2.Node(id=name, state=each) for name, each in states.items()}
        state = State(jobs={"j": known}, nodes=nodes)
        watch.observe(state, {}, float(second))
        lost += [second] if 1 in watch.away(state, known, float(second)) else []
    assert lost[0] == lost_s
