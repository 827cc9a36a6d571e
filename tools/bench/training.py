"""`make bench-train`: what the mesh adds to a training step, how fast a job comes back, what inference pays meanwhile.

    python -m tools.bench.training [--rounds 3] [--kills 5] [--json FILE]

Steps of a job on two agents and of the same loop under torchrun take turns: tools/bench/training_steps.py.
Federated rounds beside Flower's: python -m tools.bench.federated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
from rich.console import Console
from rich.table import Table

from aimesh.training.v1 import training_pb2
from meshkit.errors import UnavailableError
from tools.bench.load import Path as Way
from tools.bench.load import unary
from tools.bench.mesh import BenchMesh, aimesh, deploy_add_one, running
from tools.bench.training_steps import alternate, bench_spec, compared, plain
from tools.cli import train_client
from tools.cli.target import find_mesh

NODES = 3
STEPS = 20_000
"""As many as have a point each."""
LONG = 1_000_000
CALLERS = 4
LOAD_S = 5.0
WAIT_S = 120.0
PACE_S = 0.05
TRAINING, SUCCEEDED = training_pb2.JOB_PHASE_TRAINING, training_pb2.JOB_STATE_SUCCEEDED
OVER = (SUCCEEDED, training_pb2.JOB_STATE_FAILED)
Answer = training_pb2.GetJobResponse


class Bench:
    """One mesh and what is measured on it."""

    def __init__(self, mesh: BenchMesh, folder: Path, console: Console) -> None:
        self.mesh, self.folder, self.console = mesh, folder, console
        self.target = find_mesh(mesh.state_dir)

    async def steps(self, rounds: int) -> dict[str, list[float]]:
        """Median milliseconds of a step of both in each slice, and the ratios."""
        job = (await train_client.submit(self.target, bench_spec(STEPS, every_s=60))).id
        workers = (await self._until(job, self._trains)).progress.workers
        with plain(self.folder) as beside:
            spans = await alternate(self.console, [worker.pid for worker in workers], beside.pids, rounds)
            points = await train_client.metrics(self.target, job)
            ours = [(point.at.ToNanoseconds() / 1e9, point.step_s) for point in points]
            found = compared(spans, ours, beside.steps())
        await train_client.steer(self.target, "cancel", job, "measured")
        return found

    async def recovery(self, kills: int) -> dict[str, list[dict[str, float]]]:
        """Seconds from a kill -9 until the next step, and the steps that were made twice for it, by what was killed."""
        job = (await train_client.submit(self.target, bench_spec(LONG, every_s=2))).id
        victims: dict[str, Callable[[Answer], list[int]]] = {
            "a worker": lambda found: [found.progress.workers[1].pid],
            "an agent and its worker": self._machine,
            "an agent": lambda found: self._machine(found)[:1],
            "the leader": lambda _: [self._leader()],
        }
        found: dict[str, list[dict[str, float]]] = {}
        for name, pids in victims.items():
            for number in range(kills):
                self.console.print(f"recovery: {name}, {number + 1} of {kills}")
                found.setdefault(name, []).append(await self._killed(job, pids))
        await train_client.steer(self.target, "cancel", job, "measured")
        return found

    async def _killed(self, job: str, pids: Callable[[Answer], list[int]]) -> dict[str, float]:
        before = await self._until(job, self._trains)
        await asyncio.sleep(3.0)  # longer than a checkpoint's pace, so that there is one to lose steps since
        before = await self._until(job, lambda found: self._trains(found) and all(map(psutil.pid_exists, pids(found))))
        began = time.monotonic()
        for pid in pids(before):
            os.kill(pid, signal.SIGKILL)
        attempt, step = before.job.attempt.number, before.progress.step

        def goes_on(found: Answer) -> bool:
            again = found.job.attempt.number > attempt and found.progress.step > found.job.attempt.from_step
            return again or (found.job.attempt.number == attempt and found.progress.step > step + 1)

        await self._until(job, goes_on)
        seconds = time.monotonic() - began
        await asyncio.sleep(3.0)  # the count is mended from the points by then
        after = await train_client.get_job(self.target, job)
        return {"seconds": seconds, "steps_lost": float(after.job.lost_steps - before.job.lost_steps)}

    def _trains(self, found: Answer) -> bool:
        workers = found.progress.workers
        return found.job.phase == TRAINING and len(workers) == 2 and all(worker.pid for worker in workers)

    def _machine(self, found: Answer) -> list[int]:
        """The agent of the second worker, and the worker."""
        status = json.loads(aimesh(self.mesh.state_dir, "status", "--json"))
        worker = found.progress.workers[1]
        agent = next(node["pid"] for node in status["nodes"] if node["id"] == worker.worker.node)
        return [agent, worker.pid]

    def _leader(self) -> int:
        status = json.loads(aimesh(self.mesh.state_dir, "status", "--json"))
        return int(next(each["pid"] for each in status["cluster"]["coordinators"] if each.get("leader")))

    async def inference(self, rounds: int) -> dict[str, list[float]]:
        """p99 in milliseconds of a model on the same nodes while a job trains, and while it is paused."""
        deploy_add_one(self.mesh)
        job, way = (
            (await train_client.submit(self.target, bench_spec(LONG, every_s=2))).id,
            Way("direct", self._triton()),
        )
        found: dict[str, list[float]] = {"training": [], "alone": []}
        for number in range(rounds):
            self.console.print(f"inference: round {number + 1} of {rounds}")
            await self._until(job, self._trains)
            found["training"].append(await self._p99(way))
            await train_client.steer(self.target, "pause", job, "measured alone")
            await self._until(job, lambda seen: seen.job.state == training_pb2.JOB_STATE_PAUSED)
            found["alone"].append(await self._p99(way))
            await train_client.steer(self.target, "resume", job, "measured beside")
        await train_client.steer(self.target, "cancel", job, "measured")
        return found

    def _triton(self) -> str:
        status = json.loads(aimesh(self.mesh.state_dir, "status", "--json"))
        return str(next(node["triton"] for node in status["nodes"] if node["models"]))

    async def _p99(self, way: Way) -> float:
        sample = await unary(way, CALLERS, LOAD_S, {})
        return statistics.quantiles(sample.latencies_ms, n=100)[98]

    async def _until(self, job: str, holds: Callable[[Answer], bool], pace_s: float = PACE_S) -> Answer:
        """Asks until it holds. Raises TimeoutError, and RuntimeError for a job that failed."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await _asked(self.target, job)
                if found is not None and found.job.state == training_pb2.JOB_STATE_FAILED:
                    raise RuntimeError(f"{job} failed: {found.job.error}")
                if found is not None and holds(found):
                    return found
                await asyncio.sleep(pace_s)


async def _asked(target: Any, job: str) -> Answer | None:
    """None while the coordinator that is asked has just been killed."""
    try:
        return await train_client.get_job(target, job)
    except UnavailableError:
        return None
    except grpc.aio.AioRpcError as error:
        if error.code() in train_client.GONE:
            return None
        raise


def table(measured: dict[str, Any]) -> Table:
    """All of it, a row a figure."""
    shown = Table(title="Training", title_justify="left")
    for name in ("what", "median", "range or worst"):
        shown.add_column(name, justify="left" if name == "what" else "right")
    steps = measured["steps"]
    for name, unit in (("mesh_ms", "ms"), ("torchrun_ms", "ms"), ("ratio", "")):
        low, middle, high = min(steps[name]), statistics.median(steps[name]), max(steps[name])
        shown.add_row(f"step: {name.removesuffix('_ms')}", f"{middle:.3f} {unit}", f"{low:.3f} to {high:.3f}")
    for name, runs in measured["recovery"].items():
        seconds, lost = ([run[key] for run in runs] for key in ("seconds", "steps_lost"))
        shown.add_row(f"kill -9 of {name}: next step", f"{statistics.median(seconds):.2f} s", f"{max(seconds):.2f} s")
        shown.add_row(f"kill -9 of {name}: steps lost", f"{statistics.median(lost):.0f}", f"{max(lost):.0f}")
    beside, alone = measured["inference"]["training"], measured["inference"]["alone"]
    ratios = [one / other for one, other in zip(beside, alone, strict=True)]
    shown.add_row("inference p99 while training", f"{statistics.median(beside):.2f} ms", f"{max(beside):.2f} ms")
    shown.add_row("inference p99 alone", f"{statistics.median(alone):.2f} ms", f"{max(alone):.2f} ms")
    shown.add_row("ratio", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}")
    return shown


async def measure(bench: Bench, rounds: int, kills: int) -> dict[str, Any]:
    """The whole run."""
    return {
        "steps": await bench.steps(rounds),
        "recovery": await bench.recovery(kills),
        "inference": await bench.inference(rounds),
        "load": [*psutil.getloadavg()],
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", help="write all figures to FILE")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as name, running(Path(name) / "mesh", NODES) as (mesh, _):
        found = asyncio.run(measure(Bench(mesh, Path(name), console), options.rounds, options.kills))
    console.print(table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
