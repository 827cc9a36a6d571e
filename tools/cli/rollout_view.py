"""How rollouts look on a terminal. Pure, but for the time of day."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC

from google.protobuf import duration_pb2, timestamp_pb2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from tools.cli.plain import enum_name
from tools.cli.rollout_measured import measured

_BAR = 40
_COLOURS = ("blue", "green", "magenta", "yellow", "cyan")
_STATES = {"SUCCEEDED": "green", "ROLLED_BACK": "red", "ROLLING_BACK": "red", "HELD": "yellow", "PAUSED": "yellow"}
_VERDICTS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
_DECISIONS_SHOWN = 8


def planned(spec: rollout_pb2.RolloutSpec, plan: rollout_pb2.Plan) -> RenderableType:
    """What `aimesh rollout plan` prints, and `start` before it starts."""
    strategy = (spec.WhichOneof("strategy") or "").replace("_", "-")
    lines: list[RenderableType] = [
        Text(f"{spec.name} to {_goal(spec)}, {strategy}", style="bold"),
        _steps(plan.steps, None),
        Text(f"time to promote            {span(plan.time_to_promote)} at least"),
        Text(f"time to roll back          {span(plan.time_to_roll_back)} at most, from a bad judgement on"),
        *(Text(f"  {reason}", style="dim") for reason in plan.reasons),
        *(Text(f"  ! {warning}", style="yellow") for warning in plan.warnings),
    ]
    return Group(*lines)


def shown(
    rollout: rollout_pb2.Rollout, comparisons: Sequence[rollout_pb2.Comparison], now_ns: int | None = None
) -> RenderableType:
    """What `aimesh rollout status` and `watch` show at a moment, in nanoseconds since the epoch; None for now."""
    return Group(
        headline(rollout),
        _course(rollout, time.time_ns() if now_ns is None else now_ns),
        _steps(rollout.steps, rollout),
        _weights(rollout),
        *measured(comparisons or _decided_on(rollout)),
        *_decisions(rollout.decisions),
        *_next(rollout),
    )


def headline(rollout: rollout_pb2.Rollout) -> Text:
    """One line: where it is and why."""
    state = enum_name(rollout_pb2.RolloutState.DESCRIPTOR, rollout.state)
    phase = enum_name(rollout_pb2.Phase.DESCRIPTOR, rollout.phase)
    line = Text.assemble(
        (f"{rollout.spec.name} to {_goal(rollout.spec)}: ", "bold"), (state, _STATES.get(state, "bold"))
    )
    if phase != "UNSPECIFIED":
        line.append(f", step {rollout.step + 1} of {len(rollout.steps)}, {phase.lower()}")
    return line.append(f": {rollout.reason}" if rollout.reason else "")


def listed(rollouts: Iterable[rollout_pb2.Rollout]) -> Table:
    """What `aimesh rollout list` prints."""
    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "TO", "STRATEGY", "STATE", "STEP", "WHY"):
        table.add_column(title)
    for rollout in rollouts:
        state = enum_name(rollout_pb2.RolloutState.DESCRIPTOR, rollout.state)
        table.add_row(
            rollout.spec.name,
            _goal(rollout.spec),
            (rollout.spec.WhichOneof("strategy") or "").replace("_", "-"),
            Text(state, style=_STATES.get(state, "")),
            f"{rollout.step + 1}/{len(rollout.steps)}",
            rollout.reason,
        )
    return table


def span(duration: duration_pb2.Duration) -> str:
    """90.5 s as '1 min 30.5 s'."""
    return _seconds(duration.ToNanoseconds() / 1e9)


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0)
    return " ".join([*parts, f"{rest:.3g} s"] if rest or not parts else parts)


def _steps(steps: Sequence[rollout_pb2.Step], rollout: rollout_pb2.Rollout | None) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("", "STEP", "SHARE", "REPLICAS", "HOLD"):
        table.add_column(title, justify="left")
    for index, step in enumerate(steps):
        table.add_row(
            _mark(index, rollout),
            str(index + 1),
            f"{step.percent} %" if not step.mirror_percent else f"copies of {step.mirror_percent:g} %",
            ", ".join(_target(target) for target in step.targets),
            span(step.hold) if step.HasField("hold") else "",
        )
    return table


def _mark(index: int, rollout: rollout_pb2.Rollout | None) -> Text:
    if rollout is None:
        return Text(" ")
    succeeded = rollout.state == rollout_pb2.ROLLOUT_STATE_SUCCEEDED
    if index < rollout.step or succeeded:
        return Text("✓", style="green")
    return Text("▸" if index == rollout.step else " ", style="bold")


def _target(target: routing_pb2.Target) -> str:
    return f"{target.replicas} of {target.version} at {target.weight}"


def _weights(rollout: rollout_pb2.Rollout) -> Text:
    """The weights that the present step wants, as a bar."""
    back = rollout.state in (rollout_pb2.ROLLOUT_STATE_ROLLING_BACK, rollout_pb2.ROLLOUT_STATE_ROLLED_BACK)
    step = rollout.steps[min(rollout.step, len(rollout.steps) - 1)] if rollout.steps else rollout_pb2.Step()
    targets = rollout.before.targets if back else step.targets
    total = sum(target.weight for target in targets) or 1
    bar, names = Text(), Text()
    for index, target in enumerate(each for each in targets if each.weight):
        colour = _COLOURS[index % len(_COLOURS)]
        bar.append("█" * max(1, round(_BAR * target.weight / total)), style=colour)
        names.append(f"  {target.version} {100 * target.weight / total:.3g} %", style=colour)
    return bar.append_text(names)


def _decided_on(rollout: rollout_pb2.Rollout) -> Sequence[rollout_pb2.Comparison]:
    """What the last judgement rested on, where nothing is measured any more."""
    return next((each.comparisons for each in reversed(rollout.decisions) if each.comparisons), ())


def _decisions(decisions: Sequence[rollout_pb2.Decision]) -> Iterator[RenderableType]:
    for each in decisions[-_DECISIONS_SHOWN:]:
        verdict = enum_name(rollout_pb2.Verdict.DESCRIPTOR, each.verdict)
        shown_verdict = verdict if verdict != "UNSPECIFIED" else "ORDER"
        yield Text.assemble(
            (f"{_clock(each.at)}  step {each.step + 1}  ", "dim"),
            (f"{shown_verdict:<12}  ", _VERDICTS.get(verdict, "bold")),
            each.reason,
        )


def _clock(at: timestamp_pb2.Timestamp) -> str:
    """In the terminal's time zone."""
    return at.ToDatetime(UTC).astimezone().strftime("%H:%M:%S")


def _course(rollout: rollout_pb2.Rollout, now_ns: int) -> Text:
    """Since when, and by whom; how long it took, or has been where it is."""
    by = f" by {rollout.started_by}" if rollout.started_by else ""
    line = Text(f"started {_clock(rollout.started_at)}{by}", style="dim")
    if rollout.HasField("ended_at"):
        took = (rollout.ended_at.ToNanoseconds() - rollout.started_at.ToNanoseconds()) / 1e9
        return line.append(f", took {_seconds(round(took, 1))}")
    there = max(0, round((now_ns - rollout.since.ToNanoseconds()) / 1e9))
    hold = rollout.steps[rollout.step].hold if rollout.step < len(rollout.steps) else duration_pb2.Duration()
    of = f" of {span(hold)}" if rollout.phase == rollout_pb2.PHASE_HOLDING and hold.ToNanoseconds() else ""
    return line.append(f", {_seconds(there)}{of} in this phase")


def _next(rollout: rollout_pb2.Rollout) -> Iterator[RenderableType]:
    """What a person may do where the rollout waits for one, or ended well."""
    verbs = {
        rollout_pb2.ROLLOUT_STATE_HELD: "it goes on by itself once there is telling; or: aimesh rollout {} {}",
        rollout_pb2.ROLLOUT_STATE_PAUSED: "to go on, or back: aimesh rollout {} {}",
    }
    if rollout.state in verbs:
        yield Text(verbs[rollout.state].format("resume | promote | abort", rollout.spec.name), style="dim")


def _goal(spec: rollout_pb2.RolloutSpec) -> str:
    arms = [f"{arm.version} = {arm.percent} %" for arm in spec.experiment.arms]
    return ", ".join(arms) if arms else spec.version
