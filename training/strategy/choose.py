"""Chooses among strategies that can be used: by the cost model, corrected by what finished jobs have taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from meshkit.qtable import Table
from training.strategy.weigh import Weighed, actions

BEARABLE = 3.0
"""Nothing is tried that the cost model takes to be so many times slower than the best: it is somebody's job."""


@dataclass(frozen=True)
class Choice:
    """What was chosen."""

    weighed: Weighed
    value: float
    """What it is worth: the cost model's word, corrected by what was learned."""
    visits: int
    """Finished jobs that the correction was learned from."""
    explored: bool = False
    """Whether something else than the best was tried on purpose."""


def choose(weighed: Sequence[Weighed], table: Table, situation: str, draw: Random | None = None) -> Choice | None:
    """The action with the highest value; with chance epsilon another, when `draw` is given. None when none can be.

    An action that was never tried here has the cost model's word as its value. So with an empty table the rule
    decides; what disappoints falls behind what is only promised, which is then tried; and in the end all values that
    matter are measured ones.
    """
    options = [_valued(one, table, situation) for one in actions(weighed).values()]
    if not options:
        return None
    best = max(options, key=lambda one: one.value)
    if draw is None or draw.random() >= table.epsilon:
        return best
    most_s = BEARABLE * min(_sample_s(one.weighed) for one in options)
    others = [one for one in options if one is not best and _sample_s(one.weighed) <= most_s]
    if not others:
        return best
    other = draw.choice(others)
    return Choice(other.weighed, other.value, other.visits, explored=True)


def worth(one: Weighed, table: Table, situation: str) -> tuple[float, int]:
    """(value, visits) of a strategy for this job in a situation.

    The table holds what an action earned on the average of jobs in a situation; of these the cost model had said
    something too, and says something else of this job. So the value is its word for this job, times how wrong it was
    (Table.correction); a value of which no such word is known counts as it is.
    """
    value, visits = table.values(situation).get(one.action, (one.value, 0))
    if (situation, one.action) in table.predicted:
        value = one.value * table.correction(situation, one.action)
    return value, visits


def _valued(one: Weighed, table: Table, situation: str) -> Choice:
    return Choice(one, *worth(one, table, situation))


def _sample_s(one: Weighed) -> float:
    """Seconds of a step for comparison: federated rounds are never weighed against steps."""
    return one.estimate.step_s
