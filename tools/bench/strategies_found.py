"""What came out of the jobs of `tools.bench.strategies`: rewards, regrets, a table, a plot. Pure but for the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table

from aimesh.training.v1 import training_pb2
from meshkit.qtable import ACTIONS, reward_of
from tools.training.status import strategy_word

AUTO, COLD, FIXED, AFTER = "auto", "learning", "fixed", "after"
"""The choice that is left to the mesh; the phases of a run."""
WINDOW = 5
"""Jobs that a running mean is taken over."""


@dataclass(frozen=True)
class Found:
    """One finished job."""

    phase: str
    kind: str
    choice: str
    """What it asked for: a strategy, or auto."""
    strategy: str
    """What it got."""
    workers: int
    explored: bool
    rule: str
    """What the cost model alone would have chosen."""
    predicted: float
    """Reward that the cost model said of what it got."""
    reward: float
    """As it was measured: speed-up by the square root of workers."""
    samples_per_s: float
    seconds: float
    """From its submission to its end."""
    situation: str
    source: str
    """What the cost model went by."""


def found_of(job: training_pb2.Job, phase: str, kind: str, choice: str) -> Found:
    """What a job that succeeded says. Raises InvalidInputError when it measured no speed."""
    plan, speed, workers = job.plan, job.results["samples_per_s"], len(job.attempt.workers)
    chosen = next(one for one in plan.options if one.strategy == plan.strategy)
    rule = max((one for one in plan.options if one.step_s), key=lambda one: one.predicted)
    return Found(
        phase=phase,
        kind=kind,
        choice=choice,
        strategy=strategy_word(plan.strategy),
        workers=workers,
        explored=plan.explored,
        rule=strategy_word(rule.strategy),
        predicted=chosen.predicted,
        reward=reward_of(speed, plan.alone_samples_per_s, workers),
        samples_per_s=speed,
        seconds=(job.ended_at.ToNanoseconds() - job.created_at.ToNanoseconds()) / 1e9,
        situation=plan.situation,
        source=plan.basis.source,
    )


def fixed_rewards(found: Sequence[Found]) -> dict[str, dict[str, list[float]]]:
    """Rewards of the jobs that named their strategy, by kind and strategy."""
    made: dict[str, dict[str, list[float]]] = {}
    for one in found:
        if one.phase == FIXED:
            made.setdefault(one.kind, {}).setdefault(one.strategy, []).append(one.reward)
    return made


def best_of(fixed: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The mean reward of the best fixed strategy of each kind: known only when all have been tried."""
    return {kind: max(fmean(rewards) for rewards in by.values()) for kind, by in fixed.items()}


def rule_rewards(found: Sequence[Found]) -> dict[str, float]:
    """What the cost model's choice earned on the mean, by kind: every job that got that strategy counts."""
    rules: dict[str, str] = {}
    for one in found:
        rules.setdefault(one.kind, one.rule)
    earned = {
        kind: [one.reward for one in found if (one.kind, one.strategy) == (kind, rule)] for kind, rule in rules.items()
    }
    return {kind: fmean(rewards) for kind, rewards in earned.items() if rewards}


def regrets(found: Sequence[Found], best: Mapping[str, float]) -> list[float]:
    """Of each job that was left to the mesh while it learned, in order: what the best fixed strategy earns more."""
    return [best[one.kind] - one.reward for one in found if one.phase == COLD and one.kind in best]


def running(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each value and of those before it, so many at most."""
    return [fmean(values[max(0, at + 1 - window) : at + 1]) for at in range(len(values))]


def thirds(found: Sequence[Found], kind: str) -> tuple[list[Found], list[Found], list[Found]]:
    """The jobs of a kind that were left to the mesh: the first third while it learned, the last third, those after."""
    mine = [one for one in found if one.kind == kind and one.phase == COLD]
    count = max(1, len(mine) // 3)
    return mine[:count], mine[-count:], [one for one in found if one.kind == kind and one.phase == AFTER]


def table(found: Sequence[Found]) -> Table:
    """A row for each kind and choice: jobs, what they got, reward, regret against the best fixed strategy."""
    made = Table(title="Rewards of real jobs: speed-up by the square root of workers", title_justify="left")
    for name in ("jobs of", "choice", "jobs", "got", "cost model said", "reward", "regret a job"):
        made.add_column(name, justify="left" if name in ("jobs of", "choice", "got") else "right")
    fixed = fixed_rewards(found)
    best, rule = best_of(fixed), rule_rewards(found)
    for kind in dict.fromkeys(one.kind for one in found):
        for name in fixed.get(kind, {}):
            mine = [one for one in found if (one.kind, one.phase, one.strategy) == (kind, FIXED, name)]
            made.add_row(*_row(kind, f"always {name}", mine, best))
        named = next(one.rule for one in found if one.kind == kind)
        if kind in rule and kind in best:
            regret = f"{best[kind] - rule[kind]:.2f}"
            made.add_row(kind, "the rule alone", "", named, "", f"{rule[kind]:.2f}", regret)
        parts = zip(("learned, first third", "learned, last third", "after all"), thirds(found, kind), strict=True)
        for name, mine in parts:
            if mine:
                made.add_row(*_row(kind, name, mine, best))
        made.add_section()
    return made


def _row(kind: str, name: str, mine: Sequence[Found], best: Mapping[str, float]) -> list[str]:
    rewards = [one.reward for one in mine]
    spread = f" ± {stdev(rewards):.2f}" if len(rewards) > 1 else ""
    counts = {(one.strategy, one.workers): 0 for one in mine}
    for one in mine:
        counts[one.strategy, one.workers] += 1
    got = ", ".join(f"{count} {strategy} of {workers}" for (strategy, workers), count in counts.items())
    regret = f"{best[kind] - fmean(rewards):.2f}" if kind in best else ""
    said = f"{fmean(one.predicted for one in mine):.2f}"
    return [kind, name, str(len(mine)), got, said, f"{fmean(rewards):.2f}{spread}", regret]


def plot(found: Sequence[Found], path: Path) -> None:
    """Writes a PNG: the reward of each job left to the mesh over the best fixed one's, in order, and running means.

    Imports matplotlib: the extra `report`. Raises OSError when the file cannot be written.
    """
    from matplotlib.figure import Figure

    best = best_of(fixed_rewards(found))
    mine = [one for one in found if one.phase == COLD and best.get(one.kind, 0) > 0]
    shares = [one.reward / best[one.kind] for one in mine]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for action in dict.fromkeys(ACTIONS.values()):
        names = {strategy_word(strategy) for strategy, known in ACTIONS.items() if known == action}
        at = [number for number, one in enumerate(mine, 1) if one.strategy in names]
        if at:
            axes.scatter(at, [shares[number - 1] for number in at], s=18, label=action)
    axes.plot(range(1, len(shares) + 1), running(shares), color="#1a1a1a", linewidth=1, label=f"mean of {WINDOW}")
    axes.axhline(1.0, color="#767676", linewidth=0.7, linestyle="--")
    axes.set_xlabel("jobs left to the mesh", fontsize=9)
    axes.set_ylabel("reward, of the best fixed strategy's", fontsize=9)
    axes.set_ylim(bottom=min(0.0, *shares) if shares else 0.0)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png", dpi=120)
