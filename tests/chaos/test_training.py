"""Every scenario of `training/scenarios.py`: jobs on real processes, disturbed. Played with `--chaos=all` only.

What happened to the job of one that fails is kept, and the mesh's history: their files are named in the failure. What
was measured is added to build/chaos/training.jsonl.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import pytest

from meshkit.errors import AimeshError
from tests.chaos import check
from tests.chaos.conftest import Meshes
from tests.chaos.history import History
from tests.chaos.runner import Runner
from tests.chaos.test_scenarios import FAILURES, HISTORIES, STARVED
from tests.chaos.training.check import Bars, Curve, figures, violations
from tests.chaos.training.history import Course
from tests.chaos.training.player import Player
from tests.chaos.training.scenarios import SCENARIOS, UNDISTURBED, UNDISTURBED_ROUNDS, Scenario

CALM = Bars(attempts=1, failures=0, twice=0, same_curve=False)


@dataclass
class Players:
    """Hands out a player whose mesh is well, and the curves of jobs that nobody disturbs, each trained once."""

    meshes: Meshes
    _player: Player | None = None
    _runner: Runner | None = None
    _curves: dict[bool, Curve] = field(default_factory=dict)

    def get(self) -> Player:
        """The player of the scenario before, or one on a new mesh."""
        runner = self.meshes.get()
        if self._player is None or runner is not self._runner:
            self._player, self._runner = Player(runner), runner
        return self._player

    def curve(self, *, federated: bool) -> Curve:
        """The loss of each step, or round, of a job that nobody disturbs."""
        if federated not in self._curves:
            player, scenario = self.get(), UNDISTURBED_ROUNDS if federated else UNDISTURBED
            try:
                course, history = self.meshes.loop.run(player.play(scenario))
            except (AssertionError, AimeshError):
                self.heal()
                raise
            _record(course, history)
            assert violations(course, CALM, {}) == []
            self._curves[federated] = {step.step: step.loss for step in course.steps}
        return self._curves[federated]

    def heal(self) -> None:
        """After one that failed: mends the mesh, or gives it up."""
        try:
            self.meshes.loop.run(self.get().heal())
        except (AssertionError, AimeshError):
            self.meshes.drop()
        else:
            self.meshes.heal()


@pytest.fixture(scope="module")
def players(meshes: Meshes) -> Players:
    return Players(meshes)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.name))
def test_job(players: Players, scenario: Scenario, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--chaos") != "all":
        pytest.skip("long: --chaos=all")
    course, history, wrong = _violations(players, scenario)
    if wrong and check.starved(history) > STARVED:  # others had so much of the machine that nothing is proven
        course, history, wrong = _violations(players, scenario)
    assert not wrong, "\n".join([*wrong, f"figures: {_figures(course, history)}", f"history: {HISTORIES}"])


def test_each_scenario_has_its_line_in_the_documentation() -> None:
    lines = re.findall(r"^\| `training/([a-z0-9-]+)` \|", FAILURES.read_text(), re.MULTILINE)
    assert sorted(lines) == sorted(scenario.name for scenario in SCENARIOS)


def _violations(players: Players, scenario: Scenario) -> tuple[Course, History, list[str]]:
    curve = players.curve(federated=scenario.asked.federated)
    player = players.get()
    wrong = ["the scenario was cut short"]
    try:
        course, history = players.meshes.loop.run(player.play(scenario))
        wrong = [*violations(course, scenario.bars, curve), *check.violations(history, scenario.mesh)]
    except (AssertionError, AimeshError) as error:  # something that could not be done
        wrong = [f"{type(error).__name__}: {error}"]
    finally:
        if wrong:
            players.heal()
            player.course.write(HISTORIES / f"training-{scenario.name}.jsonl")
            player.runner.history.write(HISTORIES / f"training-{scenario.name}-mesh.jsonl")
    _record(player.course, player.runner.history)
    return player.course, player.runner.history, wrong


def _figures(course: Course, history: History) -> dict[str, float]:
    return check.figures(history) | figures(course)


def _record(course: Course, history: History) -> None:
    """Adds the figures to those of all scenarios, for docs/operations/failures.md."""
    HISTORIES.mkdir(parents=True, exist_ok=True)
    with (HISTORIES / "training.jsonl").open("a") as file:
        file.write(json.dumps({"scenario": course.scenario, **_figures(course, history)}) + "\n")
