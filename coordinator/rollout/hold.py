"""A step whose share has moved, and the watch after the last: what the judgement makes of them. Pure."""

from __future__ import annotations

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.course import COMPARING, hold_s
from coordinator.rollout.record import (
    HELD,
    SUCCEEDED,
    Advance,
    Judged,
    Observed,
    at_step,
    back,
    decided,
    ended,
    success,
    told,
    watched,
)


def holding(rollout: rollout_pb2.Rollout, seen: Observed) -> Advance | None:
    """Judges a step whose share has moved: back at once when it is worse, on when its time is over."""
    judged, now = seen.judged, seen.now_ns
    if judged is not None and judged.verdict == rollout_pb2.VERDICT_FAIL:
        return Advance(back(rollout, now, judged.reason, judged.comparisons))
    if judged is not None and judged.broken:
        return Advance(_into_hold(rollout, now, judged.broken, judged))
    hold = hold_s(rollout.steps[rollout.step])
    if now < rollout.since.ToNanoseconds() + hold * 1e9:
        return None
    if judged is None or judged.verdict == rollout_pb2.VERDICT_PASS:
        reason = judged.reason if judged is not None else _by_time(rollout, hold)
        return Advance(_on(rollout, now, rollout_pb2.VERDICT_PASS, reason, judged))
    if hold == 0:
        return Advance(_on(rollout, now, rollout_pb2.VERDICT_INCONCLUSIVE, "the step has no hold time", judged))
    return Advance(_untold(rollout, now, judged))


def failed(seen: Observed) -> bool:
    """Whether the new version is judged to be worse."""
    return seen.judged is not None and seen.judged.verdict == rollout_pb2.VERDICT_FAIL


def _untold(rollout: rollout_pb2.Rollout, now: int, judged: Judged) -> rollout_pb2.Rollout:
    """A step whose time is over, and no telling."""
    wish, inconclusive = rollout.spec.gates.inconclusive, rollout_pb2.VERDICT_INCONCLUSIVE
    if rollout.spec.WhichOneof("strategy") in COMPARING:
        return _on(rollout, now, inconclusive, f"no telling: {judged.reason}", judged)
    if wish == rollout_pb2.INCONCLUSIVE_PROMOTE:
        return _on(rollout, now, inconclusive, f"goes on though there is no telling: {judged.reason}", judged)
    if wish == rollout_pb2.INCONCLUSIVE_ROLL_BACK:
        return back(rollout, now, f"goes back since there is no telling: {judged.reason}", judged.comparisons)
    return _into_hold(rollout, now, f"no telling: {judged.reason}", judged)


def held(rollout: rollout_pb2.Rollout, seen: Observed) -> Advance | None:
    """Waits until there is telling, or a person decides."""
    judged = seen.judged
    if judged is None or judged.broken:
        return None
    if judged.verdict == rollout_pb2.VERDICT_FAIL:
        return Advance(back(rollout, seen.now_ns, judged.reason, judged.comparisons))
    if judged.verdict == rollout_pb2.VERDICT_PASS:
        return Advance(_on(rollout, seen.now_ns, rollout_pb2.VERDICT_PASS, judged.reason, judged))
    return None


def watching(rollout: rollout_pb2.Rollout, seen: Observed) -> Advance | None:
    """The new version has everything: back when it gets worse, done when its time is over."""
    if failed(seen):
        assert seen.judged is not None
        why = f"got worse after it took over: {seen.judged.reason}"
        return Advance(back(rollout, seen.now_ns, why, seen.judged.comparisons))
    broken = seen.judged.broken if seen.judged is not None else ""
    if seen.now_ns < rollout.since.ToNanoseconds() + rollout.spec.watch.ToNanoseconds():
        return told(rollout, f"{watched(rollout)}, but {broken}" if broken else watched(rollout))
    return Advance(ended(rollout, seen, SUCCEEDED, success(rollout) + (f"; {broken}" if broken else "")))


def _on(
    rollout: rollout_pb2.Rollout,
    now: int,
    verdict: rollout_pb2.Verdict.ValueType,
    reason: str,
    judged: Judged | None,
) -> rollout_pb2.Rollout:
    """To the next step."""
    made = decided(rollout, now, verdict, reason, judged.comparisons if judged is not None else ())
    return at_step(made, rollout.step + 1, now)


def _into_hold(rollout: rollout_pb2.Rollout, now: int, reason: str, judged: Judged) -> rollout_pb2.Rollout:
    made = decided(rollout, now, rollout_pb2.VERDICT_INCONCLUSIVE, reason, judged.comparisons)
    made.state = HELD
    return made


def _by_time(rollout: rollout_pb2.Rollout, hold: float) -> str:
    return f"{rollout.steps[rollout.step].percent} % for {hold:g} s; nothing was judged"
