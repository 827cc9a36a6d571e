"""What the leader measures and judges at which moment: before the first request, while both serve, and afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.advance import advance
from coordinator.rollout.course import compared
from coordinator.rollout.judging import Judging, stages_of
from coordinator.rollout.looks import SPLIT, Stage, look
from coordinator.rollout.record import ACKNOWLEDGING, HOLDING, LOADING, ROLLING_BACK, RUNNING, WATCHING, Judged
from coordinator.rollout.stats.ratio import split_at_any_look
from coordinator.rollout.window import Window
from coordinator.state import State
from tests.unit.rollout.test_compare import window
from tests.unit.rollout.world import NEW, NEWER, OLD, canary, spec, state_of, target

FAIL, UNTOLD, PASS = rollout_pb2.VERDICT_FAIL, rollout_pb2.VERDICT_INCONCLUSIVE, rollout_pb2.VERDICT_PASS
ASKED = rollout_pb2.Gates(evaluation=rollout_pb2.Evaluation(dataset="0" * 64, output="y", metrics=["accuracy"]))


class Told:
    """A meter that says what the test says."""

    def __init__(self) -> None:
        self.now: dict[str, Window] = {}
        self.newest: dict[str, Window] = {}
        self.answers: dict[str, list[float]] = {}
        self.begun = 0

    def scores(self, name: str, version: str) -> dict[str, list[float]]:
        return {"accuracy": self.answers[version]} if version in self.answers else {}

    def begin(self, name: str) -> None:
        self.begun, self.now = self.begun + 1, {}

    def windows(self, name: str) -> dict[str, Window]:
        return self.now

    def latest(self, name: str, every_s: float) -> dict[str, Window]:
        return self.newest


class Case:
    """One rollout, and what the leader thinks of it each second."""

    def __init__(self, wanted: rollout_pb2.RolloutSpec, *steps: tuple[int, int]) -> None:
        self.meter, self.clock = Told(), 0.0
        self.judging = Judging(self.meter, lambda: self.clock)
        self.rollout = rollout_pb2.Rollout(id="r", spec=wanted, state=RUNNING, phase=LOADING)
        self.rollout.before.targets.append(target(OLD))
        for old, new in steps:
            self.rollout.steps.add(targets=[target(OLD, weight=old), target(NEW, weight=new)], percent=new)

    async def at(self, phase: rollout_pb2.Phase.ValueType, step: int = 0) -> Judged | None:
        if (self.rollout.phase, self.rollout.step) != (phase, step):
            self.rollout.phase, self.rollout.step = phase, step
            self.rollout.since.FromNanoseconds(int(self.clock * 1e9))
        self.clock += 1
        return await self.judging.judge(State(), self.rollout)


def gated(**gates: Any) -> Case:
    return Case(canary(10, 100, gates=rollout_pb2.Gates(**gates)), (90, 10), (0, 100))


async def test_a_version_that_answers_wrongly_goes_back_before_its_first_request() -> None:
    case = Case(canary(10, 100, gates=ASKED), (90, 10), (0, 100))
    assert await case.at(LOADING) is None
    case.meter.answers[OLD] = [1.0] * 95 + [0.0] * 5
    assert await case.at(ACKNOWLEDGING) is None, "the new one has not answered yet"
    case.meter.answers[NEW] = [1.0] * 93 + [0.0] * 7
    judged = await case.at(ACKNOWLEDGING)
    assert judged is None, "0.93 of 100 is not surely worse than 0.95, and above 0.85"
    case.meter.answers[NEW] = [1.0] * 60 + [0.0] * 40
    case.judging.forget()
    judged = await case.at(ACKNOWLEDGING)
    assert judged is not None
    assert judged.verdict == FAIL
    assert judged.reason.startswith("before its first request: accuracy is worse")
    mesh = state_of(2, target(OLD))
    found = advance(case.rollout, mesh.deployments["m"], _seen(mesh, judged))
    assert found is not None
    assert (found.rollout.state, found.deployment) == (ROLLING_BACK, None)


async def test_without_the_old_ones_answers_the_policy_speaks() -> None:
    case = Case(canary(10, 100, gates=ASKED), (90, 10), (0, 100))
    case.meter.answers[NEW] = [1.0] * 60 + [0.0] * 40
    judged = await case.at(ACKNOWLEDGING)
    assert judged is not None
    assert judged.reason == "before its first request: accuracy is 0.6, and must be above 0.85"


async def test_the_only_step_is_judged_before_it_too() -> None:
    case = Case(spec(gates=ASKED, rolling=rollout_pb2.Rolling()), (0, 100))
    case.meter.answers = {OLD: [1.0] * 100, NEW: [0.0] * 100}
    judged = await case.at(ACKNOWLEDGING)
    mesh = state_of(2, target(OLD))
    found = advance(case.rollout, mesh.deployments["m"], _seen(mesh, judged))
    assert found is not None
    assert found.rollout.state == ROLLING_BACK


async def test_what_somebody_sent_past_the_gates_is_not_judged_by_them_first() -> None:
    case = Case(canary(10, 100, gates=ASKED), (90, 10), (0, 100))
    case.meter.answers = {OLD: [1.0] * 100, NEW: [0.0] * 100}
    assert await case.at(LOADING, step=1) is None


async def test_nothing_from_before_is_no_error() -> None:
    case = gated()
    del case.rollout.before.targets[:]
    assert compared(case.rollout) == ("", [NEW])
    await case.at(LOADING)
    case.meter.now = {NEW: window(300)}
    judged = await case.at(HOLDING)
    assert judged is not None
    assert "nothing to compare with" in judged.reason


async def test_while_both_serve_the_old_ones_time_before_says_where_to_look() -> None:
    case = gated()
    await case.at(LOADING)
    case.meter.now = {OLD: window(3000, seed=3)}
    await case.at(HOLDING)  # the share has moved: what was before is put aside
    case.clock += 1
    case.meter.now = {OLD: window(900, seed=4), NEW: window(100, slower=2, seed=5)}
    seen = await case.at(HOLDING)
    expected = look(case.rollout, case.meter.now, Stage(1, frozen=window(3000, seed=3)))
    blind = look(case.rollout, case.meter.now, Stage(1))
    assert seen is not None
    assert seen.comparisons == expected.comparisons != blind.comparisons


async def test_the_last_step_is_held_against_what_the_old_one_did_before() -> None:
    case = gated()
    await case.at(LOADING)
    await case.at(HOLDING)
    case.meter.now = {OLD: window(900, seed=4), NEW: window(100, seed=5)}
    case.rollout.spec.watch.seconds = 600
    await case.at(LOADING, step=1)
    await case.at(WATCHING, step=1)
    case.clock += 1
    case.meter.now = case.meter.newest = {NEW: window(900, 300, seed=6)}
    judged = await case.at(WATCHING, step=1)
    assert judged is not None
    assert judged.verdict == FAIL
    assert judged.comparisons[0].before_count == 900
    assert "against an earlier time" in judged.comparisons[0].test


async def test_what_gets_worse_in_the_last_minute_of_a_long_watch_goes_back() -> None:
    case = gated()
    await case.at(LOADING)
    await case.at(HOLDING)
    case.meter.now = {OLD: window(5000, seed=4), NEW: window(500, seed=5)}
    case.rollout.spec.watch.seconds = 3600
    await case.at(WATCHING, step=1)
    case.clock += 1
    case.meter.now = {NEW: window(60_000, 30, seed=6)}
    case.meter.newest = {NEW: window(400, 30, seed=7)}
    judged = await case.at(WATCHING, step=1)
    assert judged is not None
    assert judged.verdict == FAIL
    case.meter.newest, case.clock = {NEW: window(400, 1, seed=7)}, case.clock + 1
    judged = await case.at(WATCHING, step=1)
    assert judged is not None
    assert judged.verdict != FAIL


async def test_a_leader_that_lost_what_was_before_judges_nothing() -> None:
    assert await gated().at(WATCHING, step=1) is None


def test_false_alarms_are_shared_by_all_that_begins_anew() -> None:
    case = Case(canary(10, 50, 100, gates=ASKED), (90, 10), (50, 50), (0, 100))
    case.rollout.spec.watch.seconds = 60
    assert stages_of(case.rollout) == 4, "the evaluation, two steps, the watch"
    assert stages_of(Case(canary(100), (0, 100)).rollout) == 1


def experiment(*percents: int) -> rollout_pb2.Rollout:
    wanted = spec("", gates=rollout_pb2.Gates())
    versions = (OLD, NEW, NEWER)[: len(percents)]
    for version, percent in zip(versions, percents, strict=True):
        wanted.experiment.arms.add(version=version, percent=percent)
    made = rollout_pb2.Rollout(spec=wanted, state=RUNNING, phase=HOLDING)
    made.before.targets.append(target(OLD))
    made.steps.add(
        targets=[target(each, weight=percent) for each, percent in zip(versions, percents, strict=True)], percent=50
    )
    return made


def test_arms_with_other_shares_than_asked_for_tell_nothing() -> None:
    good = {OLD: window(5000, 5, seed=1), NEW: window(5000, 5, seed=2)}
    assert look(experiment(50, 50), good, Stage(1)).verdict == PASS
    askew = {OLD: window(5500, 5, seed=1), NEW: window(4500, 180, seed=2)}
    judged = look(experiment(50, 50), askew, Stage(1))
    assert judged.verdict == UNTOLD
    assert "requests are not split as asked" in judged.reason
    assert "1.1.0 45 % instead of 50 %" in judged.reason
    shown = {each.version: each.now for each in judged.comparisons if each.metric == SPLIT}
    assert shown == {OLD: 0.55, NEW: 0.45}
    wrong = {**askew, NEW: window(4500, 2000, seed=2)}
    assert look(experiment(50, 50), wrong, Stage(1)).verdict == FAIL, "by the policy's own rule"


def test_arms_share_the_false_alarms() -> None:
    """The same difference that fails one arm is not sure enough among many."""
    windows = {OLD: window(2000, 4, seed=1), NEW: window(2000, 38, seed=2), NEWER: window(2000, 4, seed=3)}
    alone, together = experiment(50, 50), experiment(34, 33, 33)
    p = {len(each.spec.experiment.arms): _p(look(each, windows, Stage(1))) for each in (alone, together)}
    assert p[2] < p[3], "Holm's correction over both arms' metrics"


def _p(judged: Judged) -> float:
    assert judged.verdict == FAIL
    return float(judged.reason.partition("p = ")[2].partition(",")[0])


@pytest.mark.parametrize("shares", [(50, 50), (90, 10), (34, 33, 33)])
def test_a_split_as_asked_is_seldom_doubted_however_often_it_is_looked_at(shares: tuple[int, ...]) -> None:
    import numpy as np

    generator = np.random.default_rng(7)
    doubted = 0
    for _ in range(300):
        steps = generator.multinomial(10, np.array(shares) / sum(shares), 200).cumsum(axis=0)
        doubted += any(split_at_any_look(counts, shares) < 0.05 for counts in steps.tolist())
    assert doubted <= 0.05 * 300 + 12
    assert split_at_any_look([4500, 5500], (50, 50)) < 1e-9
    with pytest.raises(ValueError, match="positive"):
        split_at_any_look([1, 2], (1, 0))


def _seen(mesh: State, judged: Judged | None) -> Any:
    from coordinator.rollout.observe import observe

    rollout = rollout_pb2.Rollout(spec=spec())
    return replace(observe(mesh, rollout, 10**9), judged=judged)
