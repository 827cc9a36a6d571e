"""The simulation that the statistics are held to, at a size that takes a second."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from coordinator.rollout import calibrate, calibration
from tools.cli import rollout_calibrate

FEW = 8


def figures(name: str, judge: calibrate.Judge, look_s: int = 10) -> calibration.Figures:
    scenario = next(each for each in calibrate.scenarios(look_s) if name in each.name)
    return calibration.figures(
        scenario, "sequential", [calibrate.rollout(scenario, judge, number, 4) for number in range(FEW)]
    )


def test_the_same_version_is_promoted_even_in_a_storm() -> None:
    judge = calibrate.sequential_judge(4)
    calm, storm = figures("the same version", judge, look_s=2), figures("storm", judge, look_s=2)
    assert (calm.taken_back, calm.held, calm.promoted_s, calm.good) == (0, 0, 90, True)
    assert (storm.taken_back, storm.good) == (0, True)  # some steps take longer: there is more to rule out


@pytest.mark.parametrize("name", ["5 % errors", "every request 3x", "same median"])
def test_a_bad_version_is_taken_back_soon(name: str) -> None:
    found = figures(name, calibrate.sequential_judge(4))
    assert found.taken_back >= FEW // 2 + 1
    assert found.median_s is not None
    assert found.median_s <= 30  # the bar itself is for more rollouts than these
    assert figures(name, calibrate.sequential_judge(4, earlier_known=False)).taken_back <= found.taken_back
    assert figures(name, calibrate.sequential_judge(4, share_known=False)).taken_back >= FEW // 2


def test_tests_of_one_look_raise_false_alarms_when_looked_at_often() -> None:
    assert figures("the same version", calibrate.naive_judge, look_s=1).taken_back >= 2


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (calibration.calibrate(1, 7, lambda _count: None) for _ in range(2))
    assert first == second


def test_a_low_stream_of_requests_is_held_and_not_judged() -> None:
    scenario = replace(calibrate.scenarios(10)[0], requests_s=2.0)
    assert calibrate.rollout(scenario, calibrate.sequential_judge(4), 0, 1) == calibrate.Outcome(False, 120, held=True)


def test_the_longer_tail_is_three_times_as_long() -> None:
    usual, longer = calibrate.p99_ms(calibrate.Latency()), calibrate.p99_ms(calibrate.LONGER_TAIL)
    assert longer / usual == pytest.approx(3, abs=0.1)


def test_bars() -> None:
    same, *_, bad = calibrate.scenarios(10)
    alarm, fine = calibrate.Outcome(True, 10), calibrate.Outcome(False, 90)
    assert calibration.figures(same, "sequential", [alarm, fine]).good is False
    assert calibration.figures(same, "naive", [alarm, fine]).good is None
    late = calibration.figures(bad, "sequential", [fine, fine, alarm])
    assert (late.median_s, late.good) == (None, False)
    half = calibration.figures(bad, "sequential", [alarm, alarm, fine])
    assert (half.median_s, half.p90_s, half.good) == (10, None, True)
    assert calibration.clopper_pearson(0, 500) == pytest.approx((0, 0.00735), abs=1e-4)


def test_the_command_prints_json_and_a_table() -> None:
    app = typer.Typer()
    app.command()(rollout_calibrate.calibrate)
    found = CliRunner().invoke(app, ["--rollouts", "2", "--json"])
    report = json.loads(found.stdout)
    assert found.exit_code == (0 if report["good"] else 1)
    assert len(report["rows"]) == 20
    table = rollout_calibrate.table(calibration.calibrate(1, 1, lambda _count: None), 1, 1)
    assert table.row_count == 20
