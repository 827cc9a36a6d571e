"""What a plan says of nodes that are not there yet: most workers that help, and how it would go on with more. Pure.

Nobody is there who could be measured: a node that may come is taken to be as fast as the others in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from aimesh.training.v1 import training_pb2
from meshkit.qtable import Table
from training.analyse.analysis import Analysis
from training.analyse.classes import situation
from training.plan.tensor import usable
from training.strategy.choose import Choice, choose
from training.strategy.cost import STRATEGIES, estimate
from training.strategy.describe import needs, options, why
from training.strategy.model import Basis, Estimate, Machine, Work
from training.strategy.weigh import Weighed, best_count, weigh
from training.strategy.work import bounds

MOST_WIDER = 4
"""Plans for more nodes: a job's record, which lies in etcd, has them all."""
ONE_BY_ONE = 16
"""So many more nodes are weighed each; above, at each doubling."""


def wider_plans(
    spec: training_pb2.JobSpec,
    analysis: Analysis,
    work: Work,
    machines: Sequence[Machine],
    first: Choice,
    known: Table,
) -> list[training_pb2.JobPlan]:
    """The plans that would be made with more nodes, up to the workers that the job may have, the fewest first.

    `first` is the choice for the nodes that there are, `known` what finished jobs have taught: nothing is tried on
    purpose here. Each has another strategy than the one before, and begins with all nodes that it was made for. None
    of a job that names its strategy, or whose data leave no choice.
    """
    least, most = bounds(spec)
    if spec.strategy in STRATEGIES or work.rounds is not None or len(machines) >= most:
        return []
    more, last = _filled(machines, most), first.weighed.strategy
    found: list[training_pb2.JobPlan] = []
    for count in _node_counts(len(machines), most):
        trip_s = analysis.basis.network.round_trip_s
        here = situation(analysis.profile.parameters, analysis.samples, count, trip_s)
        weighed = weigh(work, more[:count], analysis.basis, least, count)
        choice = choose(weighed, known, here)
        if choice is None or choice.weighed.strategy == last or choice.weighed.estimate.workers < count:
            continue
        found.append(_wider(spec, analysis, work, machines, weighed, choice, known, here))
        if len(found) == MOST_WIDER:
            break
        last = choice.weighed.strategy
    return found


def most_workers(
    spec: training_pb2.JobSpec, chosen: Estimate, work: Work, machines: Sequence[Machine], basis: Basis
) -> int:
    """Most workers that help under a strategy, of nodes that are not there yet too: one that joins may be used."""
    least, most = bounds(spec)
    if chosen.strategy == training_pb2.STRATEGY_SINGLE or len(machines) >= most:
        return chosen.workers
    more = _filled(machines, most)
    if spec.strategy == chosen.strategy:
        down = range(most, max(least, chosen.workers), -1)
        can = (count for count in down if _can(chosen.strategy, work, more[:count], basis))
        return next(can, chosen.workers)
    return max(best_count(chosen.strategy, work, more, basis, least, most).estimate.workers, chosen.workers)


def counts_of(spec: training_pb2.JobSpec, strategy: int, work: Work, most: int) -> list[int]:
    """The numbers of workers, up to `most`, that a strategy can be used with; none where each can be.

    What a job has after a loss, or finds free, is any number: it is given as many as can share its layers.
    """
    least, _ = bounds(spec)
    if strategy != training_pb2.STRATEGY_TENSOR:
        return []
    can = [count for count in range(least, most + 1) if count == 1 or usable(work.pairs, count)]
    return can if len(can) < most + 1 - least else []


def _wider(
    spec: training_pb2.JobSpec,
    analysis: Analysis,
    work: Work,
    machines: Sequence[Machine],
    weighed: Sequence[Weighed],
    choice: Choice,
    known: Table,
    here: str,
) -> training_pb2.JobPlan:
    """What such a plan does not have in common with the first."""
    chosen = choice.weighed.estimate
    _, computed = needs(spec, analysis, chosen)
    most = most_workers(spec, chosen, work, machines, analysis.basis)
    return training_pb2.JobPlan(
        strategy=training_pb2.Strategy.ValueType(chosen.strategy),
        reason=why(choice, weighed, known, here),
        workers=most,
        counts=counts_of(spec, chosen.strategy, work, most),
        memory_bytes=spec.resources.memory_bytes or computed.memory_bytes,
        gpu_memory_bytes=(spec.resources.gpu_memory_bytes or computed.gpu_memory_bytes) if work.gpu else 0,
        options=[one for one in options(weighed, choice, known, here) if one.strategy == chosen.strategy],
        situation=here,
        computed=computed,
        basis=training_pb2.CostBasis(nodes=chosen.workers),
        from_workers=chosen.workers,
    )


def _filled(machines: Sequence[Machine], most: int) -> list[Machine]:
    """The machines, and so many more that there are `most`."""
    mean = Machine(fmean(machine.speed for machine in machines))
    return [*machines, *[mean] * (most - len(machines))]


def _node_counts(there: int, most: int) -> list[int]:
    """For how many nodes a plan is made, beyond those that are there."""
    beyond = [there + more for more in range(1, ONE_BY_ONE + 1)]
    while beyond[-1] < most:
        beyond.append(2 * beyond[-1])
    return sorted({min(count, most) for count in beyond})


def _can(strategy: int, work: Work, machines: Sequence[Machine], basis: Basis) -> bool:
    return not estimate(strategy, work, machines, basis).refused
