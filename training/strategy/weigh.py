"""Weighs every strategy on the cost model, each with the number of workers that suits it best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aimesh.training.v1 import training_pb2
from meshkit import qtable
from training.strategy.cost import STRATEGIES, estimate
from training.strategy.model import Basis, Estimate, Machine, Work

GAIN = 1e-9
"""By how much a value must be higher to count as higher: below it is rounding."""
FINE = 64
"""Of so many workers one more or less is weighed; of many times as many, that many times as many."""


@dataclass(frozen=True)
class Weighed:
    """A strategy with its best number of workers."""

    estimate: Estimate
    value: float = 0.0
    """What the cost model says that it earns (meshkit.qtable.reward_of); 1 is one worker alone."""

    @property
    def strategy(self) -> int:
        """Of training_pb2.Strategy."""
        return self.estimate.strategy

    @property
    def usable(self) -> bool:
        """Whether it can be used at all."""
        return not self.estimate.refused

    @property
    def action(self) -> str:
        """Of the chooser's table."""
        return qtable.ACTIONS[self.strategy]


def weigh(work: Work, machines: Sequence[Machine], basis: Basis, least: int, most: int) -> list[Weighed]:
    """Every strategy with `least` to `most` workers, but not more than machines: those that can be used first, the
    one that earns most before the others; of equal ones the simpler."""
    found = [best_count(strategy, work, machines, basis, least, most) for strategy in STRATEGIES]
    return sorted(found, key=lambda one: (not one.usable, -one.value))


def best_count(strategy: int, work: Work, machines: Sequence[Machine], basis: Basis, least: int, most: int) -> Weighed:
    """A strategy with the number of workers that earns most, of equal ones the smaller. Refused with the reason for
    the smallest number when none can be."""
    numbers = counts(strategy, least, min(most, len(machines)))
    if not numbers:
        return Weighed(Estimate(strategy, least, refused=_no_count(strategy, least, len(machines))))
    tried = [_on_best(strategy, work, machines, basis, count) for count in numbers]
    usable = [one for one in tried if not one.refused]
    if not usable:
        return Weighed(tried[0])
    alone = alone_samples_per_s(work, machines, basis)
    weighed = [Weighed(one, value_of(one, work, alone)) for one in usable]
    return max(weighed, key=lambda one: (round(one.value / GAIN) * GAIN, -one.estimate.workers))


def value_of(made: Estimate, work: Work, alone: float) -> float:
    """What an estimate earns, against so many samples a second of one worker alone."""
    return qtable.reward_of(samples_per_s(made, work), alone, made.workers)


def samples_per_s(made: Estimate, work: Work) -> float:
    """Samples a second of all workers together."""
    if made.strategy == training_pb2.STRATEGY_FEDERATED and work.rounds:
        return work.samples * work.rounds.local_epochs * work.rounds.fraction / made.step_s
    return work.batch / made.step_s


def alone_samples_per_s(work: Work, machines: Sequence[Machine], basis: Basis) -> float:
    """Samples a second of one worker on the fastest machine, whether or not its memory would do."""
    fastest = Machine(max(machine.speed for machine in machines))
    made = estimate(training_pb2.STRATEGY_SINGLE, replace(work, refused=None), [fastest], basis)
    return work.batch / made.step_s


def actions(weighed: Sequence[Weighed]) -> Mapping[str, Weighed]:
    """The strategy that stands for each action of the chooser's table: DDP for "data", FSDP where memory wants it."""
    found: dict[str, Weighed] = {}
    for one in sorted(weighed, key=lambda one: STRATEGIES.index(one.strategy)):
        if one.usable:
            found.setdefault(one.action, one)
    return found


def counts(strategy: int, least: int, most: int) -> list[int]:
    """The numbers of workers, ascending, with which a strategy is weighed."""
    if strategy == training_pb2.STRATEGY_SINGLE:
        return [1] if least <= 1 <= most else []
    if strategy == training_pb2.STRATEGY_FEDERATED:
        return [most] if most >= least else []  # every node has data that only it can train on
    return [count for count in range(max(least, 2), most + 1) if count % _step(count) == 0 or count in (least, most)]


def _step(count: int) -> int:
    """Each count below 2 * FINE, then every second one, from twice that on every fourth: thousands cost no minutes."""
    return 1 << max(0, (count // FINE).bit_length() - 1)


def _no_count(strategy: int, least: int, machines: int) -> str:
    if least > machines:
        return f"the job asks for at least {least} workers, {machines} nodes could take one"
    if strategy == training_pb2.STRATEGY_SINGLE:
        return f"the job asks for at least {least} workers"
    return "there is one worker, and nothing to share out" if machines > 1 else "there is one node"


def _on_best(strategy: int, work: Work, machines: Sequence[Machine], basis: Basis, count: int) -> Estimate:
    """On the fastest machines, or on the largest where the fastest have too little memory."""
    fastest = sorted(machines, key=lambda one: -one.speed)[:count]
    made = estimate(strategy, work, fastest, basis)
    if not made.refused:
        return made
    roomy = sorted(machines, key=lambda one: (one.memory_bytes > 0, -one.memory_bytes, -one.speed))[:count]
    other = estimate(strategy, work, roomy, basis)
    return made if other.refused else other
