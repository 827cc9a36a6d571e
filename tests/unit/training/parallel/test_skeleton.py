"""A model put together again from its skeleton is what it was; workers draw apart where they are to."""

from __future__ import annotations

from typing import Any

from tests.unit.inference.needs import without_torch

pytestmark = without_torch


def test_a_skeleton_has_no_numbers_and_becomes_the_model_again() -> None:
    import torch
    from torch import nn

    from training.parallel.skeleton import fleshed, skeleton

    model: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    model.register_buffer("mask", torch.ones(2), persistent=False)
    bones = skeleton(model)
    assert {one.device.type for one in bones.parameters()} == {"meta"}
    whole: Any = fleshed(bones, model.state_dict())
    assert whole[2].weight is whole[0].weight
    assert not whole[0].bias.requires_grad
    assert torch.equal(whole.mask, torch.ones(2))
    x = torch.randn(4, 3)
    assert torch.equal(whole(x), model(x))
    assert whole[0].weight is not model[0].weight


def test_a_module_kept_apart_draws_its_own_and_what_follows_what_all_draw() -> None:
    import torch
    from torch import nn

    from training.parallel.draws import keep_apart

    drawn = []
    for rank in range(2):
        dropout = nn.Dropout(0.5)
        keep_apart(dropout, rank)
        torch.manual_seed(1)
        masks = [tuple((dropout(torch.ones(64)) == 0).tolist()) for _ in range(2)]
        drawn.append((masks, torch.rand(1).item()))
    (first, after), (second, after_too) = drawn
    assert after == after_too
    assert len({*first, *second}) == 4
