"""Rollouts as data: what is asked for, what is done to it on the way, and how it has to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from tests.chaos.rollouts import models
from tests.chaos.rollouts.check import Bars
from tests.chaos.rollouts.load import HEADER
from tools.cli.rollout_spec import Asked

TAKES_OVER = Bars("SUCCEEDED", takes_over=True)
TAKEN_BACK = Bars("ROLLED_BACK", takes_over=False)

OLD, NEW = "{old}", "{new}"
"""In `asked`: the version that runs, and the one that was pushed for the scenario."""


@dataclass(frozen=True)
class At:
    """A moment of a rollout: its first being at this step in this phase while it runs forward."""

    step: int
    phase: str


@dataclass(frozen=True)
class Scenario:
    """One rollout."""

    name: str
    asked: Asked
    """As the command line takes it; the model's name and version are put in."""
    bars: Bars
    abort: At | None = None
    """When a person takes it back."""
    promote: At | None = None
    """When a person ends it with the new version."""
    kill: At | None = None
    """When the leader is killed, once."""
    kill_each: bool = False
    """The leader is killed at each new step and phase, on the way back too."""
    blackout: At | None = None
    """When all coordinators are killed at once; they come back after a while."""
    armed: str = ""
    """Failpoints of all coordinators, in all their lives; those that end by them are started again."""
    source: Callable[[str], str] = models.plain
    """The new version's program, by version."""
    before: Callable[[str], str] | None = None
    """The old version's, when it has to be another than the one that runs."""
    questions: bool = False
    """Both versions are put the questions of an evaluation set first."""
    long: bool = True
    """Played with --chaos=all only."""


def asked(strategy: str, **options: object) -> Asked:
    """By time alone, unless told otherwise."""
    made = Asked("", NEW, strategy, **{"no_gates": True, **options})  # type: ignore[arg-type]
    return replace(made, version="") if strategy == "experiment" else made


CANARY = asked("canary", steps="10,50,100", hold="1s")
ROLLING = asked("rolling", max_surge=1)
BLUE_GREEN = asked("blue-green", keep="2s")
SHADOW = asked("shadow", percent=100.0, duration="3s")
EXPERIMENT = asked("experiment", arms=(f"{OLD}=50", f"{NEW}=50"), header=HEADER, duration="2s")

JUDGED = asked("canary", steps="10,100", hold="20s", no_gates=False)
SOON = asked("canary", steps="50,100", hold="3s", no_gates=False)
USUAL = asked("canary", steps="10,50,100", hold="5s", no_gates=False)
WATCHED = asked("canary", steps="50,100", hold="3s", no_gates=False, watch="60s")
FEW = asked("canary", steps="1,100", hold="3s", no_gates=False)

COMPARED = Bars("SUCCEEDED", takes_over=False, sticky=True)
UNANSWERED = Bars("ROLLED_BACK", takes_over=False, answers=False)
UNSEEN = Bars("SUCCEEDED", takes_over=False, answers=False, mirrored=True)

SCENARIOS = (
    Scenario("canary", CANARY, TAKES_OVER),
    Scenario("rolling", ROLLING, TAKES_OVER),
    Scenario("blue-green", BLUE_GREEN, TAKES_OVER),
    Scenario("shadow", SHADOW, UNSEEN),
    Scenario("experiment", EXPERIMENT, COMPARED),
    Scenario("experiment-promoted", EXPERIMENT, replace(TAKES_OVER, sticky=True), promote=At(0, "HOLDING")),
    Scenario("canary-aborted", CANARY, TAKEN_BACK, abort=At(1, "HOLDING")),
    Scenario("canary-aborted-at-the-last-step", CANARY, TAKEN_BACK, abort=At(2, "DRAINING")),
    Scenario("canary-aborted-before-it-answers", CANARY, UNANSWERED, abort=At(0, "LOADING")),
    Scenario("rolling-aborted", ROLLING, TAKEN_BACK, abort=At(1, "LOADING")),
    Scenario("blue-green-aborted", BLUE_GREEN, TAKEN_BACK, abort=At(0, "HOLDING"), long=False),
    Scenario("shadow-aborted", SHADOW, UNANSWERED, abort=At(0, "HOLDING")),
    Scenario("experiment-aborted", EXPERIMENT, TAKEN_BACK, abort=At(0, "HOLDING")),
    Scenario("canary-leader-killed", CANARY, TAKES_OVER, kill=At(1, "ACKNOWLEDGING"), long=False),
    *(
        Scenario(f"{name}-leader-killed-at-every-step", each, bars, kill_each=True)
        for name, each, bars in (
            ("canary", CANARY, TAKES_OVER),
            ("rolling", ROLLING, TAKES_OVER),
            ("blue-green", BLUE_GREEN, TAKES_OVER),
            ("shadow", SHADOW, UNSEEN),
            ("experiment", EXPERIMENT, COMPARED),
        )
    ),
    *(
        Scenario(f"{name}-aborted-leader-killed-at-every-step", each, bars, abort=At(step, phase), kill_each=True)
        for name, each, bars, step, phase in (
            ("canary", CANARY, TAKEN_BACK, 1, "HOLDING"),
            ("rolling", ROLLING, TAKEN_BACK, 1, "ACKNOWLEDGING"),
            ("blue-green", BLUE_GREEN, TAKEN_BACK, 0, "HOLDING"),
            ("shadow", SHADOW, UNANSWERED, 0, "HOLDING"),
            ("experiment", EXPERIMENT, TAKEN_BACK, 0, "HOLDING"),
        )
    ),
    Scenario("canary-all-coordinators-killed", CANARY, TAKES_OVER, blackout=At(1, "HOLDING")),
    Scenario("blue-green-all-coordinators-killed", BLUE_GREEN, TAKES_OVER, blackout=At(0, "ACKNOWLEDGING")),
    Scenario("rolling-all-coordinators-killed", ROLLING, TAKES_OVER, blackout=At(0, "DRAINING")),
    Scenario("canary-leader-dies-after-each-write", CANARY, TAKES_OVER, armed="rollout.written=exit"),
    Scenario("rolling-leader-dies-after-each-write", ROLLING, TAKES_OVER, armed="rollout.written=exit"),
    Scenario("as-good-is-promoted", USUAL, TAKES_OVER),
    Scenario("better-is-promoted", SOON, TAKES_OVER, before=partial(models.slow, seconds=0.005)),
    Scenario(
        "slower-is-taken-back",
        JUDGED,
        replace(TAKEN_BACK, reason="latency_"),
        source=partial(models.slow, seconds=0.02),
        long=False,
    ),
    Scenario(
        "slower-after-a-while-is-taken-back-by-the-watch",
        WATCHED,
        replace(TAKEN_BACK, reason="latency_"),
        source=partial(models.tiring, seconds=0.02, after=1500),
    ),
    Scenario(
        "leaking-is-taken-back",
        JUDGED,
        replace(TAKEN_BACK, reason="memory_bytes"),
        before=partial(models.slow, seconds=0.003),  # beside which new memory takes no time
        source=partial(models.leaking, size=64 << 10, seconds=0.003),
    ),
    Scenario(
        "worse-is-taken-back",
        JUDGED,
        replace(UNANSWERED, reason="exact_match"),
        source=models.broken,
        questions=True,
        long=False,
    ),
    Scenario("tie-of-too-little-is-held", FEW, Bars("HELD", takes_over=False, reason="of 50 requests seen")),
)
