from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.gpuchoice import GpuShare, choose_gpu

_GPUS = st.dictionaries(st.integers(0, 7), st.integers(1, 100), min_size=1)
_PROMISED = st.lists(st.builds(GpuShare, st.integers(0, 7), st.integers(0, 100)))


@given(_GPUS, _PROMISED)
def test_no_other_gpu_has_more_left(gpus: dict[int, int], promised: list[GpuShare]) -> None:
    def left(index: int) -> int:
        return gpus[index] - sum(share.memory_bytes for share in promised if share.index == index)

    chosen = choose_gpu(gpus, promised, 5)
    assert chosen is not None
    assert chosen.memory_bytes == 5
    assert left(chosen.index) == max(map(left, gpus))
    assert all(left(index) < left(chosen.index) for index in gpus if index < chosen.index)


@given(_GPUS, _PROMISED)
def test_the_order_of_what_is_known_does_not_matter(gpus: dict[int, int], promised: list[GpuShare]) -> None:
    assert choose_gpu(dict(reversed(gpus.items())), promised[::-1], 1) == choose_gpu(gpus, promised, 1)


def test_models_spread_over_equal_gpus() -> None:
    promised: list[GpuShare] = []
    for _ in range(4):
        share = choose_gpu({0: 80, 1: 80}, promised, 30)
        assert share is not None
        promised.append(share)
    assert [share.index for share in promised] == [0, 1, 0, 1]


def test_a_node_without_gpus_has_none_to_choose() -> None:
    assert choose_gpu({}, [], 1) is None
