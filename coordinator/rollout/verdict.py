"""What comparisons come to: back, on, or no telling yet. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimesh.rollout.v1 import rollout_pb2
from aimesh.rollout.v1.rollout_pb2 import Comparison
from coordinator.rollout.margins import (
    ERROR_RATE,
    FALSE_ALARM,
    LATENCIES,
    LEAST_REQUESTS,
    MEMORY,
    MISS,
    STAGES,
    WATCHED,
    matters,
)
from coordinator.rollout.stats.corrections import holm

_REQUESTS = (ERROR_RATE, *LATENCIES)
"""Metrics whose counts are requests."""


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on."""

    verdict: rollout_pb2.Verdict.ValueType
    """PASS, FAIL or INCONCLUSIVE."""
    reason: str
    """For people: what is worse, or what is missing."""
    comparisons: tuple[Comparison, ...]
    """As they were given."""


def verdict(
    gates: rollout_pb2.Gates, comparisons: Sequence[Comparison], stages: int = STAGES, beside: Sequence[float] = ()
) -> Judgement:
    """FAIL when a metric is surely worse by what matters, PASS when the watched ones are surely no worse than they may.

    `stages` is how many steps of the rollout are judged, which share gates.false_alarm. Within one the metrics share it
    (Holm). A miss needs no sharing: every watched metric must pass (R. Berger, "Multiparameter hypothesis testing and
    acceptance sampling", Technometrics 1982). May be asked at every look; a step need not be over. `beside` are the
    p-values of an experiment's other arms, which share the step's false alarms too.
    """
    given = tuple(comparisons)
    if gates.none:
        return Judgement(rollout_pb2.VERDICT_PASS, "nothing is judged: the rollout has no gates", given)
    alpha = (gates.false_alarm or FALSE_ALARM) / max(1, stages)
    worse = surely_worse(given, alpha, beside)
    if worse:
        return Judgement(rollout_pb2.VERDICT_FAIL, "; ".join(_told(each, p) for each, p in worse), given)
    missing = [*_unmeasured(gates, given), *_too_few(gates, given), *_unproven(given)]
    if missing:
        return Judgement(rollout_pb2.VERDICT_INCONCLUSIVE, "; ".join(missing), given)
    shown = ", ".join(_values(each) for each in given if _watched(each))
    return Judgement(rollout_pb2.VERDICT_PASS, f"no worse: {shown}", given)


def surely_worse(
    comparisons: Sequence[Comparison], alpha: float, beside: Sequence[float] = ()
) -> list[tuple[Comparison, float]]:
    """Those worse by what matters at alpha, each with its p-value after Holm's correction, over those beside it too."""
    tested = [each for each in comparisons if each.test]
    adjusted = holm([*(each.p_value for each in tested), *beside])
    return [
        (each, p)
        for each, p in zip(tested, adjusted, strict=False)
        if p <= alpha and each.effect >= matters(each.metric)
    ]


def requests_seen(comparisons: Sequence[Comparison]) -> int:
    """Of the new version."""
    return max((each.now_count for each in comparisons if each.metric in _REQUESTS), default=0)


def _unmeasured(gates: rollout_pb2.Gates, comparisons: Sequence[Comparison]) -> list[str]:
    measured = {each.metric for each in comparisons if each.HasField("now")}
    absent = [metric for metric in gates.needs if metric not in measured]
    return [f"not measured: {', '.join(absent)}"] if absent else []


def _too_few(gates: rollout_pb2.Gates, comparisons: Sequence[Comparison]) -> list[str]:
    seen, least = requests_seen(comparisons), gates.least_requests or LEAST_REQUESTS
    return [f"{seen} of {least} requests seen"] if seen < least else []


def _unproven(comparisons: Sequence[Comparison]) -> list[str]:
    watched = [each for each in comparisons if _watched(each)]
    if not watched:
        return ["nothing to compare with: the old version was not measured"]
    return [
        f"{each.now_count} {_counted(each)} are too few to be sure that {_values(each)} is no worse"
        for each in watched
        if each.no_worse_p_value > MISS
    ]


def _watched(each: Comparison) -> bool:
    """Of what is tested: the requests' WATCHED metrics, and every one of quality."""
    return bool(each.test) and (each.metric in WATCHED or each.metric not in (*_REQUESTS, MEMORY))


def _counted(each: Comparison) -> str:
    return "requests" if each.metric in _REQUESTS else "questions"


def _told(each: Comparison, p: float) -> str:
    return f"{each.metric} is worse: {_values(each).partition(' ')[2]}, p = {p:.2g}, effect {each.effect:+.3g}"


def _values(each: Comparison) -> str:
    return f"{each.metric} {_value(each.metric, each.now)} (was {_value(each.metric, each.before)})"


def _value(metric: str, value: float) -> str:
    if metric == ERROR_RATE:
        return f"{100 * value:.3g} %"
    if metric == MEMORY:
        return f"{value / 2**20:.4g} MiB"
    return f"{value:.4g} ms" if metric in LATENCIES else f"{value:.3g}"
