"""One look at a rollout: what its versions' windows come to. Runs the policy, a second at most: call it in a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.compare import compare
from coordinator.rollout.course import compared
from coordinator.rollout.gates import judge_compared
from coordinator.rollout.record import Judged
from coordinator.rollout.rego import PolicyError
from coordinator.rollout.stats.ratio import MISMATCH, split_at_any_look
from coordinator.rollout.window import Window

SPLIT = "sample_ratio"
"""The metric that an experiment's split of requests is shown as."""


@dataclass(frozen=True)
class Stage:
    """What a look is a part of."""

    stages: int
    """How many of them share the rollout's false alarms."""
    together: bool = True
    """The old version is served too; else the frozen window stands in for it."""
    frozen: Window | None = None
    """What the old version did before."""


def look(rollout: rollout_pb2.Rollout, windows: Mapping[str, Window], stage: Stage) -> Judged:
    """The judgement of the present step: of an experiment the worst arm's."""
    base, others = compared(rollout)
    before = windows.get(base, Window())
    by_version = {
        version: compare(
            before,
            windows.get(version, Window()),
            stage.frozen,
            _share(rollout, base, version),
            together=stage.together,
        )
        for version in others
    }
    split = split_of(rollout, windows)
    doubt = _doubt(split)
    found = []
    for version, comparisons in by_version.items():
        beside = [each.p_value for arm, theirs in by_version.items() if arm != version for each in theirs if each.test]
        try:
            judgement = judge_compared(
                rollout.spec.gates,
                comparisons,
                windows.get(version, Window()),
                stages=stage.stages,
                beside=beside,
                doubt=doubt,
            )
        except PolicyError as error:
            broken = f"the policy could not be run: {error}"
            found.append(Judged(rollout_pb2.VERDICT_INCONCLUSIVE, "", comparisons, broken=broken))
        else:
            found.append(Judged(judgement.verdict, judgement.reason, comparisons))
    if rollout.spec.WhichOneof("strategy") == "experiment":
        found = [_named(version, each) for version, each in zip(others, found, strict=True)]
    return _worst(found, split)


def split_of(rollout: rollout_pb2.Rollout, windows: Mapping[str, Window]) -> list[rollout_pb2.Comparison]:
    """An experiment's arms' shares of the requests, beside those that were asked for; of gateways' where they count."""
    arms = rollout.spec.experiment.arms
    counted = [windows.get(arm.version, Window()) for arm in arms]
    at_gateways = any(each.gateway_requests for each in counted)
    counts = [each.gateway_requests if at_gateways else each.requests for each in counted]
    if not sum(counts):
        return []
    p = split_at_any_look(counts, [arm.percent for arm in arms])
    return [
        rollout_pb2.Comparison(
            metric=SPLIT,
            version=arm.version,
            before=arm.percent / 100,
            now=count / sum(counts),
            now_count=count,
            p_value=p,
            no_worse_p_value=1.0,
            effect=count / sum(counts) - arm.percent / 100,
            test="share of requests as asked, multinomial, sequential",
        )
        for arm, count in zip(arms, counts, strict=True)
    ]


def _doubt(split: Sequence[rollout_pb2.Comparison]) -> str:
    if not split or split[0].p_value >= MISMATCH:
        return ""
    shares = ", ".join(f"{each.version} {100 * each.now:.3g} % instead of {100 * each.before:.3g} %" for each in split)
    return f"requests are not split as asked (p = {split[0].p_value:.2g}): {shares}; what differs may be the callers"


def _share(rollout: rollout_pb2.Rollout, base: str, version: str) -> float | None:
    """The new version's part of its own and the base's requests, where both get some."""
    weights = {target.version: target.weight for target in rollout.steps[rollout.step].targets}
    new, old = weights.get(version, 0), weights.get(base, 0)
    return new / (new + old) if new and old else None


def _named(version: str, judged: Judged) -> Judged:
    comparisons = []
    for each in judged.comparisons:
        made = rollout_pb2.Comparison(version=version)
        made.MergeFrom(each)
        comparisons.append(made)
    reason = f"{version}: {judged.reason}" if judged.reason else ""
    return replace(judged, reason=reason, comparisons=comparisons)


def _worst(found: Sequence[Judged], split: Sequence[rollout_pb2.Comparison]) -> Judged:
    """One of the arms that fails, else one without telling, else one that passes; with the comparisons of all."""
    order = (rollout_pb2.VERDICT_FAIL, rollout_pb2.VERDICT_INCONCLUSIVE, rollout_pb2.VERDICT_PASS)
    worst = min(found, key=lambda each: order.index(each.verdict))
    reasons = [each.reason for each in found if each.verdict == worst.verdict and each.reason]
    comparisons = [*split, *(comparison for each in found for comparison in each.comparisons)]
    broken = next((each.broken for each in found if each.broken), "") if worst.broken else ""
    return replace(worst, reason="; ".join(reasons), comparisons=comparisons, broken=broken)
