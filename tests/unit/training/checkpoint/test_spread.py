"""What all workers have is written by exactly one of them, and none writes much more than another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inference.needs import without_torch

pytestmark = without_torch
SIZES = st.lists(st.integers(0, 1 << 40), max_size=40)


@given(SIZES, st.integers(1, 8))
def test_each_tensor_has_one_owner_and_loads_are_even_but_for_one_tensor(sizes: list[int], workers: int) -> None:
    from training.checkpoint.spread import owners

    found = owners(sizes, workers)
    assert len(found) == len(sizes)
    loads = [sum(size for size, owner in zip(sizes, found, strict=True) if owner == rank) for rank in range(workers)]
    assert sum(loads) == sum(sizes)
    assert max(loads) <= sum(sizes) / workers + max(sizes, default=0) + len(sizes)


@given(st.integers(1, 5))
def test_the_parts_of_all_workers_are_the_whole_and_share_no_tensor(workers: int) -> None:
    import torch

    from training.checkpoint.spread import own_part

    state = {
        "model": {name: torch.ones(size) for name, size in (("a", 5), ("b", 3), ("c", 0))},
        "optimizer": {"state": {"a": {"step": torch.tensor(1.0), "mean": torch.ones(5)}}, "param_groups": [{"lr": 1}]},
        "scheduler": {},
    }
    parts = [own_part(state, rank, workers) for rank in range(workers)]
    names = [(outer, name) for part in parts for outer in ("model",) for name in part.get(outer, {})]
    assert sorted(names) == [("model", "a"), ("model", "b"), ("model", "c")]
    slots = [slot for part in parts for slot in part["optimizer"].get("state", {}).get("a", {})]
    assert sorted(slots) == ["mean", "step"]
    assert all(part["optimizer"]["param_groups"] == [{"lr": 1}] for part in parts)
    assert all(part["scheduler"] == {} for part in parts)
