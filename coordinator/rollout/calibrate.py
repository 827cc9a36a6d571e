"""Simulates whole canary rollouts and judges them as the leader does: how often a good version is taken back, and how
soon a bad one.

Nothing in here is fitted to the tests: requests come as a Poisson process, each goes to the new version by chance, and
takes as long as a lognormal time with a tail says. All is drawn from one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.compare import compare
from coordinator.rollout.stats import fixed
from coordinator.rollout.stats.sequential import Counts
from coordinator.rollout.verdict import verdict
from coordinator.rollout.window import BUCKETS_AN_OCTAVE, Window

Ints = npt.NDArray[np.int64]
_BUCKETS = 27 * BUCKETS_AN_OCTAVE
_EARLIER_S = 5
"""Seconds that the old version was seen for before the first step: a model is seldom loaded in less."""
_NAIVE = 0.05
"""The level of each naive test."""


@dataclass(frozen=True)
class Latency:
    """Lognormal times, of which a share is stalled besides."""

    median_ms: float = 20.0
    sigma: float = 0.5
    stalled: float = 0.01
    """Share of the requests with a lognormal stall on top, 0 to 1."""
    stall_ms: float = 60.0
    """The stall's median."""
    stall_sigma: float = 0.7

    def draw(self, count: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """Times of `count` requests in milliseconds."""
        times = self.median_ms * np.exp(self.sigma * generator.standard_normal(count))
        stalls = self.stall_ms * np.exp(self.stall_sigma * generator.standard_normal(count))
        return np.asarray(times + stalls * (generator.random(count) < self.stalled))


@dataclass(frozen=True)
class Version:
    """How a version behaves."""

    errors: float = 0.001
    """Share of its requests that fail, 0 to 1."""
    latency: Latency = field(default_factory=Latency)


@dataclass(frozen=True)
class Scenario:
    """A rollout to simulate."""

    name: str
    new: Version = field(default_factory=Version)
    old: Version = field(default_factory=Version)
    steps: tuple[int, ...] = (5, 25, 50, 100)
    """Percent of the requests."""
    hold_s: int = 30
    longest_s: int = 120
    """A step that is not told apart by then is given up: the rollout is held."""
    look_s: int = 10
    requests_s: float = 100.0
    storm: tuple[int, int, float] = (0, 0, 0.0)
    """From and until which second of each step requests fail besides, of both versions, and with what share."""
    worse: bool = False
    """Whether the new version is: taking it back is right then."""


@dataclass(frozen=True)
class Outcome:
    """What became of one rollout."""

    taken_back: bool
    seconds: int
    """Until it was taken back, promoted or held, all steps together."""
    held: bool = False


Judge = Callable[[Window, Window, Window, float], rollout_pb2.Verdict.ValueType]
"""What the windows (before, now, frozen) and the share come to."""


def sequential_judge(stages: int, *, share_known: bool = True, earlier_known: bool = True) -> Judge:
    """As the leader judges: it knows the step's share, and what the old version did while the new one was loaded."""
    gates = rollout_pb2.Gates()

    def judge(before: Window, now: Window, frozen: Window, share: float) -> rollout_pb2.Verdict.ValueType:
        earlier, told = frozen if earlier_known else None, share if share_known else None
        return verdict(gates, compare(before, now, earlier, told, together=True), stages).verdict

    return judge


def naive_judge(before: Window, now: Window, _frozen: Window, _share: float) -> rollout_pb2.Verdict.ValueType:
    """As tests of one look would at every look: back when either is below 0.05, on otherwise."""
    errors = fixed.two_proportions(Counts(now.failures, now.requests), Counts(before.failures, before.requests))
    if errors.p_value < _NAIVE:
        return rollout_pb2.VERDICT_FAIL
    if now.requests and before.requests:
        slower = fixed.mann_whitney_histogram(now.latency, before.latency)
        return rollout_pb2.VERDICT_FAIL if slower.p_value < _NAIVE else rollout_pb2.VERDICT_PASS
    return rollout_pb2.VERDICT_INCONCLUSIVE


def rollout(scenario: Scenario, judge: Judge, number: int, seed: int) -> Outcome:
    """What becomes of one. The n-th of a seed sees the same requests whatever the judge and however often it looks."""
    drawn = (seed, number)
    frozen = _windows(scenario.old, scenario.requests_s, scenario.longest_s, (0, 0, 0.0), (*drawn, 0, 0))(_EARLIER_S)
    seconds = 0
    for step, percent in enumerate(each for each in scenario.steps if each < 100):
        ended, result = _step(scenario, judge, percent / 100, frozen, (*drawn, step + 1))
        seconds += ended
        if result == rollout_pb2.VERDICT_FAIL:
            return Outcome(True, seconds)
        if result != rollout_pb2.VERDICT_PASS:
            return Outcome(False, seconds, held=True)
    return Outcome(False, seconds)


def _step(
    scenario: Scenario, judge: Judge, share: float, frozen: Window, drawn: tuple[int, ...]
) -> tuple[int, rollout_pb2.Verdict.ValueType]:
    """When it ended and with what verdict."""
    rate, longest, storm = scenario.requests_s, scenario.longest_s, scenario.storm
    before = _windows(scenario.old, rate * (1 - share), longest, storm, (*drawn, 0))
    now = _windows(scenario.new, rate * share, longest, storm, (*drawn, 1))
    for second in range(scenario.look_s, scenario.longest_s + 1, scenario.look_s):
        result = judge(before(second), now(second), frozen, share)
        if result == rollout_pb2.VERDICT_FAIL:
            return second, result
        if result == rollout_pb2.VERDICT_PASS and second >= scenario.hold_s:
            return second, result
    return scenario.longest_s, rollout_pb2.VERDICT_INCONCLUSIVE


@lru_cache(maxsize=16)
def _windows(
    version: Version, requests_s: float, longest_s: int, storm: tuple[int, int, float], drawn: tuple[int, ...]
) -> Callable[[int], Window]:
    """A version's window from a step's beginning until a second. Kept: it is looked at by several judges in turn."""
    generator = np.random.default_rng(drawn)
    arrivals = np.cumsum(generator.poisson(requests_s, longest_s))
    count = int(arrivals[-1])
    times = version.latency.draw(count, generator)
    buckets = np.clip(np.log2(times * 1000) * BUCKETS_AN_OCTAVE, 0, _BUCKETS - 1).astype(np.int64)
    chances = np.full(count, version.errors)
    start, end, share_failing = storm
    if end > start:
        chances[(arrivals[start - 1] if start else 0) : arrivals[end - 1]] += share_failing
    failures = np.concatenate([[0], np.cumsum(generator.random(count) < chances)])

    def until(second: int) -> Window:
        requests = int(arrivals[min(second, longest_s) - 1])
        counts = np.bincount(buckets[:requests]).tolist()
        return Window(
            seconds=float(second),
            requests=requests,
            failures=int(failures[requests]),
            latency={bucket: count for bucket, count in enumerate(counts) if count},
        )

    return until


def p99_ms(latency: Latency, seed: int = 0) -> float:
    """Of a million draws."""
    return float(np.quantile(latency.draw(1_000_000, np.random.default_rng(seed)), 0.99))


def scenarios(look_s: int) -> tuple[Scenario, ...]:
    """Those that `aimesh rollout calibrate` prints: the same version twice, and bad ones on a tenth of the requests."""
    same = Scenario("A/A: the same version", look_s=look_s)
    tenth = replace(same, steps=(10, 100), worse=True)
    usual = same.old.latency
    slow = replace(usual, median_ms=3 * usual.median_ms, stall_ms=3 * usual.stall_ms)
    return (
        same,
        replace(same, name="A/A in a storm: 20 % of both fail for 10 s", storm=(5, 15, 0.2)),
        replace(tenth, name="A/B: 5 % errors", new=Version(errors=0.05)),
        replace(tenth, name="A/B: 3x p99, every request 3x", new=Version(latency=slow)),
        replace(tenth, name="A/B: 3x p99, 5 % stall, same median", new=Version(latency=LONGER_TAIL)),
    )


LONGER_TAIL = Latency(stalled=0.05, stall_ms=150.0, stall_sigma=0.35)
"""Its p99 is three times the usual one's, and its median 3 % more."""
