"""What a plan says of nodes that are not there yet: most workers that help, and how it would go on with more. Pure.

Nobody is there who could be measured: a node that may come is taken to be as fast as the others in the mean, and to
have as much memory as the smallest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from aimesh.training.v1 import training_pb2
from training.strategy.cost import estimate
from training.strategy.decide import Asked, Decision, decide, decided, weighed_for
from training.strategy.model import Estimate, Machine
from training.strategy.weigh import best_count
from training.strategy.work import bounds

MOST_WIDER = 4
"""Plans for more nodes: a job's record, which lies in etcd, has them all."""
ONE_BY_ONE = 16
"""So many more nodes are weighed each; above, at each doubling."""


def wider_plans(asked: Asked, machines: Sequence[Machine], first: Decision) -> list[training_pb2.JobPlan]:
    """The plans that would be made with more nodes, up to the workers that the job may have, the fewest first.

    `first` is the decision for the nodes that there are; nothing is tried on purpose here. Each has another strategy
    than the one before, and begins with all nodes that it was made for. None of a job that has no choice.
    """
    found: list[training_pb2.JobPlan] = []
    last = first.strategy
    for count, made in _with_more(asked, machines):
        if made is None or made.strategy == last or made.workers < count:
            continue
        found.append(_wider(asked, machines, made))
        if len(found) == MOST_WIDER:
            break
        last = made.strategy
    return found


def least_that_can(asked: Asked, machines: Sequence[Machine]) -> tuple[list[Machine], Decision] | None:
    """The decision for as few nodes as can train a job that those that there are cannot: it has to wait for more.

    None of a job that has no choice, that asks for more than there are itself, or that so many as it may have could not
    train either.
    """
    if len(machines) < bounds(asked.spec)[0]:
        return None
    for count, made in _with_more(asked, machines):
        if made is not None:
            return _filled(machines, count), made
    return None


def most_workers(asked: Asked, chosen: Estimate, machines: Sequence[Machine]) -> int:
    """Most workers that help under a strategy, of nodes that are not there yet too: one that joins may be used."""
    least, most = bounds(asked.spec)
    if chosen.strategy == training_pb2.STRATEGY_SINGLE or len(machines) >= most:
        return chosen.workers
    more, work, basis = _filled(machines, most), asked.work, asked.basis
    if asked.spec.strategy == chosen.strategy:
        down = range(most, max(least, chosen.workers), -1)
        can = (count for count in down if not estimate(chosen.strategy, work, more[:count], basis).refused)
        return next(can, chosen.workers)
    return max(best_count(chosen.strategy, work, more, basis, least, most).estimate.workers, chosen.workers)


def _with_more(asked: Asked, machines: Sequence[Machine]) -> Iterator[tuple[int, Decision | None]]:
    """What is decided for more and more nodes; nothing for a job that has no choice."""
    _, most = bounds(asked.spec)
    if not asked.has_choice or len(machines) >= most:
        return
    more = _filled(machines, most)
    for count in _node_counts(len(machines), most):
        yield count, decide(asked, more[:count], weighed_for(asked, more[:count]))


def _wider(asked: Asked, machines: Sequence[Machine], made: Decision) -> training_pb2.JobPlan:
    """What such a plan does not have in common with the first."""
    there = _filled(machines, made.workers)
    plan = decided(asked, there, made, most_workers(asked, made.choice.weighed.estimate, machines))
    chosen = [option for option in plan.options if option.strategy == made.strategy]
    del plan.options[:]
    plan.options.extend(chosen)
    plan.basis.nodes = plan.from_workers = made.workers
    return plan


def _filled(machines: Sequence[Machine], most: int) -> list[Machine]:
    """The machines, and so many more that there are `most`."""
    alike = Machine(
        fmean(machine.speed for machine in machines),
        min(machine.memory_bytes for machine in machines),
        min(machine.gpu_memory_bytes for machine in machines),
    )
    return [*machines, *[alike] * (most - len(machines))]


def _node_counts(there: int, most: int) -> list[int]:
    """For how many nodes a plan is made, beyond those that are there."""
    beyond = [there + more for more in range(1, ONE_BY_ONE + 1)]
    while beyond[-1] < most:
        beyond.append(2 * beyond[-1])
    return sorted({min(count, most) for count in beyond})
