"""What simulated rollouts come to in figures, beside the bars that they are held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from coordinator.rollout.calibrate import Judge, Outcome, Scenario, naive_judge, rollout, scenarios, sequential_judge
from coordinator.rollout.margins import FALSE_ALARM, STAGES

LOOKS_S = (10, 1)
"""Seconds between looks: as often as the bars ask for, and ten times as often."""
MEDIAN_S = 30.0
"""A bad version is taken back sooner than this, in the median, at 100 requests/s and 10 %."""
_LEVEL = 0.95


@dataclass(frozen=True)
class Figures:
    """One scenario, looked at so often, by one judge."""

    scenario: Scenario
    judge: str
    """sequential or naive."""
    rollouts: int
    taken_back: int
    held: int
    """Rollouts with a step that ended without telling."""
    median_s: float | None
    """Until it was taken back, of all rollouts of a bad version; None when less than half were."""
    p90_s: float | None
    """The same that nine of ten were taken back by."""
    promoted_s: float | None
    """The median time of those that were promoted."""

    @property
    def share(self) -> float:
        """Of the rollouts that were taken back: right of a bad version, a false alarm otherwise."""
        return self.taken_back / self.rollouts

    @property
    def interval(self) -> tuple[float, float]:
        """Of that share, at 95 %."""
        return clopper_pearson(self.taken_back, self.rollouts)

    @property
    def good(self) -> bool | None:
        """Whether the bar is met; None where there is none: naive tests are shown for comparison."""
        if self.judge != "sequential":
            return None
        if self.scenario.worse:
            return self.median_s is not None and self.median_s < MEDIAN_S
        return self.share <= FALSE_ALARM


def clopper_pearson(hits: int, of: int) -> tuple[float, float]:
    """The exact interval of a share at 95 % (C. Clopper, E. Pearson, Biometrika 1934)."""
    from scipy import special

    tail = (1 - _LEVEL) / 2
    low = float(special.betaincinv(hits, of - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, of - hits, 1 - tail)) if hits < of else 1.0
    return low, high


def calibrate(rollouts: int, seed: int, advance: Callable[[int], None], *, share_known: bool = True) -> list[Figures]:
    """Simulates every scenario at every pace of looks; `advance` is told of rollouts that are done."""
    judges: dict[str, Judge] = {
        "sequential": sequential_judge(STAGES, share_known=share_known),
        "naive": naive_judge,
    }
    found = []
    for paces in zip(*(scenarios(look_s) for look_s in LOOKS_S), strict=True):
        rows = [(scenario, name) for scenario in paces for name in judges]
        outcomes: dict[tuple[Scenario, str], list[Outcome]] = {row: [] for row in rows}
        for number in range(rollouts):  # all rows see one rollout's requests before the next one's are drawn
            for scenario, name in rows:
                outcomes[scenario, name].append(rollout(scenario, judges[name], number, seed))
                advance(1)
        found += [figures(scenario, name, outcomes[scenario, name]) for scenario, name in rows]
    return found


def runs(rollouts: int) -> int:
    """How many rollouts that simulates in all."""
    return rollouts * len(LOOKS_S) * len(scenarios(1)) * 2


def figures(scenario: Scenario, judge: str, outcomes: Sequence[Outcome]) -> Figures:
    """Sums outcomes up. Raises ValueError for none."""
    if not outcomes:
        raise ValueError("no rollout was simulated")
    times = sorted(each.seconds for each in outcomes if each.taken_back)
    promoted = [each.seconds for each in outcomes if not each.taken_back and not each.held]
    return Figures(
        scenario,
        judge,
        len(outcomes),
        len(times),
        sum(each.held for each in outcomes),
        _by(times, len(outcomes), 0.5),
        _by(times, len(outcomes), 0.9),
        median(promoted) if promoted else None,
    )


def _by(times: Sequence[int], of: int, share: float) -> float | None:
    """When that share of all rollouts had been taken back; those never taken back count as later than any."""
    place = -(-int(1000 * share * of) // 1000) - 1
    return float(times[place]) if place < len(times) else None
