"""How the chooser fares against fixed choices, on the cost model: `python -m training.strategy.simulate --help`.

Jobs come with models, data, nodes and networks drawn at random. What each strategy would earn is the cost model's word
times something that the chooser does not know: how well this mesh really runs each kind of strategy (`SKEW`), and noise
from job to job. It sees the model's word, earns the truth of what it chose, and learns from that alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean, stdev

from meshkit.qtable import FAILED, Table
from training.analyse.classes import situation
from training.plan.tensor import Pair, Step
from training.strategy.choose import choose
from training.strategy.model import Basis, Machine, Network, Part, Work
from training.strategy.weigh import Weighed, actions, weigh

SKEW: Mapping[str, float] = {"single": 1.0, "data": 0.75, "model": 0.6, "pipeline": 1.25, "federated": 1.0}
"""The truth over the cost model's word, for a mesh on which it is wrong: messages cost more, pipelines do better."""
NOISE = 0.1
"""Standard deviation of the logarithm of what one job earns: shared machines are no stopwatch."""
FIXED = ("single", "data", "model", "pipeline")
_GIB = 1 << 30


@dataclass(frozen=True)
class SimulatedJob:
    """A job that came, with what each action would truly earn on average; an action that cannot run is not there."""

    situation: str
    weighed: Sequence[Weighed]
    truth: Mapping[str, float]

    @property
    def best(self) -> str:
        """The action that truly earns most."""
        return max(self.truth, key=lambda action: self.truth[action])


@dataclass
class Tally:
    """What one way of choosing earned."""

    rewards: list[float] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)
    """What the best would have earned beyond it, noise left out."""
    right: list[bool] = field(default_factory=list)

    def add(self, job: SimulatedJob, action: str, noise: float) -> float:
        """Counts a choice and gives its reward; one that cannot run fails."""
        earned = job.truth[action] * noise if action in job.truth else FAILED
        self.rewards.append(earned)
        self.regrets.append(job.truth[job.best] - job.truth.get(action, FAILED))
        self.right.append(action == job.best)
        return earned


def draw_job(random: Random, skew: Mapping[str, float] = SKEW) -> SimulatedJob:
    """A job: 1e4 to 1e9 parameters, 1e3 to 1e6 samples, 2 to 12 nodes, 0.1 to 30 ms a round trip."""
    while True:
        job = _drawn(random, skew)
        if job.truth:
            return job


def run(jobs: int, seed: int, skew: Mapping[str, float] = SKEW, *, plain: bool = False) -> dict[str, Tally]:
    """Gives the same jobs to every way of choosing: each fixed action, the rule, the chooser. Tallies by name.

    "rule" is the chooser with an empty table, "learned" learns from what it earns;
    `plain` has it forget what the cost model had said, so that a value counts as it is. All get the same noise.
    """
    random, draw = Random(seed), Random(seed + 1)  # noqa: S311 - a simulation
    known, empty = Table(), Table()
    tallies = {name: Tally() for name in (*FIXED, "rule", "learned")}
    for _ in range(jobs):
        job = draw_job(random, skew)
        noise = math.exp(random.gauss(0, NOISE))
        for action in FIXED:
            tallies[action].add(job, action, noise)
        tallies["rule"].add(job, _chosen(job, empty, None), noise)
        action = _chosen(job, known, draw)
        earned = tallies["learned"].add(job, action, noise)
        said = 0.0 if plain else actions(job.weighed)[action].value
        known = known.update(job.situation, action, earned, predicted=said)
    return tallies


def _chosen(job: SimulatedJob, table: Table, draw: Random | None) -> str:
    choice = choose(job.weighed, table, job.situation, draw)
    assert choice is not None
    return choice.weighed.action


def _drawn(random: Random, skew: Mapping[str, float]) -> SimulatedJob:
    parameters = int(10 ** random.uniform(4, 9))
    samples = int(10 ** random.uniform(3, 6))
    nodes = random.randint(2, 12)
    network = Network(random.choice((1.25e8, 1.25e9, 1.25e10)), 10 ** random.uniform(-4, -1.5))
    machines = [Machine(memory_bytes=random.choice((4, 8, 16)) * _GIB)] * nodes
    weighed = weigh(_work(parameters, samples, random), machines, Basis(1e11, 1e-3, network), 1, nodes)
    truth = {action: one.value * skew[action] for action, one in actions(weighed).items()}
    return SimulatedJob(situation(parameters, samples, nodes, network.latency_s), weighed, truth)


def _work(parameters: int, samples: int, random: Random) -> Work:
    """A chain of equal square layers, each used at 1 to 64 places of a sample, as tokens and pixels use theirs."""
    count = random.choice((4, 8, 16))
    width = max(8, 16 * round(math.sqrt(parameters / count) / 16))
    numbers, places = count * width * width, 2 ** random.randint(0, 6)
    layer = Part(2.0 * width * width * places, 4.0 * width * width, 4.0 * width * places)
    steps = [Step(str(at), "linear", width, width, bias=False) for at in range(count)]
    return Work(
        flops=2.0 * numbers * places,
        parameter_bytes=4.0 * numbers,
        activation_bytes=8.0 * width * places * count,
        batch=random.choice((32, 128, 512)),
        samples=samples,
        parts=[layer] * count,
        pairs=[Pair(one, other) for one, other in zip(steps[::2], steps[1::2], strict=True)],
        places=places,
        pairs_bytes=4.0 * numbers,
        units=count,
        unit_bytes=4.0 * width * width,
    )


def report(jobs: int, seeds: int, skew: Mapping[str, float] = SKEW, *, plain: bool = False) -> list[str]:
    """Lines of a table: mean reward over all jobs and over the last quarter, share of best choices there, regret."""
    runs = [run(jobs, seed, skew, plain=plain) for seed in range(seeds)]
    last = slice(-(jobs // 4), None)
    lines = [f"{'choice':10} {'reward':>14} {'last quarter':>14} {'best choice':>12} {'regret a job':>13}"]
    for name in (*FIXED, "rule", "learned"):
        mine = [tallies[name] for tallies in runs]
        whole = _mean([fmean(one.rewards) for one in mine])
        end = _mean([fmean(one.rewards[last]) for one in mine])
        right = fmean(fmean(one.right[last]) for one in mine)
        regret = fmean(fmean(one.regrets[last]) for one in mine)
        lines.append(f"{name:10} {whole:>14} {end:>14} {right:>12.0%} {regret:>13.3f}")
    tenths = regret_by_tenth([tallies["learned"] for tallies in runs])
    return [*lines, "learned, regret a job by tenth of the jobs: " + " ".join(f"{one:.3f}" for one in tenths)]


def regret_by_tenth(tallies: Sequence[Tally]) -> list[float]:
    """Mean regret a job in the first tenth of the jobs, the second ..., over several runs."""
    size = max(1, len(tallies[0].regrets) // 10)
    return [fmean(fmean(one.regrets[at * size : (at + 1) * size]) for one in tallies) for at in range(10)]


def _mean(values: Sequence[float]) -> str:
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.2f} ± {spread:.2f}"


def main(arguments: list[str]) -> int:
    """Prints the table of a simulation."""
    parser = argparse.ArgumentParser(prog="python -m training.strategy.simulate", description=__doc__)
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--exact", action="store_true", help="the cost model tells the truth")
    parser.add_argument("--plain", action="store_true", help="values of the table count as they are")
    given = parser.parse_args(arguments)
    skew = dict.fromkeys(SKEW, 1.0) if given.exact else SKEW
    sys.stdout.write("\n".join(report(given.jobs, given.seeds, skew, plain=given.plain)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
