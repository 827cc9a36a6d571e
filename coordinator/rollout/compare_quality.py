"""Compares the scores of an evaluation: paired by question where both versions were asked the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from aimesh.rollout.v1.rollout_pb2 import Comparison
from coordinator.rollout.evidence import comparison
from coordinator.rollout.margins import QUALITY_MAY
from coordinator.rollout.stats import betting, bootstrap, fixed, sequential

_LEAST = 10
"""Scores of each that an unpaired test needs."""

Scores = Mapping[str, Sequence[float]]


def qualities(before: Scores, now: Scores) -> Iterator[Comparison]:
    """One comparison a metric that the new version has, by name. The effect is how much lower its mean is.

    An evaluation is one look, however often it is read: its p-values are those of one look.
    """
    for metric in sorted(now):
        old, new = before.get(metric, ()), now[metric]
        result = comparison(metric, _mean(old), _mean(new))
        result.before_count, result.now_count = len(old), len(new)
        if old and new:
            result.effect = result.before - result.now
            result.p_value, result.no_worse_p_value, result.test = _tested(tuple(old), tuple(new))
        yield result


@lru_cache(maxsize=64)
def _tested(old: tuple[float, ...], new: tuple[float, ...]) -> tuple[float, float, str]:
    """Both p-values and the test's name. Kept, because the same scores are looked at once a second."""
    if len(old) == len(new):
        return _paired([then - since for then, since in zip(old, new, strict=True)], _width(old, new))
    if min(len(old), len(new)) >= _LEAST:
        return _apart(old, new)
    return 1.0, 1.0, ""


def _paired(losses: Sequence[float], width: float | None) -> tuple[float, float, str]:
    """Signs at random against a loss; bets against a loss as large as it may be."""
    low, high = bootstrap.interval(losses)
    no_worse = 1.0
    if width is not None:
        no_worse = sequential.p_value(betting.mean_below(losses, QUALITY_MAY, -width, width))
    elif len(losses) >= _LEAST:
        no_worse = fixed.welch([0.0] * len(losses), losses, -QUALITY_MAY).p_value
    name = f"paired by question, random signs; 95 % of the loss in {low:+.3f} to {high:+.3f}"
    return fixed.sign_flip(losses).p_value, no_worse, name


def _apart(old: Sequence[float], new: Sequence[float]) -> tuple[float, float, str]:
    low, high = bootstrap.difference(old, new)
    name = f"other questions, Welch's t; 95 % of the loss in {low:+.3f} to {high:+.3f}"
    return fixed.welch(old, new).p_value, fixed.welch(new, old, -QUALITY_MAY).p_value, name


def _width(old: Sequence[float], new: Sequence[float]) -> float | None:
    """How far two scores can be apart: of shares and similarities; None for a scorer's own scale."""
    low, high = min(*old, *new), max(*old, *new)
    if low < -1 or high > 1:
        return None
    return 1.0 if low >= 0 else 2.0


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None
