"""Tabular Q-learning: what actions were worth in situations, as plain numbers that a proto holds.

Source: Watkins and Dayan, "Q-learning", Machine Learning 8 (1992), the one-step update. The planner chooses by a table,
the leader learns from finished jobs: both from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError

ALPHA = 0.1
EPSILON = 0.1
GAMMA = 0.9


@dataclass(frozen=True)
class Table:
    """Values and visits by (situation, action). It is never changed: an update gives a new one.

    Raises InvalidInputError for rates that are not in 0 to 1.
    """

    entries: Mapping[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    """(situation, action) to (value, visits). What is not in it was never tried."""
    predicted: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """What a model had said of the same rewards, averaged in the same way. Not there where no model was asked."""
    alpha: float = ALPHA
    """How much one reward changes a value."""
    epsilon: float = EPSILON
    """Chance of trying another action than the best; whoever chooses draws."""
    gamma: float = GAMMA
    """How much the best value of the next situation counts."""

    def __post_init__(self) -> None:
        for name in ("alpha", "epsilon", "gamma"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InvalidInputError(f"{name} {value!r} of a table of values is not a number from 0 to 1")

    def values(self, situation: str) -> dict[str, tuple[float, int]]:
        """(value, visits) of each action that was tried in a situation."""
        return {action: entry for (there, action), entry in self.entries.items() if there == situation}

    def visits(self, situation: str) -> int:
        """How many rewards a situation has seen."""
        return sum(visits for _, visits in self.values(situation).values())

    def best(self, situation: str) -> str:
        """The action with the highest value, of equal ones the first by name; empty when none was tried."""
        tried = self.values(situation)
        return min(tried, key=lambda action: (-tried[action][0], action)) if tried else ""

    def worth(self, situation: str) -> float:
        """The highest value of a situation; 0 when nothing was tried."""
        return max((value for value, _ in self.values(situation).values()), default=0.0)

    def correction(self, situation: str, action: str) -> float:
        """By what a model's word must be multiplied to come out at what was earned: value / predicted; 1 if unknown.

        Situations are coarse, and jobs in one differ: a model knows how, experience knows where the model is wrong.
        """
        value, _ = self.entries.get((situation, action), (1.0, 0))
        predicted = self.predicted.get((situation, action), 0.0)
        return value / predicted if predicted > 0 else 1.0

    def update(
        self, situation: str, action: str, reward: float, next_situation: str = "", predicted: float = 0.0
    ) -> Table:
        """The table after one reward: Q += alpha * (reward + gamma * max Q(next) - Q).

        Without a next situation an episode ends here, so nothing follows. The first visit takes the whole target
        instead of a part of it, as an average would: a value that starts from 0 would otherwise rank an action that
        was tried once below one that was tried often, whatever they earned. Raises InvalidInputError for a reward
        that is not finite. `predicted` is what a model had said that the reward would be; 0 when none was asked.
        """
        if not math.isfinite(reward):
            raise InvalidInputError(f"the reward {reward!r} of {action} in {situation} is not a finite number")
        target = reward + (self.gamma * self.worth(next_situation) if next_situation else 0.0)
        old, visits = self.entries.get((situation, action), (target, 0))
        new = old + self.alpha * (target - old)
        said = dict(self.predicted)
        if predicted > 0:
            before = said.get((situation, action), predicted)
            said[situation, action] = before + self.alpha * (predicted - before)
        return replace(self, entries={**self.entries, (situation, action): (new, visits + 1)}, predicted=said)


FAILED = -1.0
"""The reward of a job that failed for want of resources. An error of its code teaches nothing."""

ACTIONS: Mapping[int, str] = {
    training_pb2.STRATEGY_SINGLE: "single",
    training_pb2.STRATEGY_DDP: "data",
    training_pb2.STRATEGY_FSDP: "data",
    training_pb2.STRATEGY_TENSOR: "model",
    training_pb2.STRATEGY_PIPELINE: "pipeline",
    training_pb2.STRATEGY_FEDERATED: "federated",
}
"""The action of each strategy: whether "data" shares out the weights too is decided by memory, not by experience."""

_STRATEGIES = {action: strategy for strategy, action in reversed(list(ACTIONS.items()))}


def reward_of(samples_per_s: float, alone_samples_per_s: float, workers: int) -> float:
    """What a finished job's strategy earned: speed-up / sqrt(workers), 1 for a worker alone at the predicted speed.

    Throughput per cost, where waiting costs as much as machines do: the geometric mean of the speed-up S and the
    efficiency S / workers, so that two workers pay off from a speed-up of 1.41. It is the root of the power that
    Eager, Zahorjan and Lazowska maximise ("Speedup versus efficiency in parallel systems", 1989). Raises
    InvalidInputError for no workers and speeds that are not positive.
    """
    if workers < 1 or not (samples_per_s >= 0 and alone_samples_per_s > 0):
        raise InvalidInputError(
            f"{samples_per_s} samples/s of {workers} workers cannot be measured against {alone_samples_per_s} of one"
        )
    return samples_per_s / alone_samples_per_s / math.sqrt(workers)


def from_proto(learned: training_pb2.StrategyTable) -> Table:
    """The table as the mesh keeps it. Of values of strategies that are one action, the later one counts."""
    known = [one for one in learned.values if one.strategy in ACTIONS]
    entries = {(one.situation, ACTIONS[one.strategy]): (one.value, one.visits) for one in known}
    return Table(
        entries,
        {(one.situation, ACTIONS[one.strategy]): one.predicted for one in known if one.predicted > 0},
        alpha=learned.alpha if learned.HasField("alpha") else ALPHA,
        epsilon=learned.epsilon if learned.HasField("epsilon") else EPSILON,
        gamma=learned.gamma if learned.HasField("gamma") else GAMMA,
    )


def to_proto(table: Table, jobs: int) -> training_pb2.StrategyTable:
    """The table for keeping, sorted, after it has learned from so many jobs. "data" is written as DDP."""
    return training_pb2.StrategyTable(
        values=[
            training_pb2.StrategyValue(
                situation=situation,
                strategy=training_pb2.Strategy.ValueType(_STRATEGIES[action]),
                value=value,
                visits=visits,
                predicted=table.predicted.get((situation, action), 0.0),
            )
            for (situation, action), (value, visits) in sorted(table.entries.items())
        ],
        jobs=jobs,
        alpha=table.alpha,
        epsilon=table.epsilon,
        gamma=table.gamma,
    )


def learn(
    learned: training_pb2.StrategyTable, plan: training_pb2.JobPlan, samples_per_s: float, workers: int
) -> training_pb2.StrategyTable:
    """The kept table after one more job that ended: how many samples a second so many workers made of it.

    0 samples a second is a job that failed for want of resources; call it for no other failure. Nothing is learned,
    and the same table given back, where the plan has no situation, or no speed of one worker to measure against.
    """
    action = ACTIONS.get(plan.strategy)
    if not plan.situation or action is None or plan.alone_samples_per_s <= 0:
        return learned
    reward = reward_of(samples_per_s, plan.alone_samples_per_s, workers) if samples_per_s > 0 else FAILED
    predicted = next((one.predicted for one in plan.options if one.strategy == plan.strategy), 0.0)
    table = from_proto(learned).update(plan.situation, action, reward, predicted=predicted)
    made = to_proto(table, learned.jobs + 1)
    made.links.extend(learned.links)
    return made
