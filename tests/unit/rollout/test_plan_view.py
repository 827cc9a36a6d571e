"""What the command line makes of options, plans and rollouts."""

from __future__ import annotations

import hashlib
import io
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console, Group, RenderableType
from typer.main import get_command

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.plan import plan
from meshkit.errors import InvalidInputError
from tests.unit.rollout.world import NEW, OLD, World, canary, state_of, target
from tools.cli.rollout import app
from tools.cli.rollout_gates import read_gates
from tools.cli.rollout_measured import measured
from tools.cli.rollout_spec import Asked, read, spec_of
from tools.cli.rollout_view import listed, planned, shown


def printed(what: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_plan_says_the_times_before_anything_else_happens() -> None:
    state, wanted = state_of(4, target(OLD, 2)), canary(5, 100, hold_s=90)
    text = printed(planned(wanted, plan(state, wanted).plan))
    assert "m to 1.1.0, canary" in text
    assert "time to promote            1 min 3" in text
    assert "time to roll back" in text
    assert "2 of 1.0.0 at 95, 1 of 1.1.0 at 5" in text


def test_a_rollout_shows_weights_measurements_and_reasons() -> None:
    mesh = World(state_of(4, target(OLD, 2)))
    mesh.start(canary(25, 100))
    mesh.run()
    comparison = rollout_pb2.Comparison(metric="error_rate", before=0.01, now=0.02, p_value=0.5, effect=0.01, test="e")
    text = printed(shown(mesh.rollout, [comparison]))
    for part in (
        "SUCCEEDED: 1.1.0 has all requests",
        "1.1.0 100 %",
        "error_rate",
        "+1 pts",
        "25 % for 1 s; nothing was",
    ):
        assert part in text


@pytest.mark.parametrize("width", [80, 120])
def test_arms_and_units_fit_a_terminal(width: int) -> None:
    metrics = (("latency_p99_ms", 1234.5, 2345.6), ("memory_bytes", 2e9, 3e9), ("error_rate", 0.1, 0.2))
    sure = {"now_count": 12345, "p_value": 1e-9, "effect": -0.123, "test": "t"}
    found = [
        rollout_pb2.Comparison(metric=metric, version=version, before=before, now=now, **sure)  # type: ignore[arg-type]
        for version in (OLD, NEW)
        for metric, before, now in metrics
    ]
    text = printed(Group(*measured(found)), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for part in ("2346 ms", "2861 MiB", "20 %", "12,345", "-12.3 pts", "<0.0001"):
        assert part in text
    assert ("TEST" in text) == (width > 110)


def test_a_rollout_that_waits_for_a_person_says_what_to_do() -> None:
    rollout = rollout_pb2.Rollout(spec=canary(50, 100), state=rollout_pb2.ROLLOUT_STATE_HELD, started_by="me")
    rollout.phase = rollout_pb2.PHASE_HOLDING
    rollout.steps.add(percent=50).hold.seconds = 90
    text = printed(shown(rollout, [], now_ns=61 * 10**9))
    assert "by me, 1 min 1 s of 1 min 30 s in this phase" in text
    assert "aimesh rollout resume | promote | abort m" in text


def test_a_list_of_rollouts_names_their_states() -> None:
    mesh = World(state_of(4, target(OLD, 2)))
    mesh.start(canary(25, 100))
    mesh.run()
    assert "SUCCEEDED" in printed(listed([mesh.rollout]))


def test_options_become_the_contracts_fields(tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text('inconclusive = "promote"\nneeds = ["error_rate"]\nleast_requests = 10\n')
    spec = spec_of(Asked("m", NEW, steps="5, 100", hold="10s", gates=gates, max_surge=0, watch="5m"))
    assert (list(spec.canary.steps), spec.canary.hold.seconds, spec.watch.seconds) == ([5, 100], 10, 300)
    assert spec.gates.inconclusive == rollout_pb2.INCONCLUSIVE_PROMOTE
    assert (spec.HasField("max_surge"), spec.HasField("max_unavailable")) == (True, False)
    policy = tmp_path / "gates.rego"
    policy.write_text("package aimesh.gates")
    assert read_gates(policy).rego == "package aimesh.gates"
    arms = spec_of(Asked("m", strategy="experiment", arms=["1.0.0=50", "1.1.0=50"], header="x-user")).experiment
    assert [(arm.version, arm.percent) for arm in arms.arms] == [(OLD, 50), (NEW, 50)]


QUESTIONS = '{"inputs": {"x": [1.0]}, "expected": "cat"}\n{"inputs": {"x": [2.0]}, "expected": "dog"}\n'


def test_an_evaluation_set_is_named_by_its_digest_and_uploaded(tmp_path: Path) -> None:
    questions, gates = tmp_path / "questions.jsonl", tmp_path / "gates.toml"
    questions.write_text(QUESTIONS)
    digest = hashlib.sha256(QUESTIONS.encode()).hexdigest()
    spec, dataset = read(Asked("m", NEW, evaluate=questions, output="label"))
    assert (spec.gates.evaluation.dataset, dataset) == (digest, questions)
    assert (spec.gates.evaluation.output, list(spec.gates.evaluation.metrics)) == ("label", ["accuracy"])

    gates.write_text('[evaluation]\ndataset = "questions.jsonl"\noutput = "y"\nmetrics = ["f1", "recall"]\n')
    spec, dataset = read(Asked("m", NEW, gates=gates))
    assert (spec.gates.evaluation.dataset, dataset) == (digest, questions), "relative to the gates' file"
    assert list(spec.gates.evaluation.metrics) == ["f1", "recall"]
    spec, dataset = read(Asked("m", NEW, gates=gates, metrics=["exact_match"]))
    assert list(spec.gates.evaluation.metrics) == ["exact_match"]
    gates.write_text(f'[evaluation]\ndataset = "{digest}"\noutput = "y"\n')
    assert read(Asked("m", NEW, gates=gates))[1] is None, "there already"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"inputs": {"x": [1]}, "expected": 1}\n{"inputs": {"x": [2]}}', "questions.jsonl: line 2 .* has no label"),
        ('{"inputs": {"x": [1]}, "expected": 1}\nnot json', "line 2 .* is no JSON"),
        ("", "has no line"),
    ],
)
def test_a_set_without_a_label_is_refused_with_its_line(tmp_path: Path, lines: str, said: str) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(lines)
    with pytest.raises(InvalidInputError, match=said):
        spec_of(Asked("m", NEW, evaluate=questions, output="y"))


def test_plan_and_start_take_the_same_options() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    plan_, start = ({option.name for option in commands[name].params} for name in ("plan", "start"))
    assert start - plan_ == {"detach", "yes"}
    assert {each.name for each in fields(Asked)} - {"name", "version", "arms", "output", "metrics"} < plan_


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked("m", NEW, strategy="yolo"), "strategy 'yolo' is unknown"),
        (Asked("m", NEW, steps="five"), "'five' is no list of percents"),
        (Asked("m", NEW, hold="soon"), "'soon' is no length of time"),
        (Asked("m", NEW, inconclusive="maybe"), "inconclusive 'maybe' is unknown"),
        (Asked("m", strategy="experiment", arms=["1.0.0"]), "'1.0.0' is no arm"),
        (Asked("m", NEW, gates=Path("there-is-none.toml")), "cannot be read"),
        (Asked("m", NEW, gates=Path("x"), no_gates=True), "exclude each other"),
        (Asked("m", NEW, evaluate=Path("x"), no_gates=True), "--eval and --no-gates exclude each other"),
        (Asked("m", NEW, evaluate=Path("there-is-none.jsonl"), output="y"), "cannot be read: No such file"),
        (Asked("m", NEW, evaluate=Path("x")), "which output"),
        (Asked("m", NEW, output="y"), "are of an evaluation set"),
    ],
)
def test_what_is_no_value_is_refused(asked: Asked, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        spec_of(asked)
