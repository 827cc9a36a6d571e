"""The plan of a job: a pure function of spec, analysis, nodes and table."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from meshkit import qtable
from meshkit.errors import InvalidInputError
from tests.unit.training.strategy.makers import GIB, analysis, basis, nodes, spec
from training.plan.explain import explain
from training.strategy.job import plan_job
from training.strategy.model import Basis, Network

EMPTY = training_pb2.StrategyTable()
NAMED = [
    training_pb2.STRATEGY_SINGLE,
    training_pb2.STRATEGY_DDP,
    training_pb2.STRATEGY_FSDP,
    training_pb2.STRATEGY_TENSOR,
    training_pb2.STRATEGY_PIPELINE,
]


def test_a_plan_says_everything_that_it_was_made_from() -> None:
    plan = plan_job(spec(), analysis(holdout=500), nodes(2), EMPTY)
    assert plan.situation == "medium/small/2/fast"
    assert {one.strategy for one in plan.options} == {*NAMED, training_pb2.STRATEGY_FEDERATED}
    assert plan.options[0].strategy == plan.strategy
    assert "the cost model says" in plan.reason
    assert (plan.samples, plan.holdout, plan.steps) == (5000, 500, 2 * 79)
    assert plan.defaults.memory_bytes == 16 * GIB
    assert 0 < plan.computed.memory_bytes < plan.defaults.memory_bytes
    assert plan.memory_bytes == plan.computed.memory_bytes
    assert plan.basis.nodes == 2
    assert plan.alone_samples_per_s > 0
    assert all(option.reason for option in plan.options)


def test_what_the_user_says_of_memory_counts() -> None:
    asked = spec()
    asked.resources.memory_bytes = 3 * GIB
    assert plan_job(asked, analysis(), nodes(2), EMPTY).memory_bytes == 3 * GIB


def test_without_activations_the_class_decides() -> None:
    known = analysis()
    known.profile.activation_bytes = 0
    plan = plan_job(spec(), known, nodes(2), EMPTY)
    assert plan.memory_bytes == plan.defaults.memory_bytes == plan.computed.memory_bytes


@pytest.mark.parametrize("strategy", NAMED)
def test_a_named_strategy_is_taken_with_all_the_workers_it_can_use(strategy: training_pb2.Strategy.ValueType) -> None:
    asked = spec(most=3, strategy=strategy)
    plan = plan_job(asked, analysis(), nodes(4), EMPTY, Random(1))
    wanted = {training_pb2.STRATEGY_SINGLE: 1, training_pb2.STRATEGY_TENSOR: 2}.get(strategy, 3)
    assert (plan.strategy, plan.workers, plan.situation) == (strategy, wanted, "medium/small/5/fast")
    assert plan.reason.endswith("the job names it")
    assert not plan.explored


def test_workers_that_have_not_joined_yet_are_planned_for() -> None:
    ddp = spec(most=4, strategy=training_pb2.STRATEGY_DDP)
    assert plan_job(ddp, analysis(), nodes(2), EMPTY).workers == 4
    fast = analysis(basis=basis(bandwidth=1e11))
    assert plan_job(spec(most=4), fast, nodes(2), EMPTY).workers == 4
    slow = analysis(basis=basis(bandwidth=1e6))
    assert plan_job(spec(most=4), slow, nodes(2), EMPTY).workers == 1


@pytest.mark.parametrize("strategy", NAMED[1:])
def test_one_free_node_is_enough_to_begin_with_a_named_strategy(strategy: training_pb2.Strategy.ValueType) -> None:
    assert plan_job(spec(most=3, strategy=strategy), analysis(), nodes(1), EMPTY).workers > 1


def test_no_nodes_are_as_many_as_it_asks_for() -> None:
    assert plan_job(spec(least=2, most=3), analysis(), [], EMPTY).basis.nodes == 3


@pytest.mark.parametrize(
    ("asked", "given_nodes", "says"),
    [
        (spec(least=3, most=3), 2, "asks for at least 3 workers, 2 nodes"),
        (spec(least=5, most=5, strategy=training_pb2.STRATEGY_PIPELINE), 6, "5 pipeline stages are more than the 4"),
        (spec(least=3, most=3, strategy=training_pb2.STRATEGY_TENSOR), 3, "3 workers divide"),
        (spec(least=2, strategy=training_pb2.STRATEGY_SINGLE), 2, "asks for at least 2 workers"),
    ],
)
def test_what_cannot_be_planned_says_why(asked: training_pb2.JobSpec, given_nodes: int, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        plan_job(asked, analysis(), nodes(given_nodes), EMPTY)
    assert caught.value.reason == "STRATEGY_REFUSED"


def test_nodes_that_are_too_small_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"no strategy can be used: .*GiB of memory a worker"):
        plan_job(spec(), analysis(), nodes(2, memory_bytes=GIB // 4), EMPTY)


def test_private_data_is_federated_only() -> None:
    asked = spec(federated=training_pb2.Federated(local_epochs=2))
    plan = plan_job(asked, analysis(), nodes(2), EMPTY)
    assert (plan.strategy, plan.workers, plan.steps) == (training_pb2.STRATEGY_FEDERATED, 2, 1)
    assert all("may not leave" in option.reason for option in plan.options[1:])


def test_what_finished_jobs_taught_is_shown_and_counts() -> None:
    first = plan_job(spec(), analysis(), nodes(2), EMPTY)
    table = qtable.learn(EMPTY, first, first.alone_samples_per_s * 0.1, first.workers)
    second = plan_job(spec(), analysis(), nodes(2), table)
    assert second.strategy != first.strategy
    shown = next(option for option in second.options if option.strategy == first.strategy)
    assert shown.visits == 1
    assert shown.value < shown.predicted
    again = plan_job(spec(), analysis(), nodes(2), qtable.learn(table, second, second.alone_samples_per_s * 3, 1))
    assert "learned from 1 finished job in medium/small/2/fast" in again.reason
    worths = {option.strategy: f"{option.value:.2f}" for option in again.options}
    assert f"worth {worths[again.strategy]} of one worker" in again.reason
    following = next(option for option in again.options if option.strategy != again.strategy)
    assert f"with {worths[following.strategy]}" in again.reason, "the next is measured by what was learned too"


def test_a_job_that_names_its_strategy_teaches_those_that_do_not() -> None:
    named = plan_job(spec(strategy=training_pb2.STRATEGY_PIPELINE), analysis(), nodes(2), EMPTY)
    table = qtable.learn(EMPTY, named, named.alone_samples_per_s * 9, named.workers)
    taught = plan_job(spec(), analysis(), nodes(2), table)
    assert (taught.strategy, taught.options[0].visits) == (training_pb2.STRATEGY_PIPELINE, 1)


def test_a_slow_link_does_not_change_the_class_of_the_network() -> None:
    busy = Basis(1e10, 1e-3, Network(1e9, latency_s=0.05, connect_s=2e-4))
    assert plan_job(spec(), analysis(basis=busy), nodes(2), EMPTY).situation.endswith("/fast")


def test_slower_nodes_get_smaller_shares() -> None:
    asked = spec(batch=40, strategy=training_pb2.STRATEGY_DDP)
    workers = nodes(2, speeds=(3.0, 1.0))
    plan = plan_job(asked, analysis(), workers, EMPTY)
    assert [(one.node, one.batch, one.samples) for one in explain(asked, plan, workers)] == [
        ("node-0", (0, 30), 3750),
        ("node-1", (30, 40), 1250),
    ]


def test_a_pipeline_shows_its_layers() -> None:
    asked = spec(strategy=training_pb2.STRATEGY_PIPELINE)
    plan = plan_job(asked, analysis(), nodes(2), EMPTY)
    assert [one.layers for one in explain(asked, plan)] == [("0", "1"), ("2", "3")]


def test_a_federated_job_shows_its_clients() -> None:
    asked = spec(federated=training_pb2.Federated(clients=5, clients_per_node=3))
    plan = plan_job(asked, analysis(), nodes(2), EMPTY)
    assert [(one.clients, one.samples) for one in explain(asked, plan)] == [((0, 3), 3000), ((3, 5), 2000)]


@given(st.integers(1, 200), st.lists(st.floats(0, 10), min_size=1, max_size=6), st.integers(0, 2000))
def test_every_sample_of_an_epoch_is_somebodys(batch: int, speeds: list[float], samples: int) -> None:
    asked = spec(batch=batch)
    plan = training_pb2.JobPlan(strategy=training_pb2.STRATEGY_DDP, samples=samples, workers=len(speeds))
    shares = explain(asked, plan, nodes(len(speeds), speeds=tuple(speeds)))
    assert sum(one.samples for one in shares) == samples
    assert sum(last - first for first, last in (one.batch for one in shares)) == batch
