"""The built-in tasks: each learns, each is exported as what can be pushed, and wrong values are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aimesh.training.v1 import training_pb2
from inference.packaging import package
from inference.signature import describe
from meshkit.errors import InvalidInputError
from tests.unit.inference.needs import without_torch
from training.building import build
from training.trainer import Entry

pytestmark = [without_torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def entry_of(folder: Path, task: str, data: training_pb2.Data, **values: str) -> Entry:
    return build(training_pb2.JobSpec(task=task, data=data, hyperparameters=values), folder)


def built_in(name: str) -> training_pb2.Data:
    return training_pb2.Data(builtin=name)


def text(folder: Path) -> training_pb2.Data:
    (folder / "a.txt").write_text("abcdefgh" * 40)
    return training_pb2.Data(path=str(folder / "a.txt"))


def learn(entry: Entry, steps: int = 30) -> tuple[float, float]:
    import torch

    samples, model = entry.samples(), entry.model()
    assert samples is not None
    optimizer = entry.optimizer(model.parameters())
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = entry.loss(model, samples.batch((np.arange(32) + 32 * step) % len(samples)))
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


CASES = [
    ("classifier", "digits", {"hidden": "[32]"},
     ["x FP32 [-1, 64]"], ["probabilities FP32 [-1, 10]", "label INT64 [-1]"]),
    ("classifier", "digits", {"kind": "cnn", "image": "[8, 8]", "channels": "[8]", "optimizer": "sgd"},
     ["x FP32 [-1, 64]"], ["probabilities FP32 [-1, 10]", "label INT64 [-1]"]),
    ("regressor", "diabetes", {"hidden": "[]"}, ["x FP32 [-1, 10]"], ["value FP32 [-1, 1]"]),
    ("autoencoder", "wine", {"code": "4"}, ["x FP32 [-1, 13]"], ["reconstruction FP32 [-1, 13]", "error FP32 [-1]"]),
    ("language", "", {"context": "8", "width": "16", "layers": "1", "heads": "2"},
     ["tokens INT64 [-1, 8]"], ["probabilities FP32 [-1, 256]"]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "data", "values", "inputs", "outputs"), CASES)
def test_a_task_learns_and_its_result_can_be_pushed(
    tmp_path: Path, task: str, data: str, values: dict[str, str], inputs: list[str], outputs: list[str]
) -> None:
    from training.run.export import export

    entry = entry_of(tmp_path, task, built_in(data) if data else text(tmp_path), **{"lr": "0.01", **values})
    first, last = learn(entry)
    assert last < 0.9 * first
    samples = entry.samples()
    assert samples is not None
    path = export(entry, entry.model(), samples.batch(np.arange(2)), tmp_path / "export")
    packed = package(path, "result", "1.0.0")
    assert [describe(one) for one in packed.version.signature.inputs] == inputs
    assert [describe(one) for one in packed.version.signature.outputs] == outputs


def test_the_result_of_one_job_is_the_beginning_of_another(tmp_path: Path) -> None:
    import torch

    from training.run.export import export

    first = entry_of(tmp_path, "classifier", built_in("iris"))
    model = first.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    samples = first.samples()
    assert samples is not None
    export(first, model, samples.batch(np.arange(2)), tmp_path / "base")
    again = entry_of(tmp_path, "classifier", built_in("iris")).model()
    assert all((parameter == 0.25).all() for parameter in again.parameters())
    with pytest.raises(
        InvalidInputError, match=r"does not fit: 1\.bias is of shape \[64\] there and of shape \[8\]"
    ) as e:
        entry_of(tmp_path, "classifier", built_in("iris"), hidden="[8]").model()
    assert e.value.reason == "BAD_BASE_MODEL"


@pytest.mark.parametrize(
    ("task", "values", "says"),
    [
        ("classifier", {"lr": "fast"}, r"lr = 'fast' of task classifier.*a number, 0 to 100"),
        ("classifier", {"lr": "NaN"}, r"lr = nan"),
        ("classifier", {"hiden": "[3]"}, r"no hyperparameter 'hiden'.*did you mean 'hidden'"),
        ("classifier", {"hidden": "[0]"}, r"hidden = \[0\]"),
        ("classifier", {"kind": "rnn"}, r"one of mlp, cnn"),
        ("classifier", {"kind": "cnn"}, r"image = \[64\]"),
        ("autoencoder", {"code": "1.5"}, r"code = 1\.5 .*a whole number"),
    ],
)
def test_hyperparameters_that_cannot_be_are_named(tmp_path: Path, task: str, values: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        entry_of(tmp_path, task, built_in("digits"), **values)
    assert caught.value.reason == "BAD_HYPERPARAMETER"


@pytest.mark.parametrize(
    ("labels", "values", "says"),
    [
        ([0, 1, -1, 1], {}, r"label -1 of a\.npz, sample 2 is out of range"),
        ([0, 1, 2, 1], {"classes": "2"}, r"label 2 of a\.npz, sample 2 is out of range: there are 2 classes"),
        ([0, 1, 900, 1], {}, r"label 900 of a\.npz, sample 2 is out of range"),
        ([0, 1, 2.5, 1], {}, r"y of a\.npz, sample 2 is 2\.5 \(float64\), not one whole number"),
        ([0, 1, 1, np.nan], {}, r"y of a\.npz, sample 3 is nan"),
        ([0, np.inf, 1, 1], {}, r"y of a\.npz, sample 1 is inf"),
    ],
)
def test_a_label_out_of_range_is_named(tmp_path: Path, labels: list[float], values: dict[str, str], says: str) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), y=np.array(labels))
    with pytest.raises(InvalidInputError, match=says) as caught:
        entry_of(tmp_path, "classifier", training_pb2.Data(path=str(tmp_path / "a.npz")), **values)
    assert caught.value.reason == "BAD_DATA"


@pytest.mark.parametrize("kind", ["u1", "i8", "?", "f2", ">f8"])
@pytest.mark.parametrize("task", ["classifier", "regressor", "autoencoder"])
def test_numbers_of_every_type_are_learned_from(tmp_path: Path, task: str, kind: str) -> None:
    x, labels = np.arange(8).reshape(4, 2).astype(kind), np.array([0, 1, 1, 0]).astype("?" if kind == "?" else "u1")
    np.savez(tmp_path / "a.npz", x=x, y=labels)
    entry = entry_of(tmp_path, task, training_pb2.Data(path=str(tmp_path / "a.npz")))
    samples, model = entry.samples(), entry.model()
    assert samples is not None
    batch = samples.batch(np.arange(4))
    assert entry.loss(model, batch).requires_grad
    assert np.isfinite(entry.evaluate(model, batch)["loss"])
    entry.served(model)(*entry.example(batch))


def test_one_sample_of_one_feature_is_enough(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(1), y=np.zeros(1, np.int64))
    entry = entry_of(tmp_path, "classifier", training_pb2.Data(path=str(tmp_path / "a.npz")))
    assert all(np.isfinite(learn(entry, steps=2)))


def test_data_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="task language learns from text; the job's data has x, y"):
        entry_of(tmp_path, "language", built_in("iris"))
    with pytest.raises(InvalidInputError, match="the job's data has no samples"):
        entry_of(tmp_path, "classifier", training_pb2.Data())
    with pytest.raises(InvalidInputError, match="there is no built-in task 'regresor'"):
        entry_of(tmp_path, "regresor", built_in("iris"))


def test_a_model_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    import torch

    from training.run.export import export
    from training.trainer import Job

    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(InvalidInputError, match="cannot be exported") as caught:
        export(Entry(object(), Job(), "mine"), Branching(), torch.ones(2, 4), tmp_path)
    assert caught.value.reason == "EXPORT_FAILED"
