"""What the benchmark of the strategies makes of finished jobs."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aimesh.training.v1 import training_pb2
from coordinator.training.check import check_job
from tools.bench.strategies import orders
from tools.bench.strategies_found import (
    AFTER,
    AUTO,
    COLD,
    FIXED,
    Found,
    best_of,
    fixed_rewards,
    found_of,
    regrets,
    rule_rewards,
    running,
    table,
    thirds,
)
from tools.bench.strategies_jobs import KINDS, choices, spec_of


def one(phase: str, strategy: str, reward: float, kind: str = "k") -> Found:
    return Found(phase, kind, AUTO, strategy, 2, False, "ddp", 1.3, reward, 100.0, 5.0, "s", "measured")


JOBS = [
    one(COLD, "ddp", 0.5),
    one(COLD, "single", 0.9),
    one(COLD, "single", 1.0),
    one(FIXED, "ddp", 0.7),
    one(FIXED, "single", 0.9),
    one(FIXED, "single", 1.1),
    one(AFTER, "single", 1.0),
]


def test_regret_is_measured_against_the_best_fixed_choice_of_the_kind() -> None:
    fixed = fixed_rewards([*JOBS, one(FIXED, "federated", 0.2, "other")])
    assert fixed == {"k": {"ddp": [0.7], "single": [0.9, 1.1]}, "other": {"federated": [0.2]}}
    best = best_of(fixed)
    assert best == {"k": 1.0, "other": 0.2}
    assert regrets(JOBS, best) == pytest.approx([0.5, 0.1, 0.0])
    assert rule_rewards(JOBS)["k"] == pytest.approx(0.6), "of every job that got what the cost model would take"


def test_first_and_last_jobs_are_kept_apart() -> None:
    first, last, after = thirds(JOBS, "k")
    assert [[job.reward for job in part] for part in (first, last, after)] == [[0.5], [1.0], [1.0]]


def test_a_finished_job_says_what_it_earned() -> None:
    options = [
        training_pb2.Option(strategy=training_pb2.STRATEGY_SINGLE, step_s=1, predicted=1.0, value=1.2),
        training_pb2.Option(strategy=training_pb2.STRATEGY_DDP, step_s=0.5, predicted=1.3, value=0.6),
        training_pb2.Option(strategy=training_pb2.STRATEGY_TENSOR, predicted=9.0, reason="cannot be"),
    ]
    plan = training_pb2.JobPlan(strategy=training_pb2.STRATEGY_SINGLE, options=options, alone_samples_per_s=50)
    job = training_pb2.Job(plan=plan, results={"samples_per_s": 60})
    job.attempt.workers.add()
    found = found_of(job, COLD, "k", AUTO)
    assert (found.strategy, found.rule, found.workers) == ("single", "ddp", 1)
    assert found.reward == pytest.approx(1.2)
    assert found.predicted == 1.0


@given(st.lists(st.floats(-1, 5), max_size=40), st.integers(1, 9))
def test_a_running_mean_stays_within_what_it_is_of(values: list[float], window: int) -> None:
    made = running(values, window)
    assert len(made) == len(values)
    assert made[:1] == values[:1]
    assert all(min(values) - 1e-9 <= mean <= max(values) + 1e-9 for mean in made)


def test_every_kind_is_tried_with_every_strategy_that_fits_and_all_can_be_submitted() -> None:
    counts = Counter((phase, kind.name) for phase, kind, _ in orders(rounds=3, fixed=2))
    for kind in KINDS:
        assert counts[FIXED, kind.name] == 2 * len(choices(kind))
        assert counts[COLD, kind.name] == (0 if kind.federated else 3)
        assert [check_job(spec_of(kind, choice, Path("/data"))).steps for choice in choices(kind)]


def test_the_table_names_each_choice() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(JOBS))
    shown = console.export_text()
    assert all(word in shown for word in ("always ddp", "the rule alone", "learned, first third", "after all"))
