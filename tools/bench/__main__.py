"""`make bench`: starts a mesh of one node and measures every path to it in interleaved rounds.

    python -m tools.bench [--rounds 3] [--seconds 3] [--json FILE]

A round measures each path once at each concurrency, so that what else this machine does falls on all of them alike;
what holds is the ratio to a reference of the same round, not the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from inference.demo import demo_models
from tools.bench import distribution, report, rollout
from tools.bench.cost import cpu_seconds, resident_bytes
from tools.bench.load import Path as Way
from tools.bench.load import Sample, StreamSample, streaming, unary
from tools.bench.mesh import BenchMesh, deploy_add_one, deploy_language_model, running
from tools.bench.static_envoy import static_envoy

CONCURRENCIES = (1, 16, 64)
STREAMS = (1, 8)
TOKENS = 48
IDLE_S = 5.0


def main() -> None:
    """Measures and prints."""
    options = _options()
    console = Console(width=180 if not Console().is_terminal else None)
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as folder:
        measured = measure(Path(folder), options.rounds, options.seconds, console)
    shown = [*report.tables(measured), distribution.table(measured["distribution"])]
    for table in (*shown, *rollout.tables(measured["rollouts"])):
        console.print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(measured, indent=1) + "\n")
        console.print(f"as JSON: {options.json}")


def measure(folder: Path, rounds: int, seconds: float, console: Console) -> dict[str, Any]:
    """The whole run: cold start, every path in rounds, warm start."""
    console.print("starting a mesh of one node, with two models")
    began = time.monotonic()
    with running(folder / "mesh") as (mesh, up_cold):
        deploy_add_one(mesh)
        deploy_language_model(mesh, demo_models()[0])
        os.environ["GRPC_XDS_BOOTSTRAP"] = str(mesh.state_dir / "xds_bootstrap.json")
        asyncio.run(streaming(Way("direct", mesh.triton), 1, 1))
        cold = time.monotonic() - began
        with static_envoy(folder, mesh.triton) as (static, static_pid):
            pids = {**mesh.pids(), report.STATIC: static_pid}
            samples, streams = _rounds(mesh, static, pids, rounds, seconds, console)
            resident = resident_bytes(pids)
        idle = _idle_cpu(mesh)
        console.print("distributing a model")
        spread = [distribution.measure(mesh, folder, *size) for size in distribution.SIZES]
    began = time.monotonic()
    with running(folder / "mesh") as (mesh, up_warm):
        _until_answered(mesh)
        warm = time.monotonic() - began
    console.print("rolling versions out")
    return {
        "unary": report.unary_rows(samples),
        "streaming": report.stream_rows(streams),
        "seconds": {
            "up, cold": up_cold,
            "up, push, deploy, first token, cold": cold,
            "up, warm": up_warm,
            "up, first token, warm": warm,
        },
        "distribution": spread,
        "rollouts": rollout.measure(folder),
        "resident_bytes": resident,
        "idle_cpu": idle,
    }


def _rounds(
    mesh: BenchMesh, static: str, pids: dict[str, int], rounds: int, seconds: float, console: Console
) -> tuple[list[Sample], list[StreamSample]]:
    ways = [
        Way(report.DIRECT, mesh.triton),
        Way("xds", "xds:///addone"),
        Way(report.STATIC, static),
        Way("gateway, by header", mesh.gateway, {"x-aimesh-model": "addone"}),
        Way("gateway, by message", mesh.gateway),
    ]
    language = [Way(report.DIRECT, mesh.triton), Way("xds", "xds:///smollm2"), Way("gateway, by message", mesh.gateway)]
    samples: list[Sample] = []
    streams: list[StreamSample] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(
            "measuring", total=rounds * (len(CONCURRENCIES) * len(ways) + len(STREAMS) * len(language))
        )
        for _ in range(rounds):
            for concurrency in CONCURRENCIES:
                for way in ways:
                    samples.append(asyncio.run(unary(way, concurrency, seconds, pids)))
                    progress.advance(task)
            for count in STREAMS:
                for way in language:
                    streams.append(asyncio.run(streaming(way, count, TOKENS)))
                    progress.advance(task)
    _same_text(streams)
    return samples, streams


def _same_text(streams: list[StreamSample]) -> None:
    """One stream alone is greedy and exact; batched ones may differ in the last bit, and so in a word."""
    texts = {sample.text for sample in streams if sample.streams == 1}
    if len(texts) != 1:
        raise SystemExit(f"the paths gave different answers: {sorted(texts)}")


def _idle_cpu(mesh: BenchMesh) -> dict[str, float]:
    """Share of a core that each process takes while nobody asks anything."""
    before = cpu_seconds(mesh.pids())
    time.sleep(IDLE_S)
    after = cpu_seconds(mesh.pids())
    return {name: (after[name] - before[name]) / IDLE_S for name in mesh.pids()}


def _until_answered(mesh: BenchMesh) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            asyncio.run(streaming(Way("gateway, by message", mesh.gateway), 1, 1))
        except Exception as error:  # whatever the client raises while the model is still loading
            if time.monotonic() > deadline:
                raise TimeoutError(f"no token within 120 s of a warm start: {error}") from error
            time.sleep(0.1)
        else:
            return


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds a path and concurrency in each round")
    parser.add_argument("--json", default="", help="file to write the report to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
