"""Every scenario of `scenarios.py`, on real processes under real load. `--chaos=all` runs the long ones too.

The history of a scenario that fails is kept: its file is named in the failure. What was measured is added to
build/chaos/figures.jsonl.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from meshkit.errors import AimeshError
from tests.chaos.check import figures, starved, violations
from tests.chaos.conftest import Meshes
from tests.chaos.history import History
from tests.chaos.scenarios import SCENARIOS, Scenario

REPO = Path(__file__).parents[2]
FAILURES = REPO / "docs" / "operations" / "failures.md"
STARVED = 0.3
"""Share of the machine."""
HISTORIES = REPO / "build" / "chaos"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.name))
def test_scenario(meshes: Meshes, scenario: Scenario, request: pytest.FixtureRequest) -> None:
    if scenario.long and request.config.getoption("--chaos") != "all":
        pytest.skip("long: --chaos=all")
    _play(meshes, scenario)


def test_each_scenario_has_its_line_in_the_documentation() -> None:
    lines = re.findall(r"^\| `([a-z0-9._-]+)` \| (●?) *\|", FAILURES.read_text(), re.MULTILINE)
    assert sorted(lines) == sorted((scenario.name, "" if scenario.long else "●") for scenario in SCENARIOS)


def _play(meshes: Meshes, scenario: Scenario) -> None:
    """Holds what is seen against the bars; once more where others had so much of the machine that nothing is proven."""
    history, wrong = _violations(meshes, scenario)
    if wrong and starved(history) > STARVED:
        history, wrong = _violations(meshes, scenario)
    assert not wrong, "\n".join([*wrong, f"figures: {figures(history)}", f"history: {_path(history)}"])


def _violations(meshes: Meshes, scenario: Scenario) -> tuple[History, list[str]]:
    runner = meshes.get()
    wrong = ["the scenario was cut short"]
    try:
        wrong = violations(meshes.loop.run(runner.run(scenario)), scenario.bars)
    except (AssertionError, AimeshError) as error:  # an act that could not be done
        wrong = [f"{type(error).__name__}: {error}"]
    finally:
        if wrong:
            runner.history.write(_path(runner.history))
            meshes.heal()
    _record(runner.history)
    return runner.history, wrong


def _path(history: History) -> Path:
    return HISTORIES / f"{history.scenario}.jsonl"


def _record(history: History) -> None:
    """Adds the figures to those of all scenarios, for docs/operations/failures.md."""
    HISTORIES.mkdir(parents=True, exist_ok=True)
    with (HISTORIES / "figures.jsonl").open("a") as file:
        file.write(json.dumps({"scenario": history.scenario, **figures(history)}) + "\n")
