from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from aimesh.registry.v1 import registry_pb2
from inference.signature import check_inputs, tensor
from meshkit.errors import InvalidInputError
from tools.cli.ask import similarities
from tools.cli.kserve import build_request, outputs_of
from tools.cli.tensors import parse_inputs, summary, to_json


def signature(*specs: registry_pb2.TensorSpec) -> registry_pb2.Signature:
    return registry_pb2.Signature(inputs=specs)


FLOATS = signature(tensor("x", "FP32", [-1, 3]))


def test_json_takes_the_signatures_type() -> None:
    found = parse_inputs(FLOATS, ["x=[[1, 2, 3]]"])
    assert found["x"].dtype == np.float32
    check_inputs(FLOATS, found)


def test_text_becomes_bytes() -> None:
    text = signature(tensor("text", "BYTES", [-1]))
    found = parse_inputs(text, ['text=["hé", "b"]'])
    assert found["text"].tolist() == ["hé".encode(), b"b"]
    check_inputs(text, found)


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    found = parse_inputs(FLOATS, [f"x=@{tmp_path}/x.npy"])
    check_inputs(FLOATS, found)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidInputError, match=r"x\.npy"):
        parse_inputs(FLOATS, [f"x=@{tmp_path}/x.npy"])


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["x"], "'x'"),
        (["=1"], "'=1'"),
        (["x=[1", "x=[1]"], r"\[1"),
        (["x=[[1,2,3]]", "x=[[1,2,3]]"], "twice"),
        (["x=[[1,2],[3]]"], "different lengths"),
        (["x=hello"], "not JSON"),
        (["x=@/nowhere.npy"], "nowhere"),
    ],
)
def test_what_is_not_understood_is_named(texts: list[str], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        parse_inputs(FLOATS, texts)


@pytest.mark.parametrize("text", ["x=[300]", "x=[-1]", "x=[1.5]"])
def test_numbers_that_do_not_fit_are_refused_and_never_wrapped(text: str) -> None:
    with pytest.raises(InvalidInputError, match="UINT8"):
        parse_inputs(signature(tensor("x", "UINT8", [-1])), [text])


def test_wrong_kinds_and_names_are_left_to_the_signature() -> None:
    for texts in (['x=["a"]'], ["y=[1]"], ["x=[1]"]):
        with pytest.raises(InvalidInputError, match="x"):
            check_inputs(FLOATS, parse_inputs(FLOATS, texts))


@given(npst.arrays(st.sampled_from([np.float32, np.int64, np.uint8, np.bool_]), npst.array_shapes(max_dims=3)))
def test_a_request_carries_an_array_unchanged(array: np.ndarray) -> None:  # type: ignore[type-arg]
    request = build_request("m", {"x": array})
    response = registry_answer(request)
    np.testing.assert_array_equal(response["x"], array)


@given(st.lists(st.binary(), min_size=1, max_size=5))
def test_a_request_carries_bytes_unchanged(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    assert registry_answer(build_request("m", {"x": array}))["x"].tolist() == items


def registry_answer(request: object) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """The request's inputs as a server that echoes them would give them back."""
    from tritonclient.grpc import service_pb2

    answer = service_pb2.ModelInferResponse(raw_output_contents=request.raw_input_contents)  # type: ignore[attr-defined]
    for item in request.inputs:  # type: ignore[attr-defined]
        answer.outputs.add(name=item.name, datatype=item.datatype, shape=item.shape)
    return outputs_of(answer)


def test_json_output_is_always_json() -> None:
    array = np.array([np.nan, np.inf, 1.0])
    assert json.loads(json.dumps(to_json(array))) == ["nan", "inf", 1.0]
    assert to_json(np.array([b"\xff", b"ok"], dtype=object)) == ["\\xff", "ok"]


def test_long_values_are_cut() -> None:
    assert "..." in summary(np.arange(1000))
    assert "\n" not in summary(np.zeros((50, 50)))


def test_similarities_are_cosines() -> None:
    found = similarities(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found[:3, :3], [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert np.isfinite(found).all()
