"""Evaluation sets: lines of JSON, {"inputs": {name: nested list or value}, "expected": ...}. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from aimesh.rollout.v1 import rollout_pb2
from meshkit.errors import InvalidInputError

MOST_BYTES = 64 * 1024 * 1024
MOST_QUESTIONS = 100_000
_EXAMPLE = '{"inputs": {"x": [1.0, 2.0]}, "expected": "cat"}'


@dataclass(frozen=True)
class Question:
    """One line."""

    inputs: Mapping[str, Any]
    """Values by input's name, nested lists or single ones."""
    expected: Any
    """The right answer, as JSON."""


def digests_of(rollouts: Iterable[rollout_pb2.Rollout]) -> set[str]:
    """Digests of the sets that rollouts are judged on."""
    return {each.spec.gates.evaluation.dataset for each in rollouts} - {""}


def parse(content: bytes) -> list[Question]:
    """The questions of a set. Raises InvalidInputError naming the first line that is none."""
    if len(content) > MOST_BYTES:
        raise _bad(f"the evaluation set has {len(content)} bytes, and may have {MOST_BYTES}")
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise _bad(f"the evaluation set is no UTF-8 text: byte {error.start}") from None
    found = [_question(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise _bad("the evaluation set has no line")
    if len(found) > MOST_QUESTIONS:
        raise _bad(f"the evaluation set has {len(found)} questions, and may have {MOST_QUESTIONS}")
    return found


def _question(number: int, line: str) -> Question:
    def refuse(why: str) -> NoReturn:
        raise _bad(f"line {number} of the evaluation set {why}")

    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        refuse(f"is no JSON: {error}")
    if not isinstance(found, dict):
        refuse(f"is no object, but {type(found).__name__}")
    if not isinstance(found.get("inputs"), dict) or not found["inputs"]:
        refuse('has no "inputs", an object of values by input name')
    if found.get("expected") is None:
        refuse('has no label: "expected" is missing or null')
    return Question(found["inputs"], found["expected"])


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, hint=f"one line a question, as {_EXAMPLE}", reason="BAD_DATASET")
