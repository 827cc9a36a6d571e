"""A plan's figures and reasons, for people and for `aimesh train plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from meshkit.qtable import Table
from training.analyse.analysis import Analysis
from training.analyse.classes import default_needs
from training.strategy.choose import Choice, worth
from training.strategy.cost import STRATEGIES
from training.strategy.model import Basis, Estimate
from training.strategy.weigh import Weighed

NAMES: Mapping[int, str] = {
    strategy: name.removeprefix("STRATEGY_").lower()
    for name, strategy in training_pb2.Strategy.items()
    if strategy in STRATEGIES
}
"""What people call each strategy."""


def needs(
    spec: training_pb2.JobSpec, analysis: Analysis, chosen: Estimate
) -> tuple[training_pb2.Needs, training_pb2.Needs]:
    """By class, and computed: where there is a computed figure it replaces the other, and both are shown."""
    profile = analysis.profile
    by_class = default_needs(profile.size_class, profile.family)
    words = f"a {profile.size_class} model" + (f", {profile.family}" if profile.family != "other" else "")
    defaults = training_pb2.Needs(**by_class._asdict(), source=f"by class: {words}")
    if not profile.activation_bytes:
        unknown = training_pb2.Needs(
            source="activations are not known: the class's, or the model's state if that is more"
        )
        unknown.memory_bytes = max(by_class.memory_bytes, chosen.memory_bytes)
        unknown.gpu_memory_bytes = max(by_class.gpu_memory_bytes, chosen.gpu_memory_bytes)
        return defaults, unknown
    source = f"{profile.source}; {NAMES[chosen.strategy]} with {chosen.workers} of a batch of {spec.batch_size or 32}"
    return defaults, training_pb2.Needs(
        cpu_cores=spec.resources.cpu_cores,
        memory_bytes=chosen.memory_bytes,
        gpu_memory_bytes=chosen.gpu_memory_bytes,
        source=source,
    )


def options(weighed: Sequence[Weighed], choice: Choice, known: Table, here: str) -> list[training_pb2.Option]:
    """All that were weighed: what can be used first, by what it is worth."""
    mine = [choice.weighed if one.strategy == choice.weighed.strategy else one for one in weighed]
    values = {one.strategy: worth(one, known, here) if one.usable else (0.0, 0) for one in mine}
    ordered = sorted(mine, key=lambda one: (not one.usable, -values[one.strategy][0]))
    return [_option(one, *values[one.strategy]) for one in ordered]


def _option(one: Weighed, value: float, visits: int) -> training_pb2.Option:
    made = one.estimate
    return training_pb2.Option(
        strategy=training_pb2.Strategy.ValueType(made.strategy),
        step_s=made.step_s if one.usable else 0,
        reason=made.refused or _parts(made),
        memory_bytes=made.memory_bytes,
        gpu_memory_bytes=made.gpu_memory_bytes,
        workers=made.workers,
        compute_s=made.compute_s,
        network_s=made.network_s,
        idle_s=made.idle_s,
        value=value,
        visits=visits,
        predicted=one.value if one.usable else 0,
    )


def _parts(made: Estimate) -> str:
    """What the time of a step goes into."""
    shares = [
        f"{part / made.step_s:.0%} {what}"
        for part, what in ((made.compute_s, "computing"), (made.network_s, "messages"), (made.idle_s, "waiting"))
        if part / made.step_s >= 0.005
    ]
    return ", ".join(shares)


def why(choice: Choice, weighed: Sequence[Weighed], known: Table, here: str) -> str:
    """Why this strategy: who or what decided it, with the figures. All worths are corrected by what was learned.

    `here` is empty when the job names it.
    """
    made = choice.weighed.estimate
    name = f"{NAMES[made.strategy]} with {made.workers} worker{'s' if made.workers > 1 else ''}"
    if not here:
        return f"{name}: the job names it"
    jobs = f"{choice.visits} finished job{'s' if choice.visits != 1 else ''}"
    if choice.explored:
        return f"{name}: tried on purpose, to learn what it is worth in {here}"
    others = [one for one in weighed if one.usable and one.strategy != made.strategy]
    if choice.visits:
        said = f"worth {choice.value:.2f} of one worker alone, learned from {jobs} in {here}"
    elif not others:
        return f"{name}: nothing else can be used"
    else:
        said = f"the cost model says {made.step_s:.3g} s a step, worth {choice.value:.2f} of one worker alone"
    return f"{name}: {said}{_next(others, known, here)}"


def _next(others: Sequence[Weighed], known: Table, here: str) -> str:
    """The best of the others by the same measure, and from how many jobs that is known."""
    if not others:
        return ""
    worths = {one.strategy: worth(one, known, here) for one in others}
    second = max(others, key=lambda one: worths[one.strategy][0])
    value, visits = worths[second.strategy]
    learned = f", learned from {visits} finished job{'s' if visits != 1 else ''}" if visits else ""
    return f"; next is {NAMES[second.strategy]} with {value:.2f}{learned}"


def basis_of(basis: Basis, nodes: int) -> training_pb2.CostBasis:
    """What the cost model went by."""
    return training_pb2.CostBasis(
        nodes=nodes,
        flops_per_s=basis.flops_per_s,
        overhead_s=basis.overhead_s,
        bandwidth=basis.network.bandwidth,
        latency_s=basis.network.latency_s,
        source=basis.source,
    )


def refusal(named: int, weighed: Sequence[Weighed]) -> InvalidInputError:
    """The error when the strategy that was named (0: every one) cannot be used, with each reason."""
    refused = [one for one in weighed if not named or one.strategy == named]
    reasons = "; ".join(f"{NAMES[one.strategy]}: {one.estimate.refused}" for one in refused if one.estimate.refused)
    what = f"strategy {NAMES[named]} cannot be used" if named else "no strategy can be used"
    return InvalidInputError(
        f"{what}: {reasons}",
        hint="`aimesh train plan` shows every strategy; change the job's workers, memory or strategy",
        reason="STRATEGY_REFUSED",
    )
