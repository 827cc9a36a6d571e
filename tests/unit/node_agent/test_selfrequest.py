from __future__ import annotations

import json

import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor

from meshkit.errors import InvalidInputError
from node_agent.selfrequest import parse_request


def _request(**tensor: object) -> str:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **tensor}]})


def test_numbers() -> None:
    request = parse_request("m", _request())
    assert request.model_name == "m"
    assert (request.inputs[0].name, request.inputs[0].datatype, list(request.inputs[0].shape)) == ("x", "FP32", [2])
    assert np.frombuffer(request.raw_input_contents[0], np.float32).tolist() == [1.0, 2.0]


def test_nested_data_and_half_precision() -> None:
    request = parse_request("m", _request(datatype="FP16", shape=[2, 2], data=[[1, 2], [3, 4]]))
    assert np.frombuffer(request.raw_input_contents[0], np.float16).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_bfloat16_is_two_bytes_an_element() -> None:
    request = parse_request("m", _request(datatype="BF16", data=[1.0, -2.0]))
    assert request.raw_input_contents[0] == b"\x80\x3f\x00\xc0"


def test_text() -> None:
    request = parse_request("m", _request(datatype="BYTES", shape=[1, 2], data=[["héllo", ""]]))
    decoded = deserialize_bytes_tensor(request.raw_input_contents[0])
    assert [item.decode() for item in decoded] == ["héllo", ""]


def test_outputs_may_be_named() -> None:
    text = json.dumps({"inputs": [], "outputs": [{"name": "y"}]})
    assert [output.name for output in parse_request("m", text).outputs] == ["y"]


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "3",
        "{}",
        _request(shape=[3]),
        _request(datatype="FP33"),
        _request(data=["a", "b"]),
        _request(datatype="INT8", data=[1, 300]),
        _request(name=7),
        '{"inputs": [{"name": "x"}]}',
    ],
)
def test_what_is_no_request_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInputError, match="test request of model m") as caught:
        parse_request("m", text)
    assert '"datatype"' in caught.value.hint
