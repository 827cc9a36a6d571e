"""What a step of a rollout is judged by: statistics first, then the policy's rules.

The functions may wait for the process that runs policies, a second at most: call them in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aimesh.rollout.v1 import rollout_pb2
from coordinator.evaluation.scores import OVERLAP, SCORER, check_metric
from coordinator.rollout.check import METRICS, QUALITY
from coordinator.rollout.compare import compare
from coordinator.rollout.margins import FALSE_ALARM, STAGES
from coordinator.rollout.rego import Policy, compile, default_policy, evaluate  # noqa: A004  # the word for it
from coordinator.rollout.stats.sequential import Counts, surely_above
from coordinator.rollout.verdict import Judgement, verdict
from coordinator.rollout.window import Window
from meshkit.blobs import checked
from meshkit.errors import InvalidInputError

MOST_FALSE_ALARM = 0.5


def check_gates(gates: rollout_pb2.Gates) -> None:
    """Raises InvalidInputError when the gates name what there is not, or their policy does not compile."""
    known = known_metrics(gates)
    for metric in gates.needs:
        if metric not in known:
            raise _bad(f"gates.needs: metric {metric!r} is unknown", f"one of {', '.join(known)}")
    if not 0 <= gates.false_alarm <= MOST_FALSE_ALARM:
        raise _bad(
            f"gates.false_alarm {gates.false_alarm:g} is no chance that makes sense",
            f"above 0, at most {MOST_FALSE_ALARM:g}; {FALSE_ALARM:g} when not given",
        )
    if gates.none and (gates.rego or gates.needs or gates.HasField("evaluation")):
        raise _bad("gates.none excludes every other gate", "leave none out, or the others")
    if gates.HasField("evaluation"):
        _check_evaluation(gates.evaluation)
    if gates.rego:
        compile(gates.rego, known)


def known_metrics(gates: rollout_pb2.Gates) -> list[str]:
    """Every metric that a policy may name: the user's own scorers are known by the evaluation."""
    own = [metric for metric in gates.evaluation.metrics if metric.startswith(SCORER)]
    return [*METRICS, *QUALITY, OVERLAP, *own]


def judge(  # one step is all of this
    gates: rollout_pb2.Gates,
    before: Window,
    now: Window,
    frozen: Window | None = None,
    *,
    share: float | None = None,
    stages: int = STAGES,
) -> Judgement:
    """What a step comes to at this moment. See compare() for `frozen` and `share`, verdict() for `stages`.

    Raises PolicyError when the policy cannot be run: then there is no judgement, and the rollout holds.
    """
    return judge_compared(gates, compare(before, now, frozen, share), now, stages=stages)


def judge_compared(
    gates: rollout_pb2.Gates,
    comparisons: Sequence[rollout_pb2.Comparison],
    now: Window,
    *,
    stages: int = STAGES,
    beside: Sequence[float] = (),
    doubt: str = "",
) -> Judgement:
    """The same of what is compared already. See verdict() for `stages` and `beside`.

    `doubt` is why the versions' requests cannot be held against each other: only a rule of the policy fails then, and
    nothing passes. Raises PolicyError.
    """
    found = verdict(gates, comparisons, stages, beside)
    if gates.none or (found.verdict == rollout_pb2.VERDICT_FAIL and not doubt):
        return found
    policy = Policy(gates.rego) if gates.rego else default_policy()
    alpha = (gates.false_alarm or FALSE_ALARM) / max(1, stages)
    ruling = evaluate(policy, document(comparisons, now, alpha))
    if ruling.fail:
        return replace(found, verdict=rollout_pb2.VERDICT_FAIL, reason="; ".join(ruling.fail))
    untold = [*([doubt] if doubt else []), *ruling.hold, *_not_evaluated(gates, now)]
    if not untold:
        return found
    if found.verdict != rollout_pb2.VERDICT_PASS:
        untold.append(found.reason)
    return replace(found, verdict=rollout_pb2.VERDICT_INCONCLUSIVE, reason="; ".join(untold))


def document(comparisons: Sequence[rollout_pb2.Comparison], now: Window, alpha: float) -> dict[str, Any]:
    """What a policy sees as `input`. What was not measured is not in it."""
    metrics = {each.metric: each.now for each in comparisons if each.HasField("now")}
    baseline = {each.metric: each.before for each in comparisons if each.HasField("before")}
    found = {
        "metrics": _finite(metrics),
        "baseline": _finite(baseline),
        "comparisons": [_told(each) for each in comparisons],
        "requests": now.requests,
        "surely": {"error_rate": error_rate_surely(now, alpha)},
    }
    old, new = baseline.get("cost_per_request"), metrics.get("cost_per_request")
    if old and new is not None and math.isfinite(new / old):
        found["cost_increase"] = new / old - 1
    return found


def error_rate_surely(now: Window, alpha: float) -> float:
    """The share of requests that fail at least, but for a chance of alpha however often it is asked."""
    seen = [(now.failures, now.requests), (now.gateway_failures, now.gateway_requests)]
    return max((surely_above(Counts(bad, total), alpha / 2) for bad, total in seen if total), default=0.0)


def _not_evaluated(gates: rollout_pb2.Gates, now: Window) -> list[str]:
    """No step passes before the questions that it asks for are answered."""
    missing = [metric for metric in gates.evaluation.metrics if metric not in now.quality]
    return [f"not evaluated yet: {', '.join(missing)}"] if missing else []


def _check_evaluation(evaluation: rollout_pb2.Evaluation) -> None:
    checked(evaluation.dataset)
    if not evaluation.metrics:
        raise _bad("gates.evaluation names no metric", f"one of {', '.join(QUALITY)}, {SCORER}NAME")
    for metric in evaluation.metrics:
        check_metric(metric)
    if not evaluation.output:
        raise _bad("gates.evaluation does not say which output is compared", "set gates.evaluation.output")


def _told(each: rollout_pb2.Comparison) -> dict[str, Any]:
    numbers = {
        "p_value": each.p_value,
        "no_worse_p_value": each.no_worse_p_value,
        "effect": each.effect,
        **({"before": each.before} if each.HasField("before") else {}),
        **({"now": each.now} if each.HasField("now") else {}),
    }
    counts = {"before_count": each.before_count, "now_count": each.now_count}
    return {"metric": each.metric, "test": each.test, **counts, **_finite(numbers)}


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _bad(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, reason="BAD_GATES")
