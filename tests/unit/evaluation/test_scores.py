"""Scores against values worked out by hand, as scikit-learn gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.evaluation.scores import METRICS, check_metric, overlap, said, score
from meshkit.errors import InvalidInputError

ARE = ["cat", "cat", "cat", "dog", "dog", "bird"]
SAID = ["cat", "cat", "dog", "dog", "cat", "dog"]
"""cat: 3 are, 3 said, 2 right. dog: 2 are, 3 said, 1 right. bird: 1 is, none said."""

labels = st.sampled_from(["a", "b", "c", "d"])


def mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("accuracy", 3 / 6),
        ("exact_match", 3 / 6),
        ("precision", (2 / 3 + 1 / 3 + 0) / 3),
        ("recall", (2 / 3 + 1 / 2 + 0) / 3),
        ("f1", (2 / 3 + 2 / 5 + 0) / 3),
    ],
)
def test_by_hand(metric: str, value: float) -> None:
    assert mean(score(metric, ARE, SAID)) == pytest.approx(value)


def macro(metric: str, pairs: Sequence[tuple[str, str]]) -> float:
    """The textbook's way."""
    found = []
    for label in {label for pair in pairs for label in pair}:
        right = sum(want == given == label for want, given in pairs)
        are, said = sum(want == label for want, _ in pairs), sum(given == label for _, given in pairs)
        precision, recall = right / said if said else 0.0, right / are if are else 0.0
        both = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        found.append({"precision": precision, "recall": recall, "f1": both}[metric])
    return mean(found)


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=60), st.sampled_from(["precision", "recall", "f1"]))
def test_the_mean_over_questions_is_the_macro_average(pairs: list[tuple[str, str]], metric: str) -> None:
    scores = score(metric, [want for want, _ in pairs], [given for _, given in pairs])
    assert mean(scores) == pytest.approx(macro(metric, pairs))


@given(st.lists(labels, min_size=1, max_size=40), st.sampled_from(sorted(set(METRICS) - {"embedding_similarity"})))
def test_a_perfect_version_has_1_and_a_silent_one_0(expected: list[str], metric: str) -> None:
    assert mean(score(metric, expected, expected)) == pytest.approx(1.0)
    assert score(metric, expected, [None] * len(expected)) == [0.0] * len(expected)


@pytest.mark.parametrize(
    ("want", "given_", "right"),
    [
        (1, [1], True),
        (1, 1.0, True),
        (1, [0.1, 0.9], True),
        (0, [0.1, 0.9], False),
        ("cat", [["cat"]], True),
        (" cat", "cat\n", True),
        (True, 1, True),
        ("1", 1, True),
        (2, float("nan"), False),
    ],
)
def test_labels_are_the_same_however_a_tensor_has_them(want: object, given_: object, right: bool) -> None:
    assert score("accuracy", [want], [given_]) == [float(right)]


@pytest.mark.parametrize(
    ("want", "given_", "right"),
    [
        ([[1, 2]], [1, 2.0000000001], True),
        ([1, 2], [1, 2, 3], False),
        (0.5, [0.5000001], True),
        ("yes ", "yes", True),
        ({"a": 1}, "x", False),
    ],
)
def test_exact_match(want: object, given_: object, right: bool) -> None:
    assert score("exact_match", [want], [given_]) == [float(right)]


def test_embedding_similarity() -> None:
    found = score("embedding_similarity", [[1, 0], [1, 0], [1, 0], [3, 4]], [[2, 0], [0, 5], [-1, 0], [[4, 3]]])
    assert found == pytest.approx([1, 0, -1, 24 / 25])
    assert score("embedding_similarity", [[1.0], [0.0]], [None, [1.0]]) == [0.0, 0.0]
    with pytest.raises(InvalidInputError, match="question 2: vectors of 2 and 3 numbers"):
        score("embedding_similarity", [[1], [1, 2]], [[1], [1, 2, 3]])


vectors = st.lists(st.floats(-1e150, 1e150), min_size=3, max_size=3)


@given(vectors, vectors, st.floats(1e-3, 1e3))
def test_the_cosine_does_not_know_lengths(one: list[float], other: list[float], factor: float) -> None:
    (found,) = score("embedding_similarity", [one], [other])
    assert -1 <= found <= 1
    (scaled,) = score("embedding_similarity", [[factor * each for each in one]], [other])
    assert math.isclose(found, scaled, abs_tol=1e-6)


def test_metrics_that_there_are() -> None:
    for metric in (*METRICS, "scorer:mine", "scorer:judge-2.py"):
        check_metric(metric)
    for metric in ("F1", "scorer:", "scorer:../evil", "scorer:.hidden"):
        with pytest.raises(InvalidInputError):
            check_metric(metric)


def test_two_versions_agree_where_they_say_the_same_label_right_or_wrong() -> None:
    expected = [1, "cat", [0.5, 0.5], 2, 0]
    old = said(expected, [[0.1, 0.9], "dog", [0.5, 0.25], None, 0])
    new = said(expected, [1, " dog", [0.25, 0.5], None, 1])
    assert overlap(old, new) == [1.0, 1.0, 0.0, 0.0, 0.0], "no answer is none in common"
