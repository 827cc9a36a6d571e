"""How rollouts look on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from google.protobuf import duration_pb2, timestamp_pb2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from tools.cli.plain import enum_name

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


def shown(rollout: rollout_pb2.Rollout, comparisons: Sequence[rollout_pb2.Comparison]) -> RenderableType:
    """What `aimesh rollout status` and `watch` show."""
    return Group(
        headline(rollout),
        _steps(rollout.steps, rollout),
        _weights(rollout),
        *_measured(comparisons),
        *_decisions(rollout.decisions),
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
    seconds = duration.ToNanoseconds() / 1e9
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


def _measured(comparisons: Sequence[rollout_pb2.Comparison]) -> Iterator[RenderableType]:
    if not comparisons:
        return
    table = Table(box=None, pad_edge=False)
    for title in ("METRIC", "BEFORE", "NOW", "P", "EFFECT", "TEST"):
        table.add_column(title, justify="left" if title in ("METRIC", "TEST") else "right")
    for each in comparisons:
        tested = bool(each.test)
        table.add_row(
            f"{each.version} {each.metric}".strip(),
            f"{each.before:.4g}" if each.HasField("before") else "",
            f"{each.now:.4g}" if each.HasField("now") else "",
            f"{each.p_value:.3g}" if tested else "",
            f"{each.effect:+.3g}" if tested else "",
            each.test,
        )
    yield table


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
    return at.ToDatetime().strftime("%H:%M:%S")


def _goal(spec: rollout_pb2.RolloutSpec) -> str:
    arms = [f"{arm.version} = {arm.percent} %" for arm in spec.experiment.arms]
    return ", ".join(arms) if arms else spec.version
