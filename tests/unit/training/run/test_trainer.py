"""Trainers of users and built-in ones: what they must have, and what is said of one that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from tests.unit.inference.needs import without_torch
from training.building import build
from training.trainer import Entry

pytestmark = without_torch
GOOD = """
import torch
class Trainer:
    def __init__(self, job): self.job = job
    def model(self): return torch.nn.Linear(4, 3)
    def loss(self, model, batch): return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


@pytest.fixture(autouse=True)
def own_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("mine"):
            del sys.modules[name]


def made(folder: Path, text: str, entry: str = "mine:Trainer", **changes: Any) -> Entry:
    (folder / "code").mkdir()
    (folder / "code" / "mine.py").write_text(text)
    changes.setdefault("data", training_pb2.Data(builtin="iris"))
    return build(training_pb2.JobSpec(code=training_pb2.Code(entry=entry), **changes), folder)


def refused(folder: Path, text: str, says: str, entry: str = "mine:Trainer") -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        use(made(folder, text, entry))
    assert caught.value.reason == "BAD_TRAINER"


def use(entry: Entry) -> float:
    samples = entry.samples()
    assert samples is not None
    model = entry.model()
    loss = entry.loss(model, samples.batch(np.arange(5)))
    entry.scheduler(entry.optimizer(model.parameters()))
    return loss.item()


def test_the_smallest_trainer_has_all_that_is_asked_of_one(tmp_path: Path) -> None:
    entry = made(tmp_path, GOOD, seed=3, hyperparameters={"lr": "0.5", "name": "x", "sizes": "[1, 2]"})
    assert use(entry) == use(entry), "the first weights are the seed's"
    assert entry.job.hyperparameters == {"lr": 0.5, "name": "x", "sizes": [1, 2]}
    assert entry.optimizer(entry.model().parameters()).param_groups[0]["lr"] == 0.5
    assert entry.scheduler(entry.optimizer(entry.model().parameters())) is None
    assert entry.clip_norm is None
    batch = entry.job.samples.batch(np.arange(2))  # type: ignore[union-attr]
    assert entry.example(batch)[0].shape == (2, 4)
    assert list(entry.evaluate(entry.model(), batch)) == ["loss"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_module", r"importing mine: ModuleNotFoundError: .*no_such_.* \(mine\.py:1 in <module>\)"),
        ("def f(:", r"importing mine: SyntaxError: .*mine\.py:1"),
        ("class Other: pass", r"mine has no class Trainer.*Other"),
        ("Trainer = 3", r"mine has no class Trainer"),
        ("class Trainer:\n  def model(self): pass", r"__init__: TypeError: Trainer\(\) takes no arguments"),
        ("class Trainer:\n  def __init__(self, job): pass\n  def model(self): pass", r"Trainer has no method loss"),
        (GOOD.replace("torch.nn.Linear(4, 3)", "None"), r"model gave NoneType, not a torch\.nn\.Module"),
        (GOOD.replace("torch.nn.Linear(4, 3)", "torch.nn.ReLU()"), r"a module without a trainable parameter"),
        (GOOD.replace("Linear(4", "Linear('4'"), r"trainer mine:Trainer: model: TypeError.*\(mine\.py:5 in model\)"),
        (GOOD.replace("batch[1])", "batch[1], reduction='none')"), r"loss gave a tensor of shape \[5\], not a scalar"),
        (GOOD.replace("batch[1])", "batch[1]).item()"), r"loss gave float, not a scalar"),
        (GOOD.replace("batch[1])", "batch[1]).detach()"), r"a loss without a gradient"),
        (GOOD + "    def data(self): return 7", r"data gave int, which holds no samples"),
        (GOOD + "    def data(self): return torch.ones(3), torch.ones(2)", r"arrays of unequal length"),
        (GOOD + "    def optimizer(self, parameters): return None", r"optimizer gave NoneType"),
        (GOOD + "    def scheduler(self, optimizer): return 3", r"scheduler gave int"),
        (GOOD + "    def scheduler(self, optimizer): return optimizer.gone", r"scheduler: AttributeError.*mine\.py:"),
        (
            GOOD + "    def scheduler(self, optimizer):\n"
            "      return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)",
            r"scheduler gave ReduceLROnPlateau",
        ),
    ],
)  # fmt: skip
def test_a_trainer_that_cannot_be_used_is_refused_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    refused(tmp_path, text, says)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("mine", "write it as MODULE:ATTRIBUTE"),
        ("other:Trainer", "No module named 'other'"),
        ("json:Trainer", "module json is not the job's own"),
        ("training:Trainer", "module training is not the job's own"),
    ],
)
def test_an_entry_that_leads_nowhere_is_refused(tmp_path: Path, entry: str, says: str) -> None:
    refused(tmp_path, GOOD, says, entry)


@pytest.mark.parametrize(
    ("data", "shapes"),
    [
        ("torch.ones(6, 4), torch.zeros(6, dtype=torch.long)", [(2, 4), (2,)]),
        ("{'x': [[1.0]] * 6, 'y': [0] * 6}", [(2, 1), (2,)]),
        ("[(torch.ones(4), 1)] * 6", [(2, 4), (2,)]),
        ("torch.utils.data.TensorDataset(torch.ones(6, 4), torch.zeros(6))", [(2, 4), (2,)]),
    ],
)
def test_data_of_a_trainers_own_in_every_form(tmp_path: Path, data: str, shapes: list[tuple[int, ...]]) -> None:
    entry = made(tmp_path, GOOD + f"    def data(self): return {data}", data=None)
    samples = entry.samples()
    assert samples is not None
    assert len(samples) == 6
    assert [tuple(one.shape) for one in samples.batch(np.array([1, 3]))] == shapes
