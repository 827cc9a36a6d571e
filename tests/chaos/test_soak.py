"""The soak: a mesh under load and with churn, watched for growth. `--soak 600` watches for ten minutes."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from tests.chaos import models
from tests.chaos.conftest import Meshes
from tests.chaos.runner import Runner
from tests.chaos.soak import MOST_BYTES_A_MINUTE, Sample, growing, sample, slope

EVERY_S = 0.5
WARM_S = 30.0
LONG_S, SHORT_SLACK = 300.0, 4.0
"""A soak of five minutes and more is held to the slopes of soak.py; in a shorter one caches still fill, so it sees
only what grows four times as fast."""
CHURN_S = 10.0
"""A model is deployed and removed, so that assignments, loads, routes and watches all work."""


@pytest.mark.timeout(24 * 3600)  # as long as --soak says
def test_nothing_grows(meshes: Meshes, request: pytest.FixtureRequest) -> None:
    asked = request.config.getoption("--soak")
    if asked is None:
        pytest.skip("long: --soak SECONDS, or make soak")
    seconds = float(asked)
    samples = meshes.loop.run(_watch(meshes.get(), seconds))
    assert growing(samples, slack=1.0 if seconds >= LONG_S else SHORT_SLACK) == []


@pytest.mark.parametrize(("rise", "wrong"), [(0, []), (2 * MOST_BYTES_A_MINUTE, ["leaky"]), (-1 << 20, [])])
def test_a_slope_is_seen_through_noise_and_a_level_is_not(rise: float, wrong: list[str]) -> None:
    noise = np.random.default_rng(1).normal(0, 100_000, 120)
    level = 500 << 20
    taken = [Sample(second, int(level + rise * second / 60 + noise[second]), 40 + second % 3) for second in range(120)]
    assert [line.partition(":")[0] for line in growing({"leaky": taken})] == wrong


def test_files_that_stay_open_are_seen() -> None:
    taken = [Sample(second, 1 << 20, 40 + second // 10) for second in range(120)]
    assert growing({"leaky": taken}) == ["leaky: open files rise by 6.0 a minute"]


def test_the_slope_is_that_of_least_squares() -> None:
    values = [1.0, 3.0, 2.0, 5.0]
    assert slope([0, 60, 120, 180], values).per_minute == pytest.approx(np.polyfit([0, 1, 2, 3], values, 1)[0])


async def _watch(runner: Runner, seconds: float) -> dict[str, list[Sample]]:
    """Samples of every process of ours, after a while of warming up."""
    mesh = runner.mesh
    watched = [*mesh.coordinators, *mesh.nodes, "gateway"]
    samples: dict[str, list[Sample]] = {name: [] for name in watched}
    churn = asyncio.create_task(_churn(runner))
    try:
        await asyncio.sleep(WARM_S)
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for name in watched:
                samples[name].append(sample(mesh.processes[name].pid, now))
            await asyncio.sleep(EVERY_S)
            if churn.done():
                churn.result()
    finally:
        churn.cancel()
        await asyncio.wait([churn])
    return samples


async def _churn(runner: Runner) -> None:
    """Until cancelled; leaves the model of its last round deployed, for the mesh is not used again."""
    turn = 0
    while True:
        turn += 1
        await runner.mesh.deploy("passing", f"1.0.{turn}", models.PLAIN, 1)
        await runner.mesh.placed("passing", f"1.0.{turn}", 60.0)
        await asyncio.sleep(CHURN_S)
        await runner.mesh.undeploy("passing")
