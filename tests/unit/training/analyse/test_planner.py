"""What the planning process does, in this one: from a folder as agents lay it out to the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from tests.unit.training.strategy.makers import nodes
from training import planner
from training.analyse import job as analyse
from training.contract import Folder

TRAINER = """
import torch
from torch import nn

class Trainer:
    def __init__(self, job):
        self.job = job
        self.scale = None

    def data(self):
        return torch.randn(100, 8), torch.randn(100, 1)

    def model(self):
        return nn.Linear(8, 1)

    def loss(self, model, batch):
        x, y = batch
        if self.scale is None:
            self.scale = torch.ones(1)
        {extra}
        return (self.scale * (model(x) - y) ** 2).mean()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyse, "BUDGET_S", 0.05)


def task_of(spec: training_pb2.JobSpec) -> training_pb2.TrainingTask:
    spec.batch_size, spec.resources.max_workers = 16, 2
    kind = training_pb2.TASK_KIND_PLAN
    return training_pb2.TrainingTask(job="a-123456", kind=kind, spec=spec, workers=nodes(2, 8 << 30))


def planned(folder: Path, spec: training_pb2.JobSpec) -> training_pb2.JobPlan:
    return planner.plan_folder(folder, task_of(spec))


def custom(folder: Path, extra: str = "pass", source: str = TRAINER) -> training_pb2.JobSpec:
    Folder(folder).code.mkdir()
    module = f"planned_{folder.name}".replace("-", "_")
    (Folder(folder).code / f"{module}.py").write_text(source.replace("{extra}", extra))
    return training_pb2.JobSpec(code=training_pb2.Code(entry=f"{module}:Trainer"), epochs=1)


def test_a_built_in_task(tmp_path: Path) -> None:
    spec = training_pb2.JobSpec(task="classifier", data=training_pb2.Data(builtin="digits", holdout=0.2), epochs=2)
    plan = planned(tmp_path, spec)
    assert (plan.samples, plan.holdout, plan.steps) == (1438, 359, 2 * 90)
    assert plan.model.family == "mlp"
    assert plan.model.source.endswith("without numbers")
    assert "speed measured" in plan.basis.source
    assert plan.situation == "small/small/2/fast"
    assert {option.strategy for option in plan.options if not option.step_s} == {training_pb2.STRATEGY_FEDERATED}


def test_a_users_own_trainer_that_keeps_tensors(tmp_path: Path) -> None:
    plan = planned(tmp_path, custom(tmp_path))
    assert (plan.samples, plan.model.parameters) == (100, 9)
    reasons = {option.strategy: option.reason for option in plan.options}
    assert reasons[training_pb2.STRATEGY_PIPELINE] == "the trainer has no output_loss, which a pipeline needs"
    assert "no two linear layers" in reasons[training_pb2.STRATEGY_TENSOR]


def test_code_that_needs_numbers_is_shown_real_ones(tmp_path: Path) -> None:
    plan = planned(tmp_path, custom(tmp_path, "float(x.sum())"))
    assert plan.model.source.endswith("over two samples")


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("raise KeyError('gone')", "KeyError: 'gone' .planned_"),
        ("return model(x)", "not a scalar"),
    ],
)
def test_what_the_code_does_wrong_is_said(tmp_path: Path, extra: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        planned(tmp_path, custom(tmp_path, extra))
    assert caught.value.reason == "BAD_TRAINER"


def test_no_samples_are_no_job(tmp_path: Path) -> None:
    source = TRAINER.replace("torch.randn(100, 8), torch.randn(100, 1)", "torch.zeros(0, 8), torch.zeros(0, 1)")
    with pytest.raises(InvalidInputError, match="no samples") as caught:
        planned(tmp_path, custom(tmp_path, source=source))
    assert caught.value.reason == "BAD_DATA"


def test_a_strategy_that_cannot_be_is_refused(tmp_path: Path) -> None:
    spec = custom(tmp_path)
    spec.strategy = training_pb2.STRATEGY_PIPELINE
    with pytest.raises(InvalidInputError, match="output_loss") as caught:
        planned(tmp_path, spec)
    assert caught.value.reason == "STRATEGY_REFUSED"
