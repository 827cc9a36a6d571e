"""What the leader judges rollouts by: the meter's windows of the versions, held against each other by the gates."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.course import compared, weighted
from coordinator.rollout.looks import Stage, look
from coordinator.rollout.record import HELD, HOLDING, RUNNING, WATCHING, Judged
from coordinator.rollout.timing import JUDGE_S
from coordinator.rollout.window import Window
from coordinator.state import State

_NOT_YET = -1
"""In place of a step: before the first one holds."""
_ENOUGH = 100
"""Requests whose latencies say where to look for longer ones."""
WATCHED_S = 60.0
"""Length of the windows that follow each other after the last step, in seconds."""


class Windows(Protocol):
    """The meter, as far as it is needed here."""

    @property
    def scores(self) -> Callable[[str, str], Mapping[str, list[float]]]:
        """Asked for a version's scores of its rollout's evaluation, by metric."""

    def begin(self, name: str) -> None:
        """Counts all versions of a model from now on."""

    def windows(self, name: str) -> Mapping[str, Window]:
        """What each version did since then."""

    def latest(self, name: str, every_s: float) -> Mapping[str, Window]:
        """What each version did since the last multiple of so many seconds."""


@dataclass
class _Case:
    """One rollout between two beginnings of its measurements."""

    key: tuple[str, int, int]
    """(rollout's id, step, nanoseconds at which its phase began)."""
    needs_frozen: bool = False
    """The old version gets no requests any more."""
    frozen: Window | None = None
    """What it did before."""
    at: float = -JUDGE_S
    judged: Judged | None = None
    scored: Sequence[tuple[str, tuple[str, ...]]] = ()
    """Before the first step: the metrics by version that the judgement rests on."""


@dataclass
class Judging:
    """Remembers when each step began to be measured, and what was judged last."""

    meter: Windows
    clock: Callable[[], float] = time.monotonic
    _cases: dict[str, _Case] = field(default_factory=dict, init=False)

    async def judge(self, state: State, rollout: rollout_pb2.Rollout) -> Judged | None:
        """The judgement of what was measured since the step's share moved, at most JUDGE_S old.

        Before the first share moves it is that of the evaluation, if there is to be one and it fails. None when nothing
        is judged: by the gates, because nothing has moved yet, or because what it would be held against was measured by
        a leader that is gone.
        """
        if rollout.spec.gates.none or rollout.state not in (RUNNING, HELD):
            return None
        case = self._case(rollout)
        if case.key[1] == _NOT_YET:
            return await self._first(rollout, case)
        if case.needs_frozen and case.frozen is None:
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
        old, _ = compared(rollout)
        needs_frozen = holding and bool(old) and old not in weighted(rollout.steps[rollout.step].targets)
        frozen = _earlier(case, self.meter.windows(name).get(old)) if case is not None and same else None
        self.meter.begin(name)
        self._cases[name] = _Case(key, needs_frozen, frozen)
        return self._cases[name]

    async def _first(self, rollout: rollout_pb2.Rollout, case: _Case) -> Judged | None:
        """What the answers to the evaluation come to before any request: one look, as soon as they are there.

        They are compared where both versions have answered; the policy's word counts in any case.
        """
        gates, (base, others) = rollout.spec.gates, compared(rollout)
        if rollout.step or not gates.HasField("evaluation"):
            return None
        scores = {version: dict(self.meter.scores(rollout.spec.name, version)) for version in (base, *others)}
        if any(metric not in scores[version] for version in others for metric in gates.evaluation.metrics):
            return None
        scored = [(version, tuple(sorted(found))) for version, found in scores.items()]
        if case.scored != scored:
            windows = {version: Window(quality=found) for version, found in scores.items()}
            judged = await asyncio.to_thread(look, rollout, windows, Stage(stages_of(rollout)))
            case.judged, case.scored = replace(judged, reason=f"before its first request: {judged.reason}"), scored
        judged_now = case.judged
        assert judged_now is not None
        failed = judged_now.verdict == rollout_pb2.VERDICT_FAIL
        return judged_now if failed or judged_now.broken else None

    async def _judged(self, rollout: rollout_pb2.Rollout, case: _Case) -> Judged:
        name = rollout.spec.name
        stage = Stage(stages_of(rollout), together=not case.needs_frozen, frozen=case.frozen)
        if rollout.phase != WATCHING:
            return await asyncio.to_thread(look, rollout, self.meter.windows(name), stage)
        # The watch as a whole shows what is little worse or grows slowly, its last minute what has just begun. They
        # share the false alarms: half for the whole, and of the other half each minute its part.
        minutes = math.ceil(rollout.spec.watch.ToNanoseconds() / 1e9 / WATCHED_S)
        halved = replace(stage, stages=2 * stage.stages)
        whole = await asyncio.to_thread(look, rollout, self.meter.windows(name), halved)
        parted = replace(stage, stages=2 * stage.stages * max(1, minutes))
        latest = await asyncio.to_thread(look, rollout, self.meter.latest(name, WATCHED_S), parted)
        only_latest = latest.verdict == rollout_pb2.VERDICT_FAIL and whole.verdict != rollout_pb2.VERDICT_FAIL
        return latest if only_latest else whole


def stages_of(rollout: rollout_pb2.Rollout) -> int:
    """How many measurements that begin anew share a rollout's false alarms."""
    evaluated, watched = rollout.spec.gates.HasField("evaluation"), bool(rollout.spec.watch.ToNanoseconds())
    return max(1, len(rollout.steps) - 1 + evaluated + watched)


def _earlier(case: _Case, latest: Window | None) -> Window | None:
    """What the old version did before a step: in the one before it, where that was enough."""
    if case.needs_frozen or latest is None:
        return case.frozen
    if case.frozen is None or sum(latest.latency.values()) >= _ENOUGH:
        return latest
    return max(case.frozen, latest, key=lambda window: window.requests)
