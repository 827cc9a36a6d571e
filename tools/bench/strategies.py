"""Does the choice of the strategy pay, and does it converge? Real jobs on a mesh of three nodes on this machine.

    python -m tools.bench.strategies [--kinds small more] [--rounds 6] [--fixed 1] [--json FILE] [--plot FILE.png]

Kinds of jobs that lie in different states of the table are first left to the mesh, over and over, with a table
that begins empty; then each is run with each strategy that fits; then once more by the table that has seen all.
One job at a time: two would slow each other down. Rewards are those that the mesh itself learns from.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress

from aimesh.training.v1 import training_pb2
from tools.bench.mesh import running
from tools.bench.strategies_found import AFTER, AUTO, COLD, FIXED, Found, fixed_rewards, found_of, plot, table
from tools.bench.strategies_jobs import KINDS, Kind, choices, spec_of, write_samples
from tools.cli import train_client
from tools.cli.target import Mesh, find_mesh
from tools.training.plan_view import learned, learned_json

NODES = 3
JOB_S = 300.0
PACE_S = 0.1
SETTINGS = {
    "AIMESH_COORDINATOR_TRAINING_LESSON_STEPS": "12",
    "AIMESH_COORDINATOR_TRAINING_LESSON_S": "0.3",
    "AIMESH_AGENT_TRAINING_NICE": "0",
}
"""Jobs of a few seconds teach here what elsewhere only longer ones do; and nothing else has the right of way."""
OVER = (training_pb2.JOB_STATE_SUCCEEDED, training_pb2.JOB_STATE_FAILED)
Order = tuple[str, Kind, str]
"""Phase, kind, choice."""


def orders(rounds: int, fixed: int, kinds: Sequence[Kind] = KINDS) -> list[Order]:
    """Every job of a run, in order. Kinds and strategies take turns, so that all see the same machine."""
    free = [kind for kind in kinds if not kind.federated]
    learning = [(COLD, kind, AUTO) for _ in range(rounds) for kind in free]
    named = [(FIXED, kind, choice) for _ in range(fixed) for kind in kinds for choice in choices(kind)]
    return [*learning, *named, *((AFTER, kind, AUTO) for kind in free)]


@dataclass
class Run:
    """What has come out so far."""

    found: list[Found] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Why jobs did not succeed."""


async def run(mesh: Mesh, folder: Path, asked: Sequence[Order], console: Console, into: Run) -> None:
    """Runs them one after the other."""
    with Progress(console=console) as shown:
        bar = shown.add_task("jobs", total=len(asked))
        for phase, kind, choice in asked:
            shown.update(bar, description=f"{phase}: {kind.name}, {choice}")
            job = await _ended(mesh, spec_of(kind, choice, folder))
            if job.state == training_pb2.JOB_STATE_SUCCEEDED:
                into.found.append(found_of(job, phase, kind.name, choice))
                console.print(_line(into.found[-1]))
            else:
                into.failed.append(f"{kind.name}, {choice}: {job.error}")
                console.print(into.failed[-1], style="red")
            shown.advance(bar)


def _line(one: Found) -> str:
    got = f"{one.strategy} of {one.workers}{' on purpose' if one.explored else ''}"
    return (
        f"{one.phase:8} {one.kind:25} {one.choice:9} got {got}: {one.reward:.2f} (said {one.predicted:.2f}), "
        f"{one.samples_per_s:.0f} samples/s, {one.seconds:.1f} s in all"
    )


async def _ended(mesh: Mesh, spec: training_pb2.JobSpec) -> training_pb2.Job:
    """A job once it is over; cancelled when that takes too long."""
    job = await train_client.submit(mesh, spec)
    try:
        async with asyncio.timeout(JOB_S):
            while job.state not in OVER:
                await asyncio.sleep(PACE_S)
                job = (await train_client.get_job(mesh, job.id)).job
    except TimeoutError:
        await train_client.steer(mesh, "cancel", job.id, f"not over within {JOB_S:g} s")
        job.error = f"not over within {JOB_S:g} s"
    return job


def main() -> None:
    """Measures and prints; an interrupt ends it early with what there is."""
    options = _options()
    console = Console(width=None if Console().is_terminal else 160)
    done = Run()
    os.environ.update(SETTINGS)
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as name, running(Path(name) / "mesh", NODES) as _:
        folder, target = Path(name), find_mesh(Path(name) / "mesh")
        write_samples(folder)
        with contextlib.suppress(KeyboardInterrupt):
            asked = orders(options.rounds, options.fixed, [kind for kind in KINDS if kind.key in options.kinds])
            asyncio.run(run(target, folder, asked, console, done))
        known = asyncio.run(train_client.strategies(target))
    console.print(table(done.found), learned(known))
    if options.json:
        said = {**asdict(done), "table": learned_json(known), "load": [*psutil.getloadavg()]}
        options.json.write_text(json.dumps(said, indent=1) + "\n")
    if options.plot and fixed_rewards(done.found):
        plot(done.found, options.plot)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = [kind.key for kind in KINDS]
    parser.add_argument("--kinds", nargs="+", choices=keys, default=keys, help="kinds of jobs; all when not said")
    parser.add_argument("--rounds", type=int, default=6, help="jobs of each kind that are left to the mesh")
    parser.add_argument("--fixed", type=int, default=1, help="jobs of each kind with each strategy")
    parser.add_argument("--json", type=Path, help="write all figures to FILE")
    parser.add_argument("--plot", type=Path, help="write a picture of the rewards to FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    main()
