"""Every engine trains as one worker does: the same losses, the same gradients' lengths, the same weights at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.nn import functional

from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError
from tests.mesh.training.test_checkpoint import flat
from tests.mesh.training.together import Place, engine_of, together
from tests.mesh.training.workers import Attempt, attempt, gather, until
from tests.unit.inference.needs import without_torch
from training.checkpoint.loader import load_into
from training.data.order import part
from training.run.group import Group
from training.tasks.networks import Block

pytestmark = without_torch
DDP, FSDP = training_pb2.STRATEGY_DDP, training_pb2.STRATEGY_FSDP
SINGLE, TENSOR, PIPELINE = training_pb2.STRATEGY_SINGLE, training_pb2.STRATEGY_TENSOR, training_pb2.STRATEGY_PIPELINE
TOLERANCE = 1e-5
"""Relative, of losses and gradients' lengths in FP32 over a dozen steps: sums are made in another order."""
WEIGHTS = 1e-4
"""Relative and, over the largest weight, absolute: Adam divides by lengths that are small at first."""
# 1,797 samples in batches of 300: five steps and one of the 297 that are left, each epoch.
DIGITS = training_pb2.JobSpec(
    task="classifier",
    data=training_pb2.Data(builtin="digits"),
    hyperparameters={"hidden": "[24, 12]", "lr": "0.01", "clip_norm": "0.5"},
    epochs=2,
    batch_size=300,
    seed=7,
    checkpoint=training_pb2.CheckpointPolicy(every_steps=7),
    output=training_pb2.Output(discard=True),
)
STEPS = 12


def points(ran: Attempt) -> dict[int, tuple[float, float]]:
    """Loss and gradient's length by step."""
    said = [event.point for event in ran.workers[0].events() if event.HasField("point")]
    return {point.step: (point.loss, point.values["gradient_norm"]) for point in said}


def weights(ran: Attempt, home: Path) -> dict[str, torch.Tensor]:
    """Those of the last checkpoint, of all workers."""
    gather(ran.workers, STEPS, [home])
    names = ("1", "3", "5")
    sizes = ((24, 64), (12, 24), (10, 12))
    model = {f"{name}.weight": torch.empty(size) for name, size in zip(names, sizes, strict=True)}
    model |= {f"{name}.bias": torch.empty(size[0]) for name, size in zip(names, sizes, strict=True)}
    state: dict[str, Any] = {"model": model, "progress": {"step": 0}}
    load_into(home / "resume", state)
    assert state["progress"] == {"step": STEPS}
    return model


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=WEIGHTS, atol=WEIGHTS * float(one.abs().max()))


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[int, tuple[float, float]], dict[str, torch.Tensor], Path]:
    """What one worker measured, its weights, and its folder with a checkpoint of step 7."""
    home = tmp_path_factory.mktemp("alone")
    with attempt(home, DIGITS, SINGLE) as one:
        one.finish()
        return points(one), weights(one, home / "end"), home


@pytest.mark.parametrize(
    ("strategy", "speeds"),
    [
        (FSDP, (10, 3)),
        (FSDP, (100, 1, 0.1)),
        (TENSOR, (0, 0)),
        (TENSOR, (0, 0, 0)),
        (PIPELINE, (0, 0)),
        (PIPELINE, (0, 0, 0)),
    ],
    ids=lambda value: training_pb2.Strategy.keys()[value][9:].lower() if isinstance(value, int) else str(len(value)),
)
def test_workers_that_share_a_model_train_as_one(
    tmp_path: Path, alone: Any, strategy: training_pb2.Strategy.ValueType, speeds: tuple[float, ...]
) -> None:
    expected, end, _ = alone
    with attempt(tmp_path, DIGITS, strategy, speeds) as several:
        several.finish()
        found = points(several)
        assert list(found) == list(expected)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=TOLERANCE)
        assert all(worker.losses() == several.losses() for worker in several.workers)
        assert_close(weights(several, tmp_path / "end"), end)


def test_a_job_goes_on_under_other_strategies_and_numbers_of_workers(tmp_path: Path, alone: Any) -> None:
    expected, end, _ = alone
    before = tmp_path / "1"
    with attempt(before, DIGITS, FSDP, (0, 0, 0)) as first:
        first.finish()
        for number, (strategy, count) in enumerate([(PIPELINE, 3), (TENSOR, 2), (DDP, 2), (DDP, 1)], start=2):
            home = tmp_path / str(number)
            folders = [home / f"{number}-{rank}" for rank in range(count)]
            resume = gather(first.workers, 7, folders)
            with attempt(home, DIGITS, strategy, [0.0] * count, number=number, resume=resume) as then:
                then.finish()
                found = points(then)
                assert min(found) == 8
                for step, measured in found.items():
                    np.testing.assert_allclose(measured, expected[step], rtol=TOLERANCE)
                assert_close(weights(then, tmp_path / f"end-{number}"), end)


@pytest.mark.parametrize("strategy", [FSDP, TENSOR, PIPELINE])
def test_a_worker_that_dies_is_missed_at_once(tmp_path: Path, strategy: training_pb2.Strategy.ValueType) -> None:
    long = training_pb2.JobSpec()
    long.CopyFrom(DIGITS)
    long.epochs, long.steps = 0, 1_000_000
    with attempt(tmp_path, long, strategy, (0, 0)) as both:
        until(lambda: any(event.HasField("checkpoint") for event in both.workers[0].events()), what="a checkpoint")
        both.kill(1)
        assert both.workers[0].wait(10) == 1, "not after the timeout of a collective"
        error = both.workers[0].error()
    assert error is not None
    assert (error.reason, error.may_retry) == ("PEER_LOST", True)


class Blocks:
    """A transformer as people write it: a module of its own, with its own plan and cuts."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def model(self) -> nn.Module:
        return Transformer(nn.LayerNorm(16))

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return self.output_loss(model(self.inputs(batch)), batch)

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        # Adam would make much of the rounding of gradients that are 0, as of attention's keys' bias.
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def inputs(self, batch: Any) -> torch.Tensor:
        rows: torch.Tensor = batch[0].reshape(-1, 4, 16) / 16
        return rows

    def output_loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(outputs, batch[1])

    def cuts(self, model: nn.Module) -> list[str]:
        return ["blocks.0", "blocks.1", "head"]

    def tensor_plan(self, model: nn.Module) -> dict[str, Any]:
        plan: dict[str, Any] = {}
        for number in range(2):
            prefix = f"blocks.{number}"
            plan |= {f"{prefix}.attention.{name}": ColwiseParallel() for name in "qkv"}
            plan |= {f"{prefix}.attention.out": RowwiseParallel()}
            plan |= {f"{prefix}.mlp.0": ColwiseParallel(), f"{prefix}.mlp.2": RowwiseParallel()}
        return plan


class Wrong(Blocks):
    """Cuts that leave nothing out and are in another order than the calls."""

    def cuts(self, model: nn.Module) -> list[str]:
        return ["blocks.1", "blocks.0", "head"]


class Branches(Blocks):
    """A batch goes through one of two layers: each worker may leave out another."""

    unused_parameters = True
    cuts = None  # type: ignore[assignment]

    def model(self) -> nn.Module:
        return nn.ModuleDict({"even": nn.Linear(64, 10), "odd": nn.Linear(64, 10)})

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        branch: Any = model.get_submodule("odd" if int(batch[1][0]) % 2 else "even")
        return self.output_loss(branch(batch[0] / 16), batch)


class Counting(Blocks):
    """With means that are counted: of a worker's own samples, or of microbatches."""

    def model(self) -> nn.Module:
        return Transformer(nn.BatchNorm1d(16))


class Head(nn.Module):
    """A mean over time, and classes."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.classes = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classes(self.norm(x.mean(1)))
        return scores


class Transformer(nn.Module):
    """Not a Sequential."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(16, 4, 0.0), Block(16, 4, 0.0)])
        self.head = Head(norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        scores: torch.Tensor = self.head(x)
        return scores


class Masked(Blocks):
    """A dropout that workers see parts of, and one that they see whole."""

    def model(self) -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Linear(16, 512), nn.Dropout(0.5), nn.Linear(512, 6), nn.Dropout(0.5), nn.LayerNorm(6), nn.Linear(6, 10)
        )

    def inputs(self, batch: Any) -> torch.Tensor:
        return super().inputs(batch).mean(1)

    tensor_plan = None  # type: ignore[assignment]


def own_models(place: Place, home: Path) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, strategy, size in (
        ("one", SINGLE, 1),
        ("fsdp", FSDP, 2),
        ("tensor", TENSOR, 2),
        ("pipeline", PIPELINE, 3),
    ):
        with place.group(size) as group:
            if group is not None:
                said[name] = steps_of(strategy, Blocks, group)
    for name, strategy in (("branches of fsdp", FSDP), ("branches of ddp", DDP)):
        with place.group(2) as group:
            if group is not None:
                said[name] = steps_of(strategy, Branches, group)
    for name, strategy, size in (("counted by fsdp", FSDP, 2), ("counted by pipeline", PIPELINE, 3)):
        with place.group(size) as group:
            if group is not None:
                said[name] = steps_of(strategy, Counting, group)
    with place.group(2) as group:
        if group is not None:
            said["masked"] = steps_of(TENSOR, Masked, group)
            engine = engine_of(TENSOR, Masked, group)
            seen: list[torch.Tensor] = []
            engine.model[1].register_forward_hook(lambda _m, _i, out: seen.append(out.detach() == 0))  # type: ignore[attr-defined]
            engine.backward(engine.trainer.samples().batch(np.arange(24)), 1.0, [0.0, 0.0]).wait()  # type: ignore[attr-defined]
            said["mask"] = seen[0].numpy()
    said["refused"] = refusals(place)
    return said


def steps_of(strategy: training_pb2.Strategy.ValueType, trainer: Any, group: Group) -> tuple[list[float], Any]:
    """The lengths of a few steps' gradients, and the whole model at the end."""
    engine = engine_of(strategy, trainer, group)
    lengths = []
    for step in range(3):
        batch = np.arange(24) + 24 * step
        mine = part(batch, group.rank, [1.0] * group.world_size) if engine.data_parallel else batch
        torch.manual_seed(step)
        engine.backward(engine.trainer.samples().batch(mine), len(mine) / 24, [0.0, 0.0]).wait()  # type: ignore[attr-defined]
        lengths.append(engine.update())
    model = engine.full_model()
    whole = {name: one.numpy() for name, one in flat(dict(model.state_dict())).items()} if model is not None else None
    return lengths, whole


class OneLinear(Masked):
    """Nothing that follows another."""

    cuts = None  # type: ignore[assignment]

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(16, 10), nn.ReLU())


class NoCuts(Blocks):
    """No Sequential, and no word where to cut."""

    cuts = None  # type: ignore[assignment]


def refusals(place: Place) -> dict[str, str]:
    said = {}
    for name, strategy, trainer, size in (
        ("order", PIPELINE, Wrong, 2),
        ("width", TENSOR, Masked, 3),
        ("linear", TENSOR, OneLinear, 2),
        ("parts", PIPELINE, NoCuts, 2),
        ("stages", PIPELINE, OneLinear, 2),
    ):
        with place.group(size) as group:
            if group is not None:
                with pytest.raises(AimeshError) as refused:
                    engine_of(strategy, trainer, group)
                said[name] = f"{refused.value.reason}: {refused.value}"
    return said


def test_models_that_are_no_sequence_and_what_cannot_be_shared_out(tmp_path: Path) -> None:
    said = together(3, own_models, tmp_path)
    expected, whole = said[0]["one"]
    for name in ("tensor", "pipeline", "fsdp"):
        lengths, found = said[0][name]
        np.testing.assert_allclose(lengths, expected, rtol=TOLERANCE)
        assert found.keys() == whole.keys()
        for key, one in whole.items():
            np.testing.assert_allclose(found[key], one, rtol=WEIGHTS, atol=WEIGHTS * np.abs(one).max(), err_msg=key)
        assert all(other[name][1] is None for other in said[1:] if name in other)
    for name, counted in (("counted by fsdp", 3), ("counted by pipeline", 3 * 12)):
        found = said[0][name][1]
        assert int(found["/head.norm.num_batches_tracked"]) == counted
        assert 0 < found["/head.norm.running_var"].mean() < 2
    np.testing.assert_allclose(said[0]["branches of fsdp"][0], said[0]["branches of ddp"][0], rtol=TOLERANCE)
    masks = [one["mask"] for one in said[:2]]
    assert (masks[0] != masks[1]).mean() > 0.1, "each worker drops features of its own"
    assert said[0]["masked"][0] == said[1]["masked"][0], "what all see whole is dropped alike"
    refused = said[0]["refused"]
    assert "BAD_TRAINER" in refused["order"]
    assert "one after the other" in refused["order"]
    assert refused["width"].startswith(
        "STRATEGY_REFUSED: strategy tensor cannot be used: 3 workers divide the width of"
    )
    assert "no two of the model's 1 linear layers follow" in refused["linear"]
    assert refused["parts"].startswith("STRATEGY_REFUSED: strategy pipeline cannot be used: Transformer is no")
    assert refused["stages"].startswith("TOO_MANY_STAGES: 2 pipeline stages are more than the 1 layers")
