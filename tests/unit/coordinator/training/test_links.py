"""What is kept of the links that jobs measure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.settings import LessonSettings
from coordinator.state import State
from coordinator.training import record
from coordinator.training.lessons import taught
from coordinator.training.links import with_link
from tests.unit.coordinator.training.world import spec

EMPTY = training_pb2.StrategyTable()


def state_of(
    bandwidth: float, at_s: int, addresses: Sequence[str] = ("1", "1"), gpus: int = 0, latency_s: float = 1e-3
) -> State:
    """A job of which rank 0 says a link."""
    job = training_pb2.Job(id="j", spec=spec(), state=record.RUNNING, phase=record.TRAINING)
    job.spec.resources.gpus = gpus
    workers = [training_pb2.Worker(rank=at, node=f"n{at}", address=one) for at, one in enumerate(addresses)]
    job.attempt.CopyFrom(training_pb2.Attempt(number=1, workers=workers, began_at=record.timestamp(at_s * 10**9)))
    status = training_pb2.TaskStatus(job="j", attempt=1, rank=0, kind=training_pb2.TASK_KIND_TRAIN)
    status.link.MergeFrom(training_pb2.Link(bandwidth=bandwidth, latency_s=latency_s, workers=len(workers)))
    node = membership_pb2.Node(id="n0", report=membership_pb2.ModelReport(tasks=[status]))
    return State(nodes={"n0": node}, jobs={"j": job})


def after(state: State, table: training_pb2.StrategyTable) -> training_pb2.StrategyTable | None:
    return with_link(state, state.jobs["j"], table)


def test_the_first_is_kept_with_what_the_leader_knows() -> None:
    made = after(state_of(1e9, 7, ("a", "b")), EMPTY)
    assert made is not None
    (link,) = made.links
    assert (link.between_machines, link.gpu, link.bandwidth, link.workers) == (True, False, 1e9, 2)
    assert link.at.seconds == 7


@given(st.floats(1e3, 1e12), st.floats(0.1, 10), st.integers(0, 9), st.integers(0, 9))
def test_a_later_one_is_written_when_it_differs_by_more_than_a_quarter(
    bandwidth: float, times: float, first: int, then: int
) -> None:
    kept = after(state_of(bandwidth, first), EMPTY)
    assert kept is not None
    made = after(state_of(bandwidth * times, then), kept)
    assert (made is not None) == (then > first and max(times, 1 / times) > 1.25)
    if made is not None:
        (link,) = made.links
        assert math.isclose(link.bandwidth, bandwidth * math.sqrt(times)), "half the way, by logarithms"
        assert after(state_of(bandwidth, first), made) is None, "two jobs at a time do not write by turns"


def test_links_of_other_kinds_stay() -> None:
    table = EMPTY
    for addresses, gpus in ((("a", "a"), 0), (("a", "b"), 0), (("a", "b"), 1), (("a", "a"), 1)):
        made = after(state_of(1e9, 1, addresses, gpus), table)
        assert made is not None
        table = made
    assert [(one.between_machines, one.gpu) for one in table.links] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]
    assert after(state_of(1e9, 2, latency_s=2e-3), table) is not None, "latency counts too"


def test_a_job_that_says_nothing_teaches_nothing_of_it() -> None:
    assert after(state_of(0.0, 1), EMPTY) is None


def test_a_job_that_ends_with_its_first_report_leaves_both() -> None:
    state = state_of(1e9, 1)
    made = record.ended(state.jobs["j"], record.SUCCEEDED, 10**12, "done")
    made.plan.MergeFrom(training_pb2.JobPlan(strategy=training_pb2.STRATEGY_DDP, situation="s", alone_samples_per_s=9))
    made.results["samples_per_s"], made.step = 12.0, 500
    table = taught(state, made, LessonSettings(), lacked=False)
    assert table is not None
    assert (len(table.links), len(table.values), table.jobs) == (1, 1, 1)
    short = taught(state, made, LessonSettings(lesson_steps=501), lacked=False)
    assert short is not None
    assert (len(short.links), len(short.values)) == (1, 0)
