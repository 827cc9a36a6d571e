"""How a study draws its trials and gives them up."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from tools.tuning.space import combinations
from tools.tuning.studyfile import Tune

STARTUP_TRIALS = 4
"""Trials that go to their end before any is pruned."""
WARMUP_PARTS = 2
"""Parts of a job that are over before it may be pruned."""


class ByNumber(BaseSampler):
    """A grid in which a trial's number says its point: two commands never take the same one, whenever they start."""

    def __init__(self, points: list[dict[str, Any]]) -> None:
        self.points = points

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """Nothing: every value is given one by one."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """The point's value."""
        return self.points[trial.number % len(self.points)][param_name]


class Numbered(BaseSampler):
    """Another sampler, seeded anew with each trial's number: commands that share a study draw different trials, and one
    that goes on draws what the one before it would have drawn."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: Any, trial: Any) -> None:
        """Seeds it."""
        self.inner = self.make(random.Random(f"{self.seed}/{trial.number}").getrandbits(32))  # noqa: S311
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """As the other says."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """As the other says."""
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """As the other says."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)


def sampler_of(tune: Tune) -> BaseSampler:
    """What draws the trials of a study."""
    if tune.sampler == "grid":
        return ByNumber(combinations(tune.spaces, tune.seed, "tune.search"))
    if tune.sampler == "random":
        return Numbered(lambda seed: RandomSampler(seed=seed), tune.seed)
    return Numbered(lambda seed: TPESampler(seed=seed, constant_liar=True), tune.seed)


def most_trials(tune: Tune) -> int:
    """How many trials the study may have in all: a grid ends by itself."""
    if tune.sampler != "grid":
        return tune.trials
    return min(tune.trials, len(combinations(tune.spaces, tune.seed, "tune.search")))


def pruner_of(tune: Tune) -> BasePruner:
    """The median pruner compares with trials that were at the same part of their way."""
    if tune.pruner == "none":
        return NopPruner()
    return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_PARTS)


optuna.logging.set_verbosity(optuna.logging.ERROR)
