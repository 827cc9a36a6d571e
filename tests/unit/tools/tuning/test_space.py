from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from coordinator.training.check import check_job
from meshkit.errors import InvalidInputError
from tools.tuning.samplers import ByNumber, most_trials
from tools.tuning.space import Space, combinations, parse_spaces
from tools.tuning.studyfile import KEYS, StudyFile, facts, read_study, trial_spec

EXAMPLE = Path(__file__).parents[4] / "training" / "examples" / "tune.toml"
JOB = """
name = "n"
task = "classifier"
epochs = 1
[data]
builtin = "iris"
holdout = 0.2
[tune]
metric = "accuracy"
direction = "maximize"
"""
LR = '[tune.search]\nlr = { type = "log", low = 1e-3, high = 0.1 }\n'


def study(text: str, folder: Path) -> StudyFile:
    path = folder / "study.toml"
    path.write_text(text)
    return read_study(path)


def one(**table: object) -> Space:
    return parse_spaces({"x": table}, "tune.search")[0]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"type": "flot"}, "tune.search.x.type 'flot'"),
        ({}, "tune.search.x.type None"),
        ({"type": "float", "low": 0.0}, "tune.search.x.high is missing"),
        ({"type": "float", "low": 2, "high": 1}, "tune.search.x: low 2 is not below high 1"),
        ({"type": "float", "low": 1, "high": 1}, "tune.search.x: low 1 is not below"),
        ({"type": "float", "low": float("nan"), "high": 1}, "tune.search.x.low = nan"),
        ({"type": "float", "low": True, "high": 2}, "tune.search.x.low = True"),
        ({"type": "log", "low": 0, "high": 1}, "tune.search.x: low 0 has no logarithm"),
        ({"type": "log", "low": 1, "high": 2, "step": 1}, "tune.search.x has no key 'step'"),
        ({"type": "int", "low": 1.5, "high": 2}, "tune.search.x.low = 1.5"),
        ({"type": "int", "low": 1, "high": 9, "step": 0}, "tune.search.x.step 0"),
        ({"type": "int", "low": 1, "high": 9, "step": 2, "log": True}, "tune.search.x has both log and step"),
        ({"type": "int", "low": 1, "high": 9, "log": "yes"}, "tune.search.x.log = 'yes'"),
        ({"type": "int", "low": 1, "high": 1 << 60}, "tune.search.x.high = 1152921504606846976"),
        ({"type": "float", "low": 1, "high": 9, "points": 1}, "tune.search.x.points = 1"),
        ({"type": "float", "low": 1, "high": 9, "points": 3, "step": 1}, "tune.search.x has both step and points"),
        ({"type": "categorical", "choices": []}, "tune.search.x.choices must be a list"),
        ({"type": "categorical", "choices": [[1], [1]]}, r"tune.search.x.choices has [1] twice"),
        ({"type": "categorical", "choices": [1, True]}, "tune.search.x.choices has true twice"),
        ({"type": "categorical", "choices": [float("inf")]}, "tune.search.x.choices[0] = inf"),
        ("log", "tune.search.x = 'log' is no space"),
    ],
)
def test_a_bad_space_is_refused_by_name(table: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(said)):
        parse_spaces({"x": table}, "tune.search")


@pytest.mark.parametrize("found", [{}, None, []])
def test_a_search_needs_spaces(found: object) -> None:
    with pytest.raises(InvalidInputError, match="nothing to search"):
        parse_spaces(found, "tune.search")


@pytest.mark.parametrize(
    "table",
    [
        {"type": "float", "low": 1, "high": 9},
        {"type": "int", "low": 0, "high": 9},
        {"type": "categorical", "choices": [16, "32"]},
        {"type": "categorical", "choices": [True, 32]},
    ],
)
def test_a_batch_size_is_a_whole_number_of_samples(table: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=r"tune.search.batch_size is the job's batch size"):
        parse_spaces({"batch_size": table}, "tune.search")


@settings(max_examples=25)
@given(st.data())
def test_what_is_drawn_lies_within_the_space_and_so_does_every_point_of_its_grid(data: st.DataObject) -> None:
    low = data.draw(st.integers(1, 50))
    high = low + data.draw(st.integers(1, 500))
    step = data.draw(st.integers(1, 600))
    spaces = [
        one(type="int", low=low, high=high, step=step),
        one(type="int", low=low, high=high, log=True),
        one(type="float", low=low / 10, high=high / 10, step=step / 10),
        one(type="float", low=low / 10, high=high / 10, points=5),
        one(type="log", low=low / 1e4, high=high / 1e4, points=5),
    ]
    for space in spaces:
        distribution = space.distribution()
        grid = space.grid()
        assert len(set(grid)) == len(grid)
        assert all(distribution._contains(distribution.to_internal_repr(value)) for value in grid)
        assert all(space.low <= float(value) <= space.high * (1 + 1e-9) for value in grid)


def test_a_tenth_is_met_ten_times() -> None:
    space = one(type="float", low=0.0, high=0.3, step=0.1)
    assert space.grid() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert one(type="log", low=1e-4, high=1e-1, points=4).grid() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


def test_choices_come_back_as_they_were_written() -> None:
    space = one(type="categorical", choices=[[64, 32], [64], "relu", 3, 0.5, {"a": 1}])
    assert [space.value(label) for label in space.labels] == list(space.choices)
    assert len(space.distribution().choices) == 6  # type: ignore[attr-defined]


def test_a_grid_is_gone_through_once_whoever_asks(tmp_path: Path) -> None:
    spaces = parse_spaces(
        {"a": {"type": "categorical", "choices": [1, 2]}, "b": {"type": "int", "low": 1, "high": 3}}, "tune.search"
    )
    points = combinations(spaces, 3, "tune.search")
    assert points == combinations(spaces, 3, "tune.search")
    assert {(point["a"], point["b"]) for point in points} == {(a, b) for a in (1, 2) for b in (1, 2, 3)}
    study = optuna.create_study(sampler=ByNumber(points))
    drawn = [study.ask({space.name: space.distribution() for space in spaces}).params for _ in range(6)]
    assert drawn == points


def test_a_grid_needs_an_end(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"tune.search.lr has no end of values"):
        study(JOB + 'sampler = "grid"\n' + LR, tmp_path)
    points = study(JOB + 'sampler = "grid"\n' + LR.replace(" }", ", points = 7 }"), tmp_path)
    assert most_trials(points.tune) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("maximize", "upwards"), "tune.direction = 'upwards'"),
        (('direction = "maximize"', ""), "tune.direction is missing"),
        (('metric = "accuracy"', ""), "tune.metric is missing"),
        (('metric = "accuracy"', 'metrik = "accuracy"'), "tune has no key 'metrik'"),
        (('metric = "accuracy"', 'metric = "loss"\nsampler = "best"'), "tune.sampler = 'best'"),
        (('metric = "accuracy"', 'metric = "loss"\npruner = "mean"'), "tune.pruner = 'mean'"),
        (('metric = "accuracy"', 'metric = "loss"\ntrials = 0'), "tune.trials = 0"),
        (('metric = "accuracy"', 'metric = "loss"\nparallel = 2.5'), "tune.parallel = 2.5"),
        (('metric = "accuracy"', 'metric = "loss"\nstudy = "A/B"'), "tune.study = 'A/B'"),
        (("holdout = 0.2", ""), "tune.metric 'accuracy' is measured on held-out samples"),
        (("epochs", "epoch"), "has no key 'epoch'"),
        (("", ""), "x = 1 is no space"),
    ],
)
def test_what_a_study_file_cannot_say_is_refused_by_name(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    search = LR if change[0] else "[tune.search]\nx = 1\n"
    with pytest.raises(InvalidInputError, match=re.escape(said)):
        study(JOB.replace(*change) + search, tmp_path)


def test_a_job_file_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"the table \[tune\] is missing"):
        study(JOB.partition("[tune]")[0], tmp_path)


def test_a_trial_is_the_job_with_its_hyperparameters() -> None:
    asked = read_study(EXAMPLE)
    labels = {"lr": 0.01, "dropout": 0.2, "hidden": "[64, 32]", "batch_size": 48}
    made = trial_spec(asked.job.spec, asked.tune, labels, "digits-tune-3", discard=True)
    assert check_job(made).output.discard
    assert (made.name, made.batch_size) == ("digits-tune-3", 48)
    values = {name: json.loads(value) for name, value in made.hyperparameters.items()}
    assert values == {"lr": 0.01, "dropout": 0.2, "hidden": [64, 32], "weight_decay": 0.01}
    best = trial_spec(asked.job.spec, asked.tune, labels, "digits-tune-best", discard=False)
    assert (best.output.model, best.output.discard) == ("digits-tune", False)


def test_the_example_has_every_key_and_its_job_can_be() -> None:
    asked = read_study(EXAMPLE)
    check_job(asked.job.spec)
    text = EXAMPLE.read_text()
    assert all(re.search(rf"^{key} = |^\[tune\.{key}\]", text, re.MULTILINE) for key in KEYS)


def test_what_makes_trials_comparable() -> None:
    asked = read_study(EXAMPLE)
    before = facts(asked.tune, asked.job.spec)
    longer = training_pb2.JobSpec()
    longer.CopyFrom(asked.job.spec)
    longer.epochs += 1
    after = facts(asked.tune, longer)
    assert [key for key in before if before[key] != after[key]] == ["job"]
