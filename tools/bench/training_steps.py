"""Steps of a job on two agents beside those of the same loop under torchrun: one of them stands still while the other
goes on, by SIGSTOP, and they take turns every second. So both see the same machine, whose speed changes by the minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from google.protobuf import json_format
from rich.console import Console
from rich.progress import track

from aimesh.training.v1 import training_pb2

SLICES = 20
"""Turns of each in a round."""
SLICE_S = 1.0
MARGIN_S = 0.15
"""What is left out at the beginning of a turn: its first step began before it."""
START_S = 60.0
Step = tuple[float, float]
"""When it ended, in seconds since 1970, and how many seconds it took."""


def bench_spec(steps: int, *, every_s: int) -> training_pb2.JobSpec:
    """A small convolutional net on two workers with a thread each; it keeps no result."""
    made = training_pb2.JobSpec(
        name="bench", task="classifier", strategy=training_pb2.STRATEGY_DDP, steps=steps, seed=1
    )
    made.batch_size, made.data.builtin, made.data.holdout = 128, "digits", 0.2
    shape = {"kind": '"cnn"', "image": "[1, 8, 8]", "channels": "[48, 96]", "lr": "0.001"}
    made.hyperparameters.update(shape)
    made.resources.min_workers, made.resources.max_workers, made.resources.cpu_cores = 1, 2, 0.5
    made.resources.memory_bytes = 1 << 30
    made.checkpoint.every.FromSeconds(every_s)
    made.restarts.failures = 1000
    made.output.discard = True
    return made


@dataclass(frozen=True)
class Plain:
    """A loop under torchrun that goes on without end."""

    pids: list[int]
    output: Path

    def steps(self) -> list[Step]:
        """All so far."""
        lines = [line.split() for line in self.output.read_text().splitlines()]
        return [(float(line[0]), float(line[1])) for line in lines if len(line) == 2]


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[Plain]:
    """Starts it, and ends it with the block."""
    spec, output = folder / "spec.json", folder / "plain.txt"
    spec.write_text(json_format.MessageToJson(bench_spec(1, every_s=60)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with output.open("w") as stream, (folder / "plain.log").open("w") as log:
        torchrun = subprocess.Popen(
            [*launch, "-m", "tools.bench.plain_ddp", str(spec)],
            stdout=stream,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        deadline = time.monotonic() + START_S
        while len(Plain([], output).steps()) < 10:
            if torchrun.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"torchrun made no steps: {(folder / 'plain.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield Plain([child.pid for child in psutil.Process(torchrun.pid).children()], output)
    finally:
        for child in psutil.Process(torchrun.pid).children(recursive=True):
            child.kill()
        torchrun.kill()
        torchrun.wait()


async def alternate(
    console: Console, ours: Sequence[int], others: Sequence[int], rounds: int
) -> list[tuple[float, float, float]]:
    """Lets both take turns; gives when each pair of turns began, changed over and ended. Both run on at the end."""
    spans = []
    _signal(others, signal.SIGSTOP)
    try:
        for _ in track(range(rounds * SLICES), "steps", console=console):
            began = await _turn(others, ours)
            changed = await _turn(ours, others)
            spans.append((began, changed, time.time()))
    finally:
        _signal([*ours, *others], signal.SIGCONT)
    return spans


async def _turn(stop: Sequence[int], go: Sequence[int]) -> float:
    _signal(stop, signal.SIGSTOP)
    _signal(go, signal.SIGCONT)
    began = time.time()
    await asyncio.sleep(SLICE_S)
    return began


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def compared(
    spans: Sequence[tuple[float, float, float]], ours: Sequence[Step], others: Sequence[Step]
) -> dict[str, list[float]]:
    """Median milliseconds of a step of each in each of its turns, and their ratio in each pair of turns."""
    found: dict[str, list[float]] = {"mesh_ms": [], "torchrun_ms": [], "ratio": []}
    for began, changed, ended in spans:
        mesh, torchrun = _median_ms(ours, began, changed), _median_ms(others, changed, ended)
        found["mesh_ms"].append(mesh)
        found["torchrun_ms"].append(torchrun)
        found["ratio"].append(mesh / torchrun)
    return found


def _median_ms(steps: Sequence[Step], began: float, ended: float) -> float:
    return 1e3 * statistics.median(took for at, took in steps if began + MARGIN_S + took < at < ended)
