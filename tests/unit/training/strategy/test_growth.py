"""What a plan says of nodes that are not there yet."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from meshkit import qtable
from meshkit.errors import InvalidInputError
from tests.unit.training.strategy.makers import analysis, basis, nodes, spec
from training.plan.explain import explain
from training.strategy.growth import MOST_WIDER
from training.strategy.job import plan_job
from training.strategy.weigh import counts

EMPTY = training_pb2.StrategyTable()
SINGLE, DDP, TENSOR = training_pb2.STRATEGY_SINGLE, training_pb2.STRATEGY_DDP, training_pb2.STRATEGY_TENSOR
FAST = analysis(basis=basis(bandwidth=1e11))


def test_one_free_node_is_no_reason_to_stay_alone() -> None:
    plan = plan_job(spec(most=4), FAST, nodes(1), EMPTY)
    assert (plan.strategy, plan.workers) == (SINGLE, 1)
    (wider,) = plan.wider
    assert (wider.strategy, wider.from_workers, wider.workers) == (DDP, 2, 4)
    there = plan_job(spec(most=4), FAST, nodes(2), EMPTY)
    assert (wider.strategy, wider.workers, wider.situation) == (there.strategy, there.workers, there.situation)
    assert wider.memory_bytes == there.memory_bytes
    assert list(wider.options) == [there.options[0]]
    assert not there.wider


def test_where_more_do_not_help_there_are_none() -> None:
    slow = analysis(basis=basis(bandwidth=1e6))
    assert not plan_job(spec(most=4), slow, nodes(1), EMPTY).wider
    assert not plan_job(spec(most=1), FAST, nodes(1), EMPTY).wider
    assert not plan_job(spec(most=4), FAST, [], EMPTY).wider, "without nodes all that it may have are taken to be there"


def test_a_job_that_no_single_free_node_can_train_waits_for_as_many_as_can() -> None:
    large = analysis(width=4096, basis=basis(bandwidth=1e11))
    whole = plan_job(spec(most=4), large, nodes(1), EMPTY).memory_bytes
    small = [training_pb2.Worker(node="n", memory_bytes=int(whole * 0.9))]
    plan = plan_job(spec(most=4), large, small, EMPTY)
    assert plan.from_workers >= 2
    assert plan.strategy != SINGLE
    assert plan.memory_bytes <= small[0].memory_bytes
    assert plan.situation == plan_job(spec(most=4), large, small * plan.from_workers, EMPTY).situation
    assert "on the 1 free now: no strategy can be used" in plan.reason
    for asked in (spec(most=1), spec(most=4, strategy=SINGLE), spec(least=2, most=4)):
        with pytest.raises(InvalidInputError):
            plan_job(asked, large, small, EMPTY)


def test_a_worker_is_given_what_it_takes_when_the_job_has_shrunk_as_far_as_it_may() -> None:
    large = analysis(width=4096, basis=basis(bandwidth=1e11))
    alone, many = (plan_job(spec(most=4), large, nodes(count), EMPTY) for count in (1, 4))
    assert many.workers == 4
    assert (many.memory_bytes, many.from_workers) == (alone.memory_bytes, 0)
    least = spec(least=4, most=4, strategy=training_pb2.STRATEGY_FSDP)
    assert plan_job(least, large, nodes(4), EMPTY).memory_bytes < alone.memory_bytes
    small = [training_pb2.Worker(node=f"n{at}", memory_bytes=int(alone.memory_bytes * 0.9)) for at in range(4)]
    few = plan_job(spec(most=4), large, small, EMPTY)
    assert few.from_workers == 2, "one alone would not have the memory"
    assert few.memory_bytes <= small[0].memory_bytes


def test_a_job_that_has_no_choice_has_none() -> None:
    assert not plan_job(spec(most=4, strategy=SINGLE), FAST, nodes(1), EMPTY).wider
    private = spec(most=4, federated=training_pb2.Federated(local_epochs=2))
    assert not plan_job(private, FAST, nodes(1), EMPTY).wider


def test_what_finished_jobs_taught_counts_for_nodes_to_come() -> None:
    first = plan_job(spec(), FAST, nodes(2), EMPTY)
    table = qtable.learn(EMPTY, first, first.alone_samples_per_s * 0.1, first.workers)
    assert DDP not in {wider.strategy for wider in plan_job(spec(), FAST, nodes(1), table).wider}


def test_tensor_is_planned_for_the_workers_that_divide_its_layers() -> None:
    asked = spec(most=4, strategy=TENSOR)
    plan = plan_job(asked, analysis(), nodes(3), EMPTY)
    assert (plan.workers, list(plan.counts)) == (4, [1, 2, 4])
    assert list(plan_job(spec(least=2, most=2, strategy=TENSOR), analysis(), nodes(2), EMPTY).counts) == []
    assert list(plan_job(spec(most=4, strategy=DDP), analysis(), nodes(2), EMPTY).counts) == []


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_of_thousands_of_workers_some_numbers_are_weighed(least: int, most: int) -> None:
    found = counts(DDP, least, most)
    assert found == sorted(set(found))
    assert len(found) < 512
    assert {count for count in range(max(2, least), most + 1) if count < 128 or count.bit_count() == 1} <= {*found}
    assert most < max(2, least) or found[-1] == most


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 12), st.floats(6, 11), st.lists(st.floats(0, 10), min_size=1, max_size=6))
def test_each_is_wider_than_the_one_before_and_can_be_carried_out(
    least: int, more: int, exponent: float, speeds: list[float]
) -> None:
    there = nodes(max(least, len(speeds)), speeds=(*speeds, *[1.0] * least))
    asked = spec(least=least, most=least + more)
    plan = plan_job(asked, analysis(basis=basis(bandwidth=10**exponent)), there, EMPTY)
    assert len(plan.wider) <= MOST_WIDER
    before = plan
    for wider in plan.wider:
        assert wider.strategy != before.strategy
        assert max(len(there), before.from_workers) < wider.from_workers <= wider.workers <= least + more
        assert not wider.counts or wider.from_workers in wider.counts
        assert wider.memory_bytes
        assert sum(one.ByteSize() for one in plan.wider) < 2048
        made = training_pb2.JobPlan(strategy=wider.strategy, samples=plan.samples, model=plan.model)
        assert explain(asked, made, nodes(wider.from_workers))
        before = wider
