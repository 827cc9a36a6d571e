"""What the leader judges rollouts by: the meter's windows of the versions, held against each other by the gates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.advance import HELD, HOLDING, RUNNING, WATCHING, Judged
from coordinator.rollout.course import hold_s, weighted
from coordinator.rollout.gates import judge
from coordinator.rollout.rego import PolicyError
from coordinator.rollout.timing import JUDGE_S
from coordinator.rollout.window import Window
from coordinator.state import State

_NOT_YET = -1
"""In place of a step: before the first one holds."""
WATCHED_S = 60.0
"""Length of the window that is held against the frozen one after the last step, in seconds."""


class Windows(Protocol):
    """The meter, as far as it is needed here."""

    def begin(self, name: str) -> None:
        """Counts all versions of a model from now on."""

    def windows(self, name: str) -> Mapping[str, Window]:
        """What each version did since then."""

    def sliding(self, name: str, seconds: float) -> Mapping[str, Window]:
        """What each version did in about the last so many seconds, and not before then."""


@dataclass
class _Case:
    """One rollout between two beginnings of its measurements."""

    key: tuple[str, int, int]
    """(rollout's id, step, nanoseconds at which its phase began)."""
    needs_frozen: bool = False
    """The old version gets no requests any more."""
    frozen: Window | None = None
    """What it did while it still had them."""
    at: float = -JUDGE_S
    judged: Judged | None = None


@dataclass
class Judging:
    """Remembers when each step began to be measured, and what was judged last."""

    meter: Windows
    clock: Callable[[], float] = time.monotonic
    _cases: dict[str, _Case] = field(default_factory=dict, init=False)

    async def judge(self, state: State, rollout: rollout_pb2.Rollout) -> Judged | None:
        """The judgement of what was measured since the step's share moved, at most JUDGE_S old.

        None when nothing is judged: by the gates, because nothing has moved yet, or because what it would be held
        against was measured by a leader that is gone.
        """
        if rollout.spec.gates.none or rollout.state not in (RUNNING, HELD):
            return None
        case = self._case(rollout)
        if case.key[1] == _NOT_YET or (case.needs_frozen and case.frozen is None):
            return None
        if self.clock() - case.at >= JUDGE_S:
            case.judged, case.at = await self._judged(rollout, case), self.clock()
        return case.judged

    def comparisons(self, name: str) -> Sequence[rollout_pb2.Comparison]:
        """What the last judgement of a deployment's rollout rested on."""
        case = self._cases.get(name)
        return case.judged.comparisons if case is not None and case.judged is not None else ()

    def forget(self) -> None:
        """Of all rollouts: another coordinator leads."""
        self._cases.clear()

    def _case(self, rollout: rollout_pb2.Rollout) -> _Case:
        """The present one, made anew when another step holds: its measurements begin then."""
        name, case = rollout.spec.name, self._cases.get(rollout.spec.name)
        same = case is not None and case.key[0] == rollout.id
        holding = rollout.phase in (HOLDING, WATCHING)
        key = (rollout.id, rollout.step if holding else _NOT_YET, rollout.since.ToNanoseconds() if holding else 0)
        if case is not None and same and (case.key == key or not holding):
            return case
        old, _ = _versions(rollout)
        needs_frozen = holding and old not in weighted(rollout.steps[rollout.step].targets)
        frozen = None
        if needs_frozen and case is not None and same:
            frozen = case.frozen or self.meter.windows(name).get(old)
        self.meter.begin(name)
        self._cases[name] = _Case(key, needs_frozen, frozen)
        return self._cases[name]

    async def _judged(self, rollout: rollout_pb2.Rollout, case: _Case) -> Judged:
        name, (base, others) = rollout.spec.name, _versions(rollout)
        watched = rollout.phase == WATCHING
        windows = self.meter.sliding(name, WATCHED_S) if watched else self.meter.windows(name)
        found = [
            await _one(rollout, windows.get(base, Window()), version, windows.get(version, Window()), case.frozen)
            for version in others
        ]
        return _worst(found)


async def _one(
    rollout: rollout_pb2.Rollout, before: Window, version: str, now: Window, frozen: Window | None
) -> Judged:
    step, stages = rollout.steps[rollout.step], sum(hold_s(each) > 0 for each in rollout.steps)
    weights = {target.version: target.weight for target in step.targets}
    share = weights.get(version, 0) / 100 if 0 < weights.get(version, 0) < 100 else None
    try:
        found = await asyncio.to_thread(
            judge, rollout.spec.gates, before, now, frozen, share=share, stages=stages + (frozen is not None)
        )
    except PolicyError as error:
        return Judged(rollout_pb2.VERDICT_INCONCLUSIVE, broken=str(error))
    named = rollout.spec.WhichOneof("strategy") == "experiment"
    return Judged(
        rollout_pb2.Verdict.Value(rollout_pb2.Verdict.Name(found.verdict)),
        f"{version}: {found.reason}" if named else found.reason,
        [_of(version, each) for each in found.comparisons] if named else found.comparisons,
    )


def _of(version: str, comparison: rollout_pb2.Comparison) -> rollout_pb2.Comparison:
    made = rollout_pb2.Comparison(version=version)
    made.MergeFrom(comparison)
    return made


def _worst(found: Sequence[Judged]) -> Judged:
    """One of the arms that fails, else one without telling, else one that passes; with the comparisons of all."""
    order = (rollout_pb2.VERDICT_FAIL, rollout_pb2.VERDICT_INCONCLUSIVE, rollout_pb2.VERDICT_PASS)
    worst = min(found, key=lambda each: order.index(each.verdict))
    reasons = [each.reason for each in found if each.verdict == worst.verdict and each.reason]
    comparisons = [comparison for each in found for comparison in each.comparisons]
    return replace(worst, reason="; ".join(reasons), comparisons=comparisons)


def _versions(rollout: rollout_pb2.Rollout) -> tuple[str, list[str]]:
    """(what others are held against, those others)."""
    (old,) = sorted(weighted(rollout.before.targets))[:1]
    arms = [arm.version for arm in rollout.spec.experiment.arms]
    if rollout.spec.WhichOneof("strategy") != "experiment":
        return old, [rollout.spec.version]
    base = old if old in arms else arms[0]
    return base, [version for version in arms if version != base]
