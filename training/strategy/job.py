"""The plan of a job from what was analysed, the nodes that there are and what was learned: a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from aimesh.training.v1 import training_pb2
from meshkit import qtable
from meshkit.qtable import Table
from training.analyse.analysis import Analysis
from training.analyse.classes import situation
from training.strategy.choose import Choice, choose
from training.strategy.cost import STRATEGIES
from training.strategy.describe import basis_of, needs, options, refusal, why
from training.strategy.growth import counts_of, most_workers, wider_plans
from training.strategy.model import Basis, Machine, Work
from training.strategy.weigh import Weighed, alone_samples_per_s, best_count, value_of, weigh
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
    in `wider` how it goes on when others are. `draw` makes the chooser try something new now and then; without it the
    best is taken. Raises InvalidInputError (STRATEGY_REFUSED) when the strategy that the job names, or every one,
    cannot be used, with the reason.
    """
    least, most = bounds(spec)
    named = spec.strategy if spec.strategy in STRATEGIES else 0
    machines = machines_of(nodes, most)
    if named and len(machines) == 1 and least == 1:
        machines *= most
    work = work_of(spec, analysis)
    weighed = weigh(work, machines, analysis.basis, least, most)
    known = qtable.from_proto(table)
    trip_s = analysis.basis.network.round_trip_s
    here = situation(analysis.profile.parameters, analysis.samples, len(machines), trip_s)
    choice = _named(named, weighed, work, machines, analysis.basis, least, most) if named else None
    choice = choice or choose(weighed, known, here, draw)
    if choice is None or (named and not choice.weighed.usable):
        raise refusal(named, weighed)
    return _plan(spec, analysis, work, machines, weighed, choice, known, here)


def _named(
    named: int, weighed: Sequence[Weighed], work: Work, machines: Sequence[Machine], basis: Basis, least: int, most: int
) -> Choice | None:
    """The strategy that the job names, with as many workers as it may have and can use: the job knows why."""
    alone = alone_samples_per_s(work, machines, basis)
    for count in range(min(most, len(machines)), least - 1, -1):
        tried = best_count(named, work, machines, basis, count, count)
        if tried.usable:
            return Choice(Weighed(tried.estimate, value_of(tried.estimate, work, alone)), tried.value, 0)
    found = next(one for one in weighed if one.strategy == named)
    return Choice(found, found.value, 0)


def _plan(
    spec: training_pb2.JobSpec,
    analysis: Analysis,
    work: Work,
    machines: Sequence[Machine],
    weighed: Sequence[Weighed],
    choice: Choice,
    known: Table,
    here: str,
) -> training_pb2.JobPlan:
    chosen = choice.weighed.estimate
    defaults, computed = needs(spec, analysis, chosen)
    gpu_bytes = spec.resources.gpu_memory_bytes or computed.gpu_memory_bytes
    workers = most_workers(spec, chosen, work, machines, analysis.basis)
    return training_pb2.JobPlan(
        strategy=training_pb2.Strategy.ValueType(chosen.strategy),
        reason=why(choice, weighed, known, "" if spec.strategy in STRATEGIES else here),
        model=analysis.profile,
        samples=analysis.samples,
        holdout=analysis.holdout,
        steps=steps_of(spec, analysis.samples, chosen.strategy),
        workers=workers,
        counts=counts_of(spec, chosen.strategy, work, workers),
        memory_bytes=spec.resources.memory_bytes or computed.memory_bytes,
        gpu_memory_bytes=gpu_bytes if work.gpu else 0,
        options=options(weighed, choice, known, here),
        situation=here,
        explored=choice.explored,
        defaults=defaults,
        computed=computed,
        basis=basis_of(analysis.basis, len(machines)),
        alone_samples_per_s=alone_samples_per_s(work, machines, analysis.basis),
        wider=wider_plans(spec, analysis, work, machines, choice, known),
    )
