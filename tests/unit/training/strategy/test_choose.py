"""The rule, the chooser, and what the simulation shows of them."""

from __future__ import annotations

from random import Random
from statistics import fmean

from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from meshkit.qtable import Table
from tests.unit.training.strategy.makers import GIB, basis, work
from training.strategy import simulate
from training.strategy.choose import choose
from training.strategy.model import Machine
from training.strategy.weigh import Weighed, actions, weigh

HERE = "medium/small/2/fast"
TWO = [Machine()] * 2


def weighed(**more: float) -> list[Weighed]:
    return weigh(work(), TWO, basis(**more), 1, 2)


def test_fast_networks_share_and_slow_ones_do_not() -> None:
    fast = weighed(bandwidth=1e10)
    slow = weighed(bandwidth=1e6)
    assert fast[0].estimate.workers == 2
    assert slow[0].strategy == training_pb2.STRATEGY_SINGLE
    assert slow[0].value == 1


@given(st.integers(1, 4), st.integers(1, 6), st.floats(1e6, 1e11))
def test_the_best_is_first_and_what_is_refused_last(least: int, machines: int, bandwidth: float) -> None:
    found = weigh(work(), [Machine()] * machines, basis(bandwidth), least, 6)
    usable = [one for one in found if one.usable]
    assert found[: len(usable)] == usable
    assert [one.value for one in usable] == sorted((one.value for one in usable), reverse=True)
    assert all(least <= one.estimate.workers <= machines for one in usable)
    assert all(one.estimate.refused for one in found[len(usable) :])


def test_data_is_fsdp_only_where_memory_wants_it() -> None:
    big = work(16, 2048)
    roomy = actions(weigh(big, [Machine(memory_bytes=16 * GIB)] * 4, basis(), 2, 4))
    tight = actions(weigh(big, [Machine(memory_bytes=5 * GIB // 2)] * 4, basis(), 2, 4))
    assert roomy["data"].strategy == training_pb2.STRATEGY_DDP
    assert tight["data"].strategy == training_pb2.STRATEGY_FSDP


def test_larger_machines_are_taken_where_the_fastest_are_too_small() -> None:
    machines = [Machine(2.0, GIB // 2), Machine(1.0, 16 * GIB)]
    found = actions(weigh(work(16, 2048), machines, basis(), 1, 1))
    assert found["single"].usable


def test_the_rule_decides_when_nothing_is_known() -> None:
    options = weighed()
    choice = choose(options, Table(), HERE)
    assert choice is not None
    assert (choice.weighed, choice.visits, choice.explored) == (options[0], 0, False)


def test_what_disappoints_falls_behind() -> None:
    options = weighed(bandwidth=1e10)
    best = options[0]
    table = Table().update(HERE, best.action, 0.2 * best.value, predicted=best.value)
    choice = choose(options, table, HERE)
    assert choice is not None
    assert choice.weighed.action != best.action
    assert choose(options, table, "small/small/2/fast") != choice, "other situations have learned nothing"


def test_exploring_takes_another_that_can_be_borne() -> None:
    options = weighed(bandwidth=1e10)
    table = Table(epsilon=1.0)
    seen = {choice.weighed.strategy for seed in range(40) if (choice := choose(options, table, HERE, Random(seed)))}
    fastest = min(one.estimate.step_s for one in options if one.usable)
    assert options[0].strategy not in seen
    assert seen
    assert all(one.estimate.step_s <= 3 * fastest for one in options if one.strategy in seen)


def test_nothing_usable_is_no_choice() -> None:
    assert choose(weigh(work(), TWO, basis(), 3, 4), Table(), HERE) is None


def test_learning_beats_every_fixed_choice_and_the_rule_where_the_model_is_wrong() -> None:
    tallies = simulate.run(jobs=1000, seed=5)
    earned = {name: fmean(tally.rewards[300:]) for name, tally in tallies.items()}
    learned = earned.pop("learned")
    assert all(learned > 1.03 * other for other in earned.values()), earned
    regrets = tallies["learned"].regrets
    assert fmean(regrets[-300:]) < 0.75 * fmean(regrets[:100]), "it converges"


def test_where_the_model_is_right_learning_costs_what_it_explores() -> None:
    tallies = simulate.run(jobs=300, seed=6, skew=dict.fromkeys(simulate.SKEW, 1.0))
    rule, learned = fmean(tallies["rule"].rewards), fmean(tallies["learned"].rewards)
    assert fmean(tallies["rule"].regrets) == 0
    assert 0.93 * rule < learned <= rule


def test_the_same_seed_gives_the_same_simulation() -> None:
    assert simulate.report(60, 1) == simulate.report(60, 1)
