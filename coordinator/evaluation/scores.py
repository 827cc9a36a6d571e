"""How well answers fit what was expected: one score a question, whose mean is the metric. Pure.

Precision, recall and F1 are macro averages over the labels (those expected and those answered, as scikit-learn's
`average="macro"` takes them); they are no means over questions, so a right answer's score is its part in them, scaled
so that the mean over all questions is the metric, and the scores of one question can be compared between versions.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from meshkit.errors import InvalidInputError

OVERLAP = "overlap"
"""The share of questions to which two versions give the same label, whether it is the right one or not."""
SCORER = "scorer:"
"""Before the name of a user's own scorer."""
_SCORER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NEAR = 1e-6

Answers = Sequence[Any]
"""Values as JSON has them, one a question; None for a question that got no answer, which scores 0."""


def check_metric(metric: str) -> None:
    """Raises InvalidInputError when there is no such metric of quality."""
    if metric in METRICS:
        return
    if metric.startswith(SCORER) and _SCORER_NAME.fullmatch(metric.removeprefix(SCORER)):
        return
    raise InvalidInputError(
        f"gates.evaluation: metric {metric!r} is unknown",
        hint=f"one of {', '.join(METRICS)}, or {SCORER}NAME for a program of your own",
        reason="BAD_GATES",
    )


def score(metric: str, expected: Answers, answers: Answers) -> list[float]:
    """One score a question; both have one entry a question.

    Raises InvalidInputError for a metric that is not computed here, or vectors that do not fit.
    """
    if metric not in METRICS:
        raise InvalidInputError(f"metric {metric!r} is unknown", hint=f"one of {', '.join(METRICS)}")
    return METRICS[metric](expected, answers)


def exact_match(expected: Answers, answers: Answers) -> list[float]:
    """1 where the whole answer is what was expected; numbers to a part in a million."""
    return [float(answer is not None and _same(want, answer)) for want, answer in zip(expected, answers, strict=True)]


def accuracy(expected: Answers, answers: Answers) -> list[float]:
    """1 where the label is right."""
    return [float(want == given) for want, given in _labels(expected, answers)]


def precision(expected: Answers, answers: Answers) -> list[float]:
    """Macro: of those answered with a label, the share that are right (0 of none), averaged over labels."""
    pairs = _labels(expected, answers)
    said = Counter(given for _, given in pairs)
    return _macro(pairs, lambda label: 1 / said[label])


def recall(expected: Answers, answers: Answers) -> list[float]:
    """Macro: of those that are of a label, the share answered with it, averaged over labels."""
    pairs = _labels(expected, answers)
    are = Counter(want for want, _ in pairs)
    return _macro(pairs, lambda label: 1 / are[label])


def f1(expected: Answers, answers: Answers) -> list[float]:
    """Macro: the harmonic mean of precision and recall, averaged over labels."""
    pairs = _labels(expected, answers)
    are, said = Counter(want for want, _ in pairs), Counter(given for _, given in pairs)
    return _macro(pairs, lambda label: 2 / (are[label] + said[label]))


def embedding_similarity(expected: Answers, answers: Answers) -> list[float]:
    """The cosine of the angle between the two vectors, -1 to 1; 0 where one of them has no length."""
    return [
        0.0 if answer is None else _cosine(number, _vector(want), _vector(answer))
        for number, (want, answer) in enumerate(zip(expected, answers, strict=True), start=1)
    ]


def said(expected: Answers, answers: Answers) -> list[int]:
    """A short hash of each answer's label, as accuracy takes it; 0 for a question without an answer."""
    return [0 if given is None else _short(given) for _, given in _labels(expected, answers)]


def overlap(old: Sequence[int], new: Sequence[int]) -> list[float]:
    """1 for each question to which two versions gave the same answer, of what `said` gives of them."""
    return [float(then == since != 0) for then, since in zip(old, new, strict=True)]


def _short(label: str) -> int:
    return int.from_bytes(hashlib.blake2b(label.encode(errors="replace"), digest_size=7).digest()) + 1


def _macro(pairs: Sequence[tuple[str, str | None]], part: Callable[[str], float]) -> list[float]:
    labels = {label for pair in pairs for label in pair if label is not None}
    scale = len(pairs) / len(labels) if labels else 0.0
    return [scale * part(want) if want == given else 0.0 for want, given in pairs]


def _labels(expected: Answers, answers: Answers) -> list[tuple[str, str | None]]:
    """Of each question what it is, and what was said. Of scores by class, what was said is the highest's index."""
    return [
        (_label(want), None if given is None else _label(_chosen(want, given)))
        for want, given in zip(expected, answers, strict=True)
    ]


def _chosen(want: Any, given: Any) -> Any:
    """A label out of an answer: what stands alone in lists, or the index of the highest of several numbers."""
    given = _bare(given)
    several = isinstance(given, list) and given and all(isinstance(each, int | float) for each in given)
    if several and not isinstance(want, list):
        return max(range(len(given)), key=given.__getitem__)
    return given


def _label(value: Any) -> str:
    """Equal for what is the same label, whether it came as 1, 1.0, true or [1]."""
    value = _bare(value)
    if isinstance(value, bool | int | float) and math.isfinite(value) and value == int(value):
        value = int(value)
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _bare(value: Any) -> Any:
    """What stands alone in lists: tensors have dimensions of 1 that nobody writes."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _same(want: Any, given: Any) -> bool:
    want, given = _bare(want), _bare(given)
    if isinstance(want, list) and isinstance(given, list):
        return len(want) == len(given) and all(_same(a, b) for a, b in zip(want, given, strict=True))
    if isinstance(want, int | float) and isinstance(given, int | float):
        return math.isclose(want, given, rel_tol=_NEAR, abs_tol=_NEAR)
    if isinstance(want, str) and isinstance(given, str):
        return want.strip() == given.strip()
    return bool(want == given)


def _vector(value: Any) -> list[float]:
    """All numbers in it, in order."""
    if isinstance(value, list):
        return [number for each in value for number in _vector(each)]
    return [float(value)] if isinstance(value, int | float) else []


def _cosine(number: int, one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other) or not one:
        raise InvalidInputError(
            f"question {number}: vectors of {len(one)} and {len(other)} numbers cannot be compared",
            hint='embedding_similarity needs "expected" to be a vector as long as the output',
            reason="BAD_DATASET",
        )
    largest = max(map(abs, (*one, *other)))
    if not largest or not math.isfinite(largest):
        return 0.0
    dot = math.fsum((a / largest) * (b / largest) for a, b in zip(one, other, strict=True))
    lengths = math.hypot(*(a / largest for a in one)) * math.hypot(*(b / largest for b in other))
    return max(-1.0, min(1.0, dot / lengths)) if lengths else 0.0


METRICS: dict[str, Callable[[Answers, Answers], list[float]]] = {
    "exact_match": exact_match,
    "accuracy": accuracy,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "embedding_similarity": embedding_similarity,
}
