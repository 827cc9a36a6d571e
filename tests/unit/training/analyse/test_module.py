"""What one pass over a module says, held against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.analyse.measure import line, pace
from training.analyse.module import profile_and_flops
from training.analyse.parts import pairs_of, parts_of, planned_pairs, units_of, unsharded


def profiled(model: nn.Module, *shape: int, device: str = "meta") -> training_pb2.ModelProfile:
    x = torch.zeros(2, *shape, device=device)
    return profile_and_flops(model.to(device), lambda: model(x).square().mean(), 2, parts_of(model))[0]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def test_an_mlp_by_hand() -> None:
    found = profiled(mlp(), 64)
    assert (found.size_class, found.family) == ("small", "mlp")
    assert found.parameters == 64 * 128 + 128 + 128 * 10 + 10
    assert found.parameter_bytes == 4 * found.parameters
    assert found.flops == 2 * (64 * 128 + 128 * 10)
    assert [(one.name, one.parameters, one.flops, one.output_bytes) for one in found.layers] == [
        ("0", 8320, 16384, 512),
        ("1", 0, 0, 512),
        ("2", 1290, 2560, 40),
    ]
    # Kept for the way back: the input, ReLU's output, which the second layer takes too, and the output that is squared.
    assert found.activation_bytes == 4 * (64 + 128 + 10)


def test_meta_and_real_numbers_say_the_same() -> None:
    assert profiled(mlp(), 64) == profiled(mlp(), 64, device="cpu")


def test_a_convolution_counts_every_place() -> None:
    found = profiled(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)), 1, 8, 8)
    assert found.family == "convolutional"
    assert found.layers[0].flops == 2 * 8 * 8 * 4 * 9


def test_attention_is_a_transformer() -> None:
    found = profiled(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 5, 16)
    assert found.family == "transformer"
    assert found.flops >= 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32)


def test_a_large_model_takes_no_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(50_000, 50_000), nn.Linear(50_000, 10))
    found = profiled(model, 50_000)
    assert (found.size_class, found.parameters) == ("xlarge", 50_000**2 + 50_000 + 500_010)


def test_sequentials_are_taken_apart() -> None:
    model = nn.Sequential(mlp(), nn.Sequential(nn.Tanh(), mlp()))
    assert [name for name, _ in parts_of(model)] == ["0.0", "0.1", "0.2", "1.0", "1.1.0", "1.1.1", "1.1.2"]
    assert [(pair.first.name, pair.second.name) for pair in pairs_of(model)] == [("0.0", "0.2"), ("1.1.0", "1.1.2")]
    assert units_of(parts_of(model), model) == (4, 4 * 8320)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


def test_other_modules_are_cut_where_the_trainer_says() -> None:
    model = Named()
    assert parts_of(model) == []
    assert [name for name, _ in parts_of(model, ["first", "second"])] == ["first", "second"]
    assert [(pair.first.name, pair.second.name) for pair in pairs_of(model)] == [("first.0", "first.2")]
    assert units_of([], model)[0] == 1
    with pytest.raises(InvalidInputError, match="'third', which is no module of Named"):
        parts_of(model, ["first", "third"])


def test_a_trainers_own_tensor_plan_gives_its_pairs() -> None:
    plan = {"first.0": ColwiseParallel(), "first.2": RowwiseParallel()}
    assert [pair.width for pair in planned_pairs(Named(), plan)] == [128]


def test_a_line_through_two_measurements() -> None:
    found = line((10, 0.3), (40, 0.6))
    assert found.overhead_s == pytest.approx(0.2)
    assert found.sample_s == pytest.approx(0.01)
    assert found.flops_per_s(5e6) == pytest.approx(1.5e9)
    flat = line((10, 0.3), (40, 0.2))
    assert flat.overhead_s == 0, "noise: no slope to be seen"
    assert flat.sample_s == pytest.approx(0.005)


def test_real_steps_are_timed() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sizes = []

    def batch_of(size: int) -> torch.Tensor:
        sizes.append(size)
        return torch.zeros(size, 64)

    found = pace(model, optimizer, lambda x: model(x).square().mean(), batch_of, 32, 0.0)
    assert found.sample_s > 0
    assert sizes == [8, 8, 32]


def test_a_parameter_without_a_dimension_is_not_shared_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert not unsharded(model)
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    assert unsharded(model).startswith("parameter scale has no dimension")


def test_parameters_of_two_types_are_not_shared_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.LayerNorm(2))
    assert unsharded(model) == "parameters must be of one type: 0.weight is bfloat16, 1.weight is float32"
