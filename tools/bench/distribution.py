"""How fast a large model gets to many agents at once, and how many copies of it leave the coordinator.

python -m tools.bench.distribution [--megabytes 1024] [--agents 10]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.bench.mesh import ADD_ONE_CONFIG, ADD_ONE_MODEL, BenchMesh, aimesh, running

MEGABYTE = 1024 * 1024
MODEL = "bulk"
SIZES = ((256, 1), (256, 10))
"""(megabytes, agents) of `make bench`."""


def measure(mesh: BenchMesh, folder: Path, megabytes: int, agents: int) -> dict[str, Any]:
    """One row: `agents` processes fetch a model of `megabytes` at the same moment, from a mesh that runs."""
    model = f"{MODEL}{megabytes}x{agents}"
    _push(mesh, folder / model, model, megabytes)
    coordinator = str(mesh.status["cluster"]["coordinators"][0]["address"])
    with contextlib.ExitStack() as stack:
        receivers = [
            stack.enter_context(_receiver(folder / model, f"bench-{agents}-{number}", coordinator, model))
            for number in range(agents)
        ]
        for each in receivers:
            _answer(each)
        began = time.monotonic()
        for each in receivers:
            _go(each)
        reports = [json.loads(_answer(each)) for each in receivers]
        wall = time.monotonic() - began
        for each in receivers:
            _go(each)
    size = megabytes * MEGABYTE
    return {
        "megabytes": megabytes,
        "agents": agents,
        "seconds": wall,
        "slowest_s": max(report["seconds"] for report in reports),
        "mb_per_s": agents * megabytes / wall,
        "source_bytes": sum(report["from_coordinators"] for report in reports),
        "source_bytes_per_receiver": sum(report["from_coordinators"] for report in reports) / agents,
        "copies_from_source": sum(report["from_coordinators"] for report in reports) / size,
        "peer_bytes": sum(report["from_peers"] for report in reports),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    shown = Table(title="Distribution of a model to agents that ask at the same moment", title_justify="left")
    for name in ("MB", "agents", "seconds", "MB/s, all", "copies from the source", "source MB a receiver"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            str(row["megabytes"]),
            str(row["agents"]),
            f"{row['seconds']:.1f}",
            f"{row['mb_per_s']:.0f}",
            f"{row['copies_from_source']:.2f}",
            f"{row['source_bytes_per_receiver'] / MEGABYTE:.1f}",
        )
    return shown


def _push(mesh: BenchMesh, folder: Path, model: str, megabytes: int) -> None:
    (folder / "model" / "1").mkdir(parents=True)
    (folder / "model" / "config.pbtxt").write_text(ADD_ONE_CONFIG)
    (folder / "model" / "1" / "model.py").write_text(ADD_ONE_MODEL)
    with (folder / "model" / "1" / "weights.bin").open("wb") as weights, Path("/dev/urandom").open("rb") as noise:
        for _ in range(megabytes):
            weights.write(noise.read(MEGABYTE))
    aimesh(mesh.state_dir, "models", "push", str(folder / "model"), "--name", model, "--version", "1.0.0")


@contextlib.contextmanager
def _receiver(folder: Path, node_id: str, coordinator: str, model: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "tools.bench.receiver", node_id, coordinator, str(folder / node_id), model]
    with (folder / f"{node_id}.log").open("w") as log:
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield child
        child.wait(30)
    finally:
        child.kill()
        child.wait()


def _answer(child: subprocess.Popen[str]) -> str:
    """Its next line. Raises SystemExit when it ended."""
    assert child.stdout is not None
    while line := child.stdout.readline():
        if line.startswith(('{"seconds"', "ready")):
            return line
    raise SystemExit(f"a receiver ended with status {child.wait()}")


def _go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def main() -> None:
    """Measures one row in a mesh of its own, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--agents", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as folder, running(Path(folder) / "mesh") as (mesh, _):
        Console().print(table([measure(mesh, Path(folder), options.megabytes, options.agents)]))


if __name__ == "__main__":
    main()
