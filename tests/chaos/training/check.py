"""Holds what happened to a job against what was promised. Pure: a course in, what is wrong with it out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.training.history import Course, Step

TOLERANCE = 1e-5
"""Of a loss: what tests/mesh/training holds strategies to."""
Curve = Mapping[int, float]
"""The loss of each step."""


@dataclass(frozen=True)
class Bars:
    """What a job is held to. Seconds; what is None is not asked of it."""

    state: str = "SUCCEEDED"
    error: str = ""
    """Words that its error has."""
    pause_s: float | None = 10.0
    """No longer between two steps, from the first fault on."""
    again_s: float | None = None
    """The next step comes so long after the last thing was done: of a job that has to wait for it."""
    attempts: int | None = 2
    """How many there were, the first included."""
    failures: int = 1
    """How often it was brought back after a loss."""
    preemptions: int = 0
    """How often it gave its nodes to others."""
    workers: int | None = None
    """Of its last attempt."""
    twice: int = 20
    """Most steps that are made again after a loss. One takes 0.2 s, and every five there is a checkpoint, whose copies
    take their time."""
    unheard_steps: int = 0
    """So many of the steps that were lost may be missing in what the job says: a node that is gone tells nothing."""
    same_curve: bool = True
    """Whether each step's loss is that of a job that nobody disturbed. Not of rounds without a client."""


UNNOTICED = Bars(pause_s=3.0, attempts=1, failures=0, twice=0)
"""Its workers go on as if nothing were."""


def violations(course: Course, bars: Bars, curve: Curve) -> list[str]:
    """Everything that is not as promised; empty when all is. `curve` is that of the job undisturbed."""
    found = [*_ending(course, bars), *_counts(course, bars), *_losses(course, bars, curve), *_lost(course, bars)]
    found += [*_pace(course, bars), *_backwards(course)]
    return [*found, *(f"{process} was left behind" for process in course.left)]


def figures(course: Course) -> dict[str, float]:
    """What was measured, for the record."""
    last = course.records[-1] if course.records else None
    found = {
        "steps": float(len(course.steps)),
        "pause_s": max((after - before for before, after in _gaps(course)), default=0.0),
        "attempts": float(last.attempt if last else 0),
        "failures": float(last.failures if last else 0),
        "preemptions": float(last.preemptions if last else 0),
        "lost_steps": float(last.lost_steps if last else 0),
        "made_twice": float(sum(twice(course).values())),
    }
    if (again := _again_s(course)) is not None:
        found["again_s"] = again
    return {key: round(value, 2) for key, value in found.items()}


def twice(course: Course) -> dict[int, int]:
    """By attempt, how many of its steps the next one made again."""
    starts = {record.attempt: record.from_step for record in course.records if record.attempt}
    found = {}
    for attempt, after in pairwise(sorted(starts)):
        reached = max([step.step for step in course.steps if step.attempt == attempt] + [starts[attempt]])
        found[attempt] = max(0, reached - starts[after])
    return found


def _ending(course: Course, bars: Bars) -> Iterator[str]:
    if not course.records:
        yield "there was no job"
        return
    last = course.records[-1]
    if last.state != bars.state:
        yield f"it ended {last.state} {last.phase}, not {bars.state}: {last.error or last.reason}"
    if bars.error not in last.error:
        yield f"its error does not say {bars.error!r}: {last.error}"
    if bars.workers is not None and len(last.nodes) != bars.workers:
        yield f"its last attempt had {len(last.nodes)} workers, not {bars.workers}"


def _counts(course: Course, bars: Bars) -> Iterator[str]:
    if not course.records:
        return
    last = course.records[-1]
    for what in ("attempts", "failures", "preemptions"):
        found, wanted = getattr(last, what.removesuffix("s") if what == "attempts" else what), getattr(bars, what)
        if wanted is not None and found != wanted:
            reasons = [f"{record.attempt} {record.phase}: {record.reason}" for record in course.records]
            yield f"{found} {what}, not {wanted}: {list(dict.fromkeys(reasons))}"


def _losses(course: Course, bars: Bars, curve: Curve) -> Iterator[str]:
    made = {step.step for step in course.steps}
    if bars.state == "SUCCEEDED" and (missing := curve.keys() - made):
        yield f"{len(missing)} steps were never made, the first {min(missing)}"
    if not made:
        yield "no step was made: nothing was tested"
    wrong = [step for step in course.steps if bars.same_curve and not _same(step, curve)]
    if wrong:
        first = wrong[0]
        yield (
            f"{len(wrong)} losses are others than undisturbed, the first of step {first.step} in attempt "
            f"{first.attempt}: {first.loss!r}, not {curve.get(first.step)!r}"
        )


def _same(step: Step, curve: Curve) -> bool:
    return step.step in curve and math.isclose(step.loss, curve[step.step], rel_tol=TOLERANCE)


def _lost(course: Course, bars: Bars) -> Iterator[str]:
    """Steps that are made twice are those since the last checkpoint, and the job says how many."""
    if not course.records:
        return
    made, said = sum(twice(course).values()), course.records[-1].lost_steps
    if not made - bars.unheard_steps <= said <= made:
        yield f"{made} steps were made twice ({twice(course)}), and the job says {said}"
    if any(lost > bars.twice for lost in twice(course).values()):
        yield f"more than {bars.twice} steps were made again after one loss: {twice(course)}"
    for before, record in pairwise(course.records):
        if record.attempt > before.attempt and record.from_step < before.checkpoint:
            yield f"attempt {record.attempt} begins after step {record.from_step}, not {before.checkpoint}"
            return


def _backwards(course: Course) -> Iterator[str]:
    """Within an attempt each step comes once, in order."""
    last: dict[int, int] = {}
    for step in course.steps:
        if step.step != last.get(step.attempt, step.step - 1) + 1:
            yield f"attempt {step.attempt} made step {step.step} after step {last[step.attempt]}"
            return
        last[step.attempt] = step.step


def _pace(course: Course, bars: Bars) -> Iterator[str]:
    pause_s = math.inf if bars.pause_s is None else bars.pause_s
    for before, after in _gaps(course):
        if after - before > pause_s + _stalled(course, before, after):
            into = before - course.first
            yield f"no step for {after - before:.2f} s, from {into:.2f} s after the first fault on"
            return
    if bars.again_s is None:
        return
    again_s = _again_s(course)
    if again_s is None:
        yield "no step was made after the last thing was done"
    elif again_s > bars.again_s + _stalled(course, course.healed, course.healed + again_s):
        yield f"the next step came {again_s:.2f} s after the last thing was done, not within {bars.again_s} s"


def _gaps(course: Course) -> list[tuple[float, float]]:
    """Times of two steps one after the other, the later one after the first fault."""
    return [(one.at, other.at) for one, other in pairwise(course.steps) if other.at >= course.first]


def _again_s(course: Course) -> float | None:
    return next((step.at - course.healed for step in course.steps if step.at >= course.healed), None)


def _stalled(course: Course, began: float, ended: float) -> float:
    """Seconds that others took of a stretch of time, what was counted just after its end included."""
    return sum(stall.seconds for stall in course.stalls if began <= stall.at <= ended + 0.5)
