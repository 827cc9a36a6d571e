"""What is decided for some nodes, and what of that a plan says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from aimesh.training.v1 import training_pb2
from meshkit.qtable import Table
from training.analyse.analysis import Analysis
from training.analyse.classes import situation
from training.plan.tensor import usable
from training.strategy.choose import Choice, choose
from training.strategy.cost import STRATEGIES, estimate
from training.strategy.describe import needs, options, why
from training.strategy.model import Basis, Estimate, Machine, Work
from training.strategy.weigh import Weighed, weigh
from training.strategy.work import bounds


@dataclass(frozen=True)
class Asked:
    """A job, what its analysis found, and what finished jobs have taught."""

    spec: training_pb2.JobSpec
    analysis: Analysis
    work: Work
    known: Table

    @property
    def basis(self) -> Basis:
        """How fast it goes."""
        return self.analysis.basis

    @property
    def named(self) -> int:
        """The strategy that the job names; 0 when it leaves the choice."""
        return self.spec.strategy if self.spec.strategy in STRATEGIES else 0

    @property
    def has_choice(self) -> bool:
        """Whether the strategy is open: neither named, nor given by data that may not leave their nodes."""
        return not self.named and self.work.rounds is None


@dataclass(frozen=True)
class Decision:
    """A choice for some nodes."""

    choice: Choice
    weighed: Sequence[Weighed]
    """What there was to choose from."""
    situation: str
    """By which its lesson is kept."""

    @property
    def strategy(self) -> int:
        """What was chosen."""
        return self.choice.weighed.strategy

    @property
    def workers(self) -> int:
        """With how many."""
        return self.choice.weighed.estimate.workers


def weighed_for(asked: Asked, machines: Sequence[Machine]) -> list[Weighed]:
    """Every strategy on these nodes, with the number of workers at which it is worth most."""
    least, most = bounds(asked.spec)
    return weigh(asked.work, machines, asked.basis, least, most)


def situation_of(asked: Asked, nodes: int) -> str:
    """The class of the job on so many nodes."""
    analysis = asked.analysis
    return situation(analysis.profile.parameters, analysis.samples, nodes, asked.basis.network.round_trip_s)


def decide(
    asked: Asked, machines: Sequence[Machine], weighed: Sequence[Weighed], draw: Random | None = None
) -> Decision | None:
    """By the cost model and what was learned; None when no strategy can be used."""
    here = situation_of(asked, len(machines))
    choice = choose(weighed, asked.known, here, draw)
    return Decision(choice, weighed, here) if choice is not None else None


def decided(asked: Asked, machines: Sequence[Machine], made: Decision, workers: int) -> training_pb2.JobPlan:
    """What a plan says of a decision for these nodes, by which a job has so many workers at most."""
    spec, here = asked.spec, made.situation
    fewest = _fewest(asked, machines, made.choice.weighed.estimate)
    _, computed = needs(spec, asked.analysis, fewest)
    waits = fewest.workers > max(1, spec.resources.min_workers) and not spec.resources.memory_bytes
    gpu_bytes = spec.resources.gpu_memory_bytes or computed.gpu_memory_bytes
    return training_pb2.JobPlan(
        strategy=training_pb2.Strategy.ValueType(made.strategy),
        reason=why(made.choice, made.weighed, asked.known, "" if asked.named else here),
        workers=workers,
        counts=_counts(asked, made.strategy, workers),
        memory_bytes=spec.resources.memory_bytes or computed.memory_bytes,
        gpu_memory_bytes=gpu_bytes if asked.work.gpu else 0,
        options=options(made.weighed, made.choice, asked.known, here),
        situation=here,
        explored=made.choice.explored,
        computed=computed,
        from_workers=fewest.workers if waits else 0,
    )


def _fewest(asked: Asked, machines: Sequence[Machine], chosen: Estimate) -> Estimate:
    """What a worker takes when the job is left with as few as these nodes let it go on with: it is given so much from
    the start, as each takes more when fewer share the model. One that is alone trains as `single` does."""
    least, _ = bounds(asked.spec)
    smallest = sorted(machines, key=lambda machine: (machine.gpu_memory_bytes, machine.memory_bytes))
    for count in range(least, chosen.workers) if asked.work.rounds is None else ():
        strategy = chosen.strategy if count > 1 else training_pb2.STRATEGY_SINGLE
        tried = estimate(strategy, asked.work, smallest[:count], asked.basis)
        if not tried.refused:
            return tried
    return chosen


def _counts(asked: Asked, strategy: int, most: int) -> list[int]:
    """The numbers of workers, up to `most`, that a strategy can be used with; none where each can be.

    What a job has after a loss, or finds free, is any number: it is given as many as can share its layers.
    """
    least, _ = bounds(asked.spec)
    if strategy != training_pb2.STRATEGY_TENSOR:
        return []
    can = [count for count in range(least, most + 1) if count == 1 or usable(asked.work.pairs, count)]
    return can if len(can) < most + 1 - least else []
