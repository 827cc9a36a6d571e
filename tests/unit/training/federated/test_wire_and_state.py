"""Tensors come back as they went, whatever their shapes; checkpoints are whole or refused."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from meshkit.errors import DataLossError, InvalidInputError
from meshkit.files import is_full
from training.federated.state import Global, read, write
from training.federated.updates import Lengths
from training.federated.variates import Variates
from training.federated.wire import SENT_BYTES, Gathered, Reader, layout_of, parts_of

_SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
_FINITE = {"allow_nan": False, "allow_infinity": False}
_ARRAYS = st.sampled_from([np.float32, np.float64]).flatmap(lambda kind: hnp.arrays(kind, _SHAPES, elements=_FINITE))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=4), _ARRAYS, max_size=4))
def test_what_is_sent_comes(tensors: dict[str, Any]) -> None:
    layout = layout_of(tensors)
    gathered = Gathered(layout)
    reader = Reader(layout, gathered)
    for part in parts_of(tensors):
        reader.take(part)
    reader.end()
    assert list(gathered.tensors) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(gathered.tensors[name], array)


def test_large_tensors_travel_in_parts_and_a_part_out_of_place_is_refused() -> None:
    tensors = {"w": np.arange(SENT_BYTES // 4 + 3, dtype=np.float32)}
    parts = list(parts_of(tensors))
    assert [len(part.data) for part in parts] == [SENT_BYTES, 12]
    reader = Reader(layout_of(tensors), Gathered(layout_of(tensors)))
    with pytest.raises(InvalidInputError, match=f"begins at byte {SENT_BYTES}, not 0"):
        reader.take(parts[1])
    reader.take(parts[0])
    with pytest.raises(InvalidInputError, match=f"missing from byte {SENT_BYTES} on"):
        reader.end()
    parts[1].data += b"\0\0\0\0"
    with pytest.raises(InvalidInputError, match="is too long"):
        reader.take(parts[1])
    parts[1].data = b"\0\0\0"
    with pytest.raises(InvalidInputError, match="no whole elements"):
        reader.take(parts[1])


STATE = Global(
    round=3,
    model={"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones(4)},
    control={"a": np.full((3, 2), 0.5, np.float32)},
    median=Lengths(1.5, 0.25),
    counted={0: 3, 7: 2},
    samples={0: 10, 7: 300},
    releases=3,
    loss=0.5,
    values={"accuracy": 0.9},
)


def test_a_checkpoint_says_all_that_the_next_round_goes_by(tmp_path: Path) -> None:
    files = write(tmp_path, STATE)
    again = read(tmp_path / "3", STATE)
    assert set(files) == {path.name for path in (tmp_path / "3").iterdir()}
    for name in ("round", "median", "counted", "samples", "releases", "loss", "values"):
        assert getattr(again, name) == getattr(STATE, name)
    np.testing.assert_array_equal(again.model["a"], STATE.model["a"])
    np.testing.assert_array_equal(again.control["a"], STATE.control["a"])
    assert write(tmp_path, STATE) == files, "one that died before it said so is written again"


def test_a_checkpoint_for_which_there_is_no_room_leaves_nothing_and_those_before_stay(tmp_path: Path) -> None:
    write(tmp_path, STATE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors") as refused:
            write(tmp_path, replace(STATE, round=STATE.round + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_full(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [str(STATE.round)]


def test_a_checkpoint_of_another_model_or_damaged_is_refused(tmp_path: Path) -> None:
    write(tmp_path, STATE)
    other = Global(round=0, model={"a": np.zeros((2, 2), np.float32), "b": np.ones(4)})
    with pytest.raises(InvalidInputError, match=r"a FP32 \[2, 2\] is a float32 \[3, 2\]") as raised:
        read(tmp_path / "3", other)
    assert raised.value.reason == "BAD_CHECKPOINT"
    path = tmp_path / "3" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataLossError):
        read(tmp_path / "3", STATE)
    with pytest.raises(DataLossError):
        read(tmp_path / "4", STATE)


def test_a_client_goes_on_from_the_variate_of_the_round_that_counted(tmp_path: Path) -> None:
    zeros = {"w": np.zeros(2, np.float32)}
    variates = Variates(tmp_path)
    assert variates.load(5, 0, zeros)["w"].tolist() == [0, 0]
    for number, counted in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)):
        variates.save(5, number, counted, {"w": np.full(2, number, np.float32)})
    # The answers to rounds 3 to 6 were lost with the aggregator: the model does not hold them.
    assert variates.load(5, 2, zeros)["w"].tolist() == [2, 2]
    assert variates.load(5, 4, zeros)["w"].tolist() == [4, 4]
    assert variates.load(5, 1, zeros)["w"].tolist() == [0, 0]
    variates.save(5, 7, 6, {"w": np.full(2, 7, np.float32)})
    assert variates.load(5, 2, zeros)["w"].tolist() == [0, 0], "a few are kept"
    assert variates.load(5, 4, {"v": np.zeros(2, np.float32)})["v"].tolist() == [0, 0]
