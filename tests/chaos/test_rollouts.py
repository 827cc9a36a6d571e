"""Every rollout of `rollouts/scenarios.py`, on real processes under 200 requests a second. `--chaos=all` plays the long
ones too.

The history of one that fails is kept: its file is named in the failure. What was measured is added to
build/chaos/rollouts.jsonl.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshkit.errors import AimeshError
from tests.chaos.conftest import Loop
from tests.chaos.rollouts.check import figures, starved, violations
from tests.chaos.rollouts.history import History
from tests.chaos.rollouts.runner import Runner
from tests.chaos.rollouts.scenarios import SCENARIOS, Scenario
from tests.chaos.test_scenarios import FAILURES, HISTORIES, STARVED


@dataclass
class Stages:
    """Hands out a runner whose mesh is well."""

    folder: Path
    loop: Loop = field(default_factory=Loop)
    _runner: Runner | None = None
    _made: int = 0

    def get(self) -> Runner:
        """The runner of the rollout before, or a new one."""
        if self._runner is None:
            self._made += 1
            runner = Runner(self.folder / f"mesh-{self._made}")
            try:
                self.loop.run(runner.start())
            except BaseException:
                self.loop.run(runner.stop())
                raise
            self._runner = runner
        return self._runner

    def heal(self) -> None:
        """After one that failed: mends the mesh, or gives it up."""
        if self._runner is not None and not self.loop.run(self._runner.heal()):
            self.drop()

    def drop(self) -> None:
        """Ends the mesh."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            self.loop.run(runner.stop())


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    found = Stages(tmp_path_factory.mktemp("rollouts"))
    try:
        yield found
    finally:
        found.drop()
        found.loop.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.name))
def test_rollout(stages: Stages, scenario: Scenario, request: pytest.FixtureRequest) -> None:
    if scenario.long and request.config.getoption("--chaos") != "all":
        pytest.skip("long: --chaos=all")
    history, wrong = _violations(stages, scenario)
    if wrong and starved(history) > STARVED:  # others had so much of the machine that nothing is proven
        history, wrong = _violations(stages, scenario)
    assert not wrong, "\n".join([*wrong, f"figures: {figures(history)}", f"history: {_path(history)}"])


def test_each_rollout_has_its_line_in_the_documentation() -> None:
    lines = re.findall(r"^\| `rollout/([a-z-]+)` \| (●?) *\|", FAILURES.read_text(), re.MULTILINE)
    assert sorted(lines) == sorted((scenario.name, "" if scenario.long else "●") for scenario in SCENARIOS)


def _violations(stages: Stages, scenario: Scenario) -> tuple[History, list[str]]:
    runner = stages.get()
    wrong = ["the rollout was cut short"]
    try:
        wrong = violations(stages.loop.run(runner.play(scenario)), scenario.bars)
    except (AssertionError, AimeshError, TimeoutError) as error:  # something that could not be done
        wrong = [f"{type(error).__name__}: {error}"]
    finally:
        if wrong:
            runner.history.write(_path(runner.history))
            stages.heal()
    _record(runner.history)
    return runner.history, wrong


def _path(history: History) -> Path:
    return HISTORIES / f"rollout-{history.scenario}.jsonl"


def _record(history: History) -> None:
    """Adds the figures to those of all rollouts, for docs/operations/failures.md."""
    HISTORIES.mkdir(parents=True, exist_ok=True)
    with (HISTORIES / "rollouts.jsonl").open("a") as file:
        file.write(json.dumps({"scenario": history.scenario, **figures(history)}) + "\n")
