"""The plan of a job from what was analysed, the nodes that there are and what was learned: a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from aimesh.training.v1 import training_pb2
from meshkit import qtable
from training.analyse.analysis import Analysis
from training.strategy.choose import Choice
from training.strategy.decide import Asked, Decision, decide, decided, situation_of, weighed_for
from training.strategy.describe import basis_of, needs, refusal
from training.strategy.growth import least_that_can, most_workers, wider_plans
from training.strategy.model import Machine
from training.strategy.weigh import Weighed, alone_samples_per_s, best_count, value_of
from training.strategy.work import Nodes, bounds, machines_of, steps_of, work_of


def plan_job(
    spec: training_pb2.JobSpec,
    analysis: Analysis,
    nodes: Nodes,
    table: training_pb2.StrategyTable,
    draw: Random | None = None,
) -> training_pb2.JobPlan:
    """The plan of a job: strategy, workers, memory, and every strategy that was weighed with its time and value.

    `nodes` are those that could take workers; without any, as many as the job asks for are assumed, all alike. A job
    that names its strategy and finds a single node free begins there, and grows when others are; one that does not has
    in `wider` how it goes on when others are, and one that those free cannot train says for how many it waits. `draw`
    makes the chooser try something new now and then; without it the best is taken. Raises InvalidInputError
    (STRATEGY_REFUSED) when the strategy that the job names, or every one, cannot be used, with the reason.
    """
    asked = Asked(spec, analysis, work_of(spec, analysis), qtable.from_proto(table))
    least, most = bounds(spec)
    machines = machines_of(nodes, most)
    if asked.named and len(machines) == 1 and least == 1:
        machines *= most
    weighed = weighed_for(asked, machines)
    made = _named(asked, machines, weighed) if asked.named else decide(asked, machines, weighed, draw)
    if made is not None and made.choice.weighed.usable:
        return _plan(asked, machines, made)
    if (later := least_that_can(asked, machines)) is None:
        raise refusal(asked.named, weighed)
    plan = _plan(asked, *later)
    plan.from_workers = plan.from_workers or later[1].workers
    plan.reason += f"; on the {len(machines)} free now: {refusal(0, weighed).message}"
    return plan


def _named(asked: Asked, machines: Sequence[Machine], weighed: Sequence[Weighed]) -> Decision:
    """The strategy that the job names, with as many workers as it may have and can use: the job knows why."""
    least, most = bounds(asked.spec)
    alone = alone_samples_per_s(asked.work, machines, asked.basis)
    found = next(one for one in weighed if one.strategy == asked.named)
    for count in range(min(most, len(machines)), least - 1, -1):
        tried = best_count(asked.named, asked.work, machines, asked.basis, count, count)
        if tried.usable:
            found = Weighed(tried.estimate, value_of(tried.estimate, asked.work, alone))
            break
    return Decision(Choice(found, found.value, 0), weighed, situation_of(asked, len(machines)))


def _plan(asked: Asked, machines: Sequence[Machine], made: Decision) -> training_pb2.JobPlan:
    spec, analysis, chosen = asked.spec, asked.analysis, made.choice.weighed.estimate
    defaults, _ = needs(spec, analysis, chosen)
    plan = training_pb2.JobPlan(
        model=analysis.profile,
        samples=analysis.samples,
        holdout=analysis.holdout,
        steps=steps_of(spec, analysis.samples, chosen.strategy),
        defaults=defaults,
        basis=basis_of(analysis.basis, len(machines)),
        alone_samples_per_s=alone_samples_per_s(asked.work, machines, analysis.basis),
        wider=wider_plans(asked, machines, made),
    )
    plan.MergeFrom(decided(asked, machines, made, most_workers(asked, chosen, machines)))
    return plan
