"""How long rollouts take, and how many requests are lost on the way.

python -m tools.bench.rollout [--models 20] [--nodes 10]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from rich.console import Console
from rich.table import Table
from tritonclient.utils import InferenceServerException

from tools.bench.load import ASKED, CALL_TIMEOUT_S
from tools.bench.mesh import ADD_ONE_CONFIG, ADD_ONE_MODEL, BenchMesh, aimesh, running
from tools.simulate.plan import Plan
from tools.simulate.rollouts import Rolled, roll_all

MODEL = "changing"
NODES = 2
"""One for the version that runs and one for the next."""
RATE = 100.0
"""Requests a second of each client: one program on xds:///, one through the gateway."""
STRATEGIES = {
    "rolling": (),
    "blue-green": ("--keep", "2s"),
    "canary": ("--steps", "5,25,50,100", "--hold", "2s"),
    "shadow": ("--duration", "4s"),
    "experiment": ("--arm", "{old}=50", "--arm", "{new}=50", "--header", "x-user", "--duration", "4s"),
}
"""Options of each strategy, with hold times as short as makes sense: 2 s a step."""
PROMOTING = ("rolling", "blue-green", "canary")
"""Those that end with the new version."""
SURGES = (1, 3)
"""Replicas of each model that change at a time in the cluster: one by one, and all three at once."""
CLUSTER = Plan(nodes=10, models=20, clients=100, coordinators=3)


@dataclass
class Asked:
    """What became of the requests while one rollout ran."""

    answered: int = 0
    lost: int = 0
    wrong: int = 0
    slowest_ms: float = 0.0
    calls: set[asyncio.Task[None]] = field(default_factory=set)


def measure(folder: Path, cluster: Plan = CLUSTER) -> dict[str, Any]:
    """A row a strategy on a mesh of two nodes under load, and the rollout of a whole simulated cluster."""
    with running(folder / "rollouts", NODES) as (mesh, _):
        os.environ["GRPC_XDS_BOOTSTRAP"] = str(mesh.state_dir / "xds_bootstrap.json")
        _push(mesh, "1.0.0")
        aimesh(mesh.state_dir, "deploy", f"{MODEL}:1.0.0", "--replicas", "1")
        rows, old = [], "1.0.0"
        for number, strategy in enumerate(STRATEGIES, start=1):
            new = f"1.{number}.0"
            _push(mesh, new)
            rows.append(asyncio.run(_one(mesh, strategy, old, new)))
            old = new if strategy in PROMOTING else old
    return {"strategies": rows, "cluster": [cluster_row(roll_all(cluster, surge)) for surge in SURGES]}


def cluster_row(rolled: Rolled) -> dict[str, Any]:
    """The figures of a cluster's rollout."""
    return {
        "surge": rolled.surge,
        "nodes": rolled.plan.nodes,
        "models": rolled.plan.models,
        "replicas": rolled.plan.models * rolled.plan.replicas,
        "clients": rolled.plan.clients,
        "seconds": rolled.seconds,
        "median_s": statistics.median(rolled.each_s),
        "slowest_s": rolled.each_s[-1],
    }


def tables(measured: dict[str, Any]) -> list[Table]:
    """Both for a terminal."""
    title = f"Rollouts of a model under {2 * RATE:.0f} requests/s, half on xds:///, half through the gateway"
    shown = Table(title=title, title_justify="left")
    for name in ("strategy", "seconds", "of them holding", "requests", "lost", "wrong", "slowest ms"):
        shown.add_column(name, justify="left" if name == "strategy" else "right")
    for row in measured["strategies"]:
        figures = (str(row[name]) for name in ("requests", "lost", "wrong"))
        shown.add_row(
            row["strategy"], f"{row['seconds']:.1f}", f"{row['held_s']:.1f}", *figures, f"{row['slowest_ms']:.0f}"
        )
    row = measured["cluster"][0]
    title = f"{row['models']} models at once on {row['nodes']} simulated nodes, {row['clients']} clients"
    whole = Table(title=title, title_justify="left")
    for name in ("replicas", "of a model at a time", "seconds, all", "median of a model", "slowest of a model"):
        whole.add_column(name, justify="right")
    for row in measured["cluster"]:
        figures = (f"{row[name]:.1f}" for name in ("seconds", "median_s", "slowest_s"))
        whole.add_row(str(row["replicas"]), str(row["surge"]), *figures)
    return [shown, whole]


async def _one(mesh: BenchMesh, strategy: str, old: str, new: str) -> dict[str, Any]:
    asked, stop = Asked(), asyncio.Event()
    loads = [asyncio.create_task(_load(way, asked, stop)) for way in (f"xds:///{MODEL}", mesh.gateway)]
    await asyncio.sleep(1.0)  # connections are made
    options = [word.format(old=old, new=new) for word in STRATEGIES[strategy]]
    goal = MODEL if strategy == "experiment" else f"{MODEL}:{new}"
    words = ["rollout", "start", goal, "--strategy", strategy, *options, "--no-gates", "--json"]
    rollout = json.loads(await asyncio.to_thread(aimesh, mesh.state_dir, *words))["rollout"]
    await asyncio.sleep(1.0)  # what was given up late is seen too
    stop.set()
    await asyncio.gather(*loads)
    began, ended = (np.datetime64(rollout[name].rstrip("Z")) for name in ("started_at", "ended_at"))
    return {
        "strategy": strategy,
        "seconds": float((ended - began) / np.timedelta64(1, "ms")) / 1e3,
        "held_s": sum(_seconds(step.get("hold")) for step in rollout["steps"]),
        "requests": asked.answered + asked.lost,
        "lost": asked.lost,
        "wrong": asked.wrong,
        "slowest_ms": asked.slowest_ms,
    }


async def _load(target: str, asked: Asked, stop: asyncio.Event) -> None:
    """Asks at a fixed rate until told to stop, then waits for what is in flight."""
    async with triton.InferenceServerClient(target) as client:
        due = time.monotonic()
        while not stop.is_set():
            call = asyncio.create_task(_ask(client, asked))
            asked.calls.add(call)
            call.add_done_callback(asked.calls.discard)
            due = max(due + 1 / RATE, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*asked.calls)


async def _ask(client: Any, asked: Asked) -> None:
    tensor = triton.InferInput("INPUT0", list(ASKED.shape), "FP32")
    tensor.set_data_from_numpy(ASKED)
    began = time.monotonic()
    try:
        answer = await client.infer(MODEL, [tensor], headers={"x-user": str(began)}, client_timeout=CALL_TIMEOUT_S)
    except InferenceServerException:
        asked.lost += 1
        return
    asked.answered += 1
    asked.wrong += not np.array_equal(answer.as_numpy("OUTPUT0"), ASKED + 1)
    asked.slowest_ms = max(asked.slowest_ms, (time.monotonic() - began) * 1e3)


def _push(mesh: BenchMesh, version: str) -> None:
    folder = mesh.state_dir / f"{MODEL}-{version}"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(ADD_ONE_CONFIG)
    (folder / "1" / "model.py").write_text(f"{ADD_ONE_MODEL}\n# {version}\n")
    aimesh(mesh.state_dir, "models", "push", str(folder), "--name", MODEL, "--version", version)


def _seconds(text: str | None) -> float:
    """Of a duration as JSON has it, such as 2s."""
    return float(text.removesuffix("s")) if text else 0.0


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=CLUSTER.models)
    parser.add_argument("--nodes", type=int, default=CLUSTER.nodes)
    options = parser.parse_args()
    cluster = Plan(
        nodes=options.nodes, models=options.models, clients=CLUSTER.clients, coordinators=CLUSTER.coordinators
    )
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as folder:
        for table in tables(measure(Path(folder), cluster)):
            Console().print(table)


if __name__ == "__main__":
    main()
