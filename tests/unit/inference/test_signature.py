from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.registry.v1 import registry_pb2
from inference.signature import (
    DATA_TYPES,
    check_inputs,
    data_type_of,
    data_type_of_array,
    describe,
    kserve_name,
    numpy_dtype,
    parse_tensor,
    tensor,
)
from meshkit.errors import InvalidInputError

SIGNATURE = registry_pb2.Signature(
    inputs=[tensor("x", "FP32", [-1, 3]), tensor("tag", "BYTES", [1], optional=True), tensor("h", "BF16", [2])]
)
X = np.zeros((4, 3), np.float32)
H = np.zeros(2, np.float32)


@pytest.mark.parametrize("name", DATA_TYPES)
def test_every_type_has_one_name_everywhere(name: str) -> None:
    assert kserve_name(data_type_of(name)) == name
    if name != "BF16":
        assert data_type_of_array(np.zeros(1, numpy_dtype(data_type_of(name)))) == name


def test_every_type_of_the_registry_is_known() -> None:
    known = {registry_pb2.DataType.Name(value) for value in registry_pb2.DataType.values() if value}
    assert known == {f"DATA_TYPE_{name}" for name in DATA_TYPES}


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([b"a"]), np.array(["a"], dtype=object)])
def test_text_is_bytes(array: npt.NDArray[Any]) -> None:
    assert data_type_of_array(array) == "BYTES"


def test_an_array_that_cannot_be_sent() -> None:
    with pytest.raises(InvalidInputError, match="complex64"):
        data_type_of_array(np.zeros(1, np.complex64))


def test_an_unknown_type() -> None:
    with pytest.raises(InvalidInputError, match=r"'FLOAT'.*known: BOOL"):
        data_type_of("FLOAT")


@given(
    st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.sampled_from(DATA_TYPES), st.lists(st.integers(-1, 9), max_size=4)
)
def test_a_tensor_is_read_as_it_is_written(name: str, data_type: str, shape: list[int]) -> None:
    assert parse_tensor(f"{name}:{data_type}:{'x'.join(map(str, shape))}") == tensor(name, data_type, shape)


@pytest.mark.parametrize("text", ["", "x", "x:FP32", ":FP32:1", "x:FP32:a", "x:FP32:1x", "x:FP32:-2", "x:FP32:1,2"])
def test_a_tensor_that_is_not_understood(text: str) -> None:
    with pytest.raises(InvalidInputError, match="name:FP32:-1x3"):
        parse_tensor(text)


def test_inputs_that_fit() -> None:
    check_inputs(SIGNATURE, {"x": X, "h": H})
    check_inputs(SIGNATURE, {"x": X[:0], "h": H, "tag": np.array(["a"], dtype=object)})


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"h": H}, "input 'x' is missing"),
        ({"x": X, "h": H, "y": X}, "unknown input 'y'"),
        ({"x": X.astype(np.float64), "h": H}, "'x' has type FP64, not FP32"),
        ({"x": X[0], "h": H}, r"'x' has shape \[3\], not \[-1, 3\]"),
        ({"x": X[:, :2], "h": H}, r"'x' has shape \[4, 2\], not \[-1, 3\]"),
        ({"x": X, "h": H.astype(np.float16)}, "'h' has type FP16, not BF16"),
    ],
)
def test_inputs_that_do_not_fit(inputs: dict[str, npt.NDArray[Any]], problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem) as caught:
        check_inputs(SIGNATURE, inputs)
    assert caught.value.reason == "SIGNATURE_MISMATCH"
    for spec in SIGNATURE.inputs:
        assert describe(spec) in caught.value.hint


@given(st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(-1, 3), max_size=3))
def test_a_shape_fits_exactly_when_each_size_is_equal_or_free(have: list[int], want: list[int]) -> None:
    fits = len(have) == len(want) and all(w in (-1, h) for h, w in zip(have, want, strict=True))
    signature = registry_pb2.Signature(inputs=[tensor("x", "INT8", want)])
    try:
        check_inputs(signature, {"x": np.zeros(have, np.int8)})
    except InvalidInputError:
        assert not fits
    else:
        assert fits
