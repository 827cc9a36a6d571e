"""The table of values: one-step updates, what is best, and how it is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from meshkit import qtable
from meshkit.errors import InvalidInputError
from meshkit.qtable import Table

SITUATION = "small/small/2/fast"
NAMES = st.sampled_from(["a", "b", "c"])
REWARDS = st.floats(-1, 3)


def plan(strategy: training_pb2.Strategy.ValueType, predicted: float = 0.0) -> training_pb2.JobPlan:
    option = training_pb2.Option(strategy=strategy, predicted=predicted)
    return training_pb2.JobPlan(strategy=strategy, situation=SITUATION, alone_samples_per_s=100, options=[option])


def test_an_empty_table_knows_nothing() -> None:
    table = Table()
    assert (table.values("a"), table.visits("a"), table.best("a"), table.worth("a")) == ({}, 0, "", 0.0)


def test_an_update_follows_watkins() -> None:
    table = Table(alpha=0.1, gamma=0.9).update("s", "x", 2.0).update("t", "y", 1.0)
    after = table.update("t", "y", 0.5, next_situation="s")
    value, visits = after.values("t")["y"]
    assert value == pytest.approx(1.0 + 0.1 * (0.5 + 0.9 * 2.0 - 1.0))
    assert visits == 2
    assert table.values("t")["y"] == (1.0, 1), "the old table is not changed"


def test_the_first_reward_is_taken_whole() -> None:
    assert Table().update("s", "x", 0.7).values("s") == {"x": (0.7, 1)}


@given(st.lists(st.tuples(NAMES, NAMES, REWARDS), max_size=60))
def test_values_stay_within_the_rewards_and_visits_count_them(rewards: list[tuple[str, str, float]]) -> None:
    table = Table()
    for situation, action, reward in rewards:
        table = table.update(situation, action, reward)
    for (situation, action), (value, visits) in table.entries.items():
        mine = [reward for one, two, reward in rewards if (one, two) == (situation, action)]
        assert visits == len(mine)
        assert min(mine) - 1e-9 <= value <= max(mine) + 1e-9
    for situation in "abc":
        best = table.best(situation)
        assert all(value <= table.values(situation)[best][0] for value, _ in table.values(situation).values())


def test_a_constant_reward_is_learned() -> None:
    table = Table().update("s", "x", 5.0)
    for _ in range(100):
        table = table.update("s", "x", 1.0)
    assert table.worth("s") == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused(reward: float) -> None:
    with pytest.raises(InvalidInputError, match="finite"):
        Table().update("s", "x", reward)


@pytest.mark.parametrize(("name", "rate"), [("alpha", -0.1), ("epsilon", 1.1), ("gamma", float("nan"))])
def test_rates_are_from_0_to_1(name: str, rate: float) -> None:
    with pytest.raises(InvalidInputError, match=name):
        replace(Table(), **{name: rate})  # type: ignore[arg-type]


def test_it_is_kept_as_plain_values() -> None:
    kept = training_pb2.StrategyTable()
    kept = qtable.learn(kept, plan(training_pb2.STRATEGY_FSDP, predicted=1.6), 120.0, 1)
    kept = qtable.learn(kept, plan(training_pb2.STRATEGY_PIPELINE), 0.0, 2)
    assert kept.jobs == 2
    assert [(one.strategy, one.value, one.visits, one.predicted) for one in kept.values] == [
        (training_pb2.STRATEGY_DDP, 1.2, 1, 1.6),
        (training_pb2.STRATEGY_PIPELINE, -1.0, 1, 0.0),
    ]
    assert qtable.to_proto(qtable.from_proto(kept), kept.jobs) == kept


def test_a_plan_that_does_not_say_where_it_was_made_teaches_nothing() -> None:
    kept = training_pb2.StrategyTable(jobs=3)
    nowhere = training_pb2.JobPlan(strategy=training_pb2.STRATEGY_DDP, alone_samples_per_s=100)
    assert qtable.learn(kept, nowhere, 150.0, 2) == kept


def test_what_was_measured_of_links_stays_beside() -> None:
    kept = training_pb2.StrategyTable(links=[training_pb2.Link(bandwidth=1e9)])
    assert qtable.learn(kept, plan(training_pb2.STRATEGY_DDP), 150.0, 2).links == kept.links


def test_a_models_word_is_corrected_by_what_was_earned() -> None:
    table = Table()
    for predicted in (1.0, 2.0, 4.0, 2.0):
        table = table.update("s", "x", 0.75 * predicted, predicted=predicted)
    assert table.correction("s", "x") == pytest.approx(0.75)
    assert table.correction("s", "y") == 1.0
    assert table.update("s", "y", 0.5).correction("s", "y") == 1.0, "no model was asked"


def test_rates_that_were_set_are_kept_and_others_have_defaults() -> None:
    table = qtable.from_proto(training_pb2.StrategyTable(epsilon=0.0))
    assert (table.epsilon, table.alpha, table.gamma) == (0.0, 0.1, 0.9)


@given(st.floats(0.1, 1e5), st.integers(1, 64))
def test_linear_speed_up_earns_more_with_more_workers(alone: float, workers: int) -> None:
    assert qtable.reward_of(alone, alone, 1) == pytest.approx(1)
    assert qtable.reward_of(alone * workers, alone, workers) == pytest.approx(workers**0.5)
    assert qtable.reward_of(alone, alone, workers) <= 1


def test_a_reward_needs_something_to_be_measured_against() -> None:
    with pytest.raises(InvalidInputError, match="of one"):
        qtable.reward_of(10, 0, 2)
