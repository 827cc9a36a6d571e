"""Evaluation sets, questions as tensors, and users' scorers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from aimesh.registry.v1 import registry_pb2
from coordinator.evaluation.ask import request_of, value_of
from coordinator.evaluation.dataset import Question, parse
from coordinator.evaluation.scorer import ScorerError, run_scorer, scorer_path
from meshkit.errors import InvalidInputError


def test_lines_are_questions_and_empty_ones_are_not() -> None:
    text = '{"inputs": {"x": [1, 2]}, "expected": 0}\n\n{"inputs": {"x": "a"}, "expected": ["b"], "note": "kept out"}\n'
    assert parse(text.encode()) == [Question({"x": [1, 2]}, 0), Question({"x": "a"}, ["b"])]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"inputs": {"x": 1}}', "line 2 of the evaluation set has no label"),
        ('{"inputs": {"x": 1}, "expected": null}', "line 2 of the evaluation set has no label"),
        ('{"expected": 1}', 'line 2 of the evaluation set has no "inputs"'),
        ('{"inputs": [1], "expected": 1}', 'line 2 of the evaluation set has no "inputs"'),
        ("[1]", "line 2 of the evaluation set is no object, but list"),
        ("{", "line 2 of the evaluation set is no JSON"),
        ("[" * 100_000, "line 2 of the evaluation set is no JSON"),
    ],
)
def test_a_line_that_is_no_question_is_named(line: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(('{"inputs": {"x": 1}, "expected": 1}\n' + line).encode())
    assert said in caught.value.message


def test_a_set_without_lines_or_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="has no line"):
        parse(b"\n \n")
    with pytest.raises(InvalidInputError, match="no UTF-8 text: byte 1"):
        parse(b"a\xff")


def version(**inputs: tuple[str, list[int]]) -> registry_pb2.ModelVersion:
    specs = [
        registry_pb2.TensorSpec(name=name, data_type=registry_pb2.DataType.Value(f"DATA_TYPE_{kind}"), shape=shape)
        for name, (kind, shape) in inputs.items()
    ]
    return registry_pb2.ModelVersion(name="m", version="1.0.0", signature=registry_pb2.Signature(inputs=specs))


def test_values_become_what_the_signature_says() -> None:
    model = version(x=("FP32", [-1, 2]), text=("BYTES", [-1, 1]))
    request = request_of(model, "y", 1, Question({"x": [1, 2], "text": "hä"}, 0))
    assert [list(each.shape) for each in request.inputs] == [[1, 2], [1, 1]]
    assert np.frombuffer(request.raw_input_contents[0], np.float32).tolist() == [1, 2]
    assert request.raw_input_contents[1] == b"\x03\x00\x00\x00h\xc3\xa4"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"z": 1}, "has the inputs z; m:1.0.0 takes x"),
        ({}, "lacks the inputs x"),
        ({"x": [1, 2, 3]}, "shape [1, 3], the signature says [-1, 2]"),
        ({"x": [1.5, 2]}, "not all of [1.5, 2] are INT32"),
        ({"x": ["a", "b"]}, "is not all numbers"),
        ({"x": [[1, 2], [3]]}, "input x"),
    ],
)
def test_a_question_that_does_not_fit_is_named(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        request_of(version(x=("INT32", [-1, 2])), "y", 7, Question(inputs, 0))
    assert caught.value.message.startswith("question 7 of the evaluation set")
    assert said in caught.value.message


def test_answers_lose_the_dimensions_of_1() -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="other", datatype="FP32", shape=[1])
    response.raw_output_contents.append(b"\0\0\0\0")
    response.outputs.add(name="y", datatype="INT64", shape=[1, 2])
    response.raw_output_contents.append(np.array([3, 4]).tobytes())
    response.outputs.add(name="text", datatype="BYTES", shape=[1, 1])
    response.raw_output_contents.append(b"\x02\x00\x00\x00ok")
    assert [value_of(response, name) for name in ("y", "text", "other", "none")] == [[3, 4], "ok", 0.0, None]


def program(folder: Path, body: str) -> Path:
    path = folder / "mine"
    path.write_text(f"#!/usr/bin/env python3\nimport json, sys, time\n{body}\n")
    path.chmod(0o755)
    return path


async def test_a_users_scorer_reads_questions_and_writes_numbers(tmp_path: Path) -> None:
    path = program(
        tmp_path, "for line in sys.stdin: q = json.loads(line); print(abs(q['expected'] - (q['answer'] or 0)))"
    )
    assert scorer_path(tmp_path, "mine") == path
    assert await run_scorer(path, [1, 2, 3], [1, 4, None]) == [0.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print(1)", "wrote 1 numbers for 2 questions"),
        ("print('good bad')", "could not convert"),
        ("print('nan nan')", "not finite"),
        ("sys.exit('no model here')", "ended with 1: no model here"),
        ("time.sleep(60)", "took longer than 0.3 s"),
    ],
)
async def test_a_scorer_that_gives_no_scores_says_so(tmp_path: Path, body: str, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(ScorerError, match=said):
        await run_scorer(program(tmp_path, body), [1, 2], [1, 2], limit_s=0.3 if "sleep" in body else 30)
    assert time.monotonic() - began < 20


def test_a_scorer_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    program(tmp_path, "").with_name("notes.txt").write_text(json.dumps("no program"))
    with pytest.raises(InvalidInputError, match=r"no scorer 'notes\.txt'; this coordinator has mine, notes\.txt"):
        scorer_path(tmp_path, "notes.txt")
    with pytest.raises(InvalidInputError, match="has none"):
        scorer_path(None, "mine")
