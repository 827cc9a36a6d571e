"""`aimesh simulate`: how the mesh behaves at a size that no one machine has."""

from __future__ import annotations

import os
import re
import signal
from types import FrameType
from typing import Annotated, NoReturn

import typer

from meshkit.errors import InvalidInputError
from tools.cli.options import Json

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m)?")


def simulate(
    nodes: Annotated[int, typer.Option(help="Simulated nodes, each with 4 GPUs.")] = 1000,
    models: Annotated[int, typer.Option(help="Models, each deployed with 3 replicas.")] = 100,
    clients: Annotated[int, typer.Option(help="xDS clients, each of one model.")] = 1000,
    coordinators: Annotated[int, typer.Option(help="Real coordinator processes.")] = 10,
    etcd: Annotated[int, typer.Option(help="Real members of etcd: 1, 3 or 5.")] = 1,
    duration: Annotated[str, typer.Option(metavar="TIME", help="How long things change: 30s, 2m.")] = "30s",
    churn: Annotated[float, typer.Option(metavar="RATE", help="Changes a second in that time.")] = 2.0,
    idle: Annotated[str, typer.Option(metavar="TIME", help="How long nothing but heartbeats is watched.")] = "10s",
    seed: Annotated[int, typer.Option(help="Of the choice of what changes: the same seed, the same choice.")] = 1,
    grow: Annotated[bool, typer.Option("--grow", help="Run a hundredth, a tenth and all of it, and compare.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the mesh at scale: real etcd and real coordinators, with simulated agents and xDS clients.

    Simulated agents join, send heartbeats and say READY to what they are assigned; no Triton runs. Simulated clients
    subscribe as gRPC's own do. Then nodes leave, are killed and come back, deployments grow and shrink, and each change
    is timed until the last client that must see it has acknowledged it. Everything shares this machine's cores. Ends
    with status 1 when a change never arrived, or heartbeats wrote to etcd.

    Example: [bold]aimesh simulate --nodes 100 --models 10 --clients 100 --coordinators 3[/bold]
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # What ends unasked is counted and reported; gRPC's own line for each of a thousand connections helps nobody.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tools.cli.output import console, print_json
    from tools.simulate.plan import Plan, growth
    from tools.simulate.run import simulate as simulated
    from tools.simulate.view import PartsView, plain, tables

    plan = Plan(nodes, models, clients, coordinators, etcd, _seconds(duration), churn, _seconds(idle), seed)
    reports = simulated(growth(plan) if grow else (plan,), PartsView)
    if as_json:
        print_json([plain(report) for report in reports] if grow else plain(reports[0]))
    else:
        for table in tables(reports):
            console().print(table)
    if any(report.problems for report in reports):
        raise typer.Exit(1)


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidInputError(f"{text!r} is no duration", hint="say 30s or 2m")
    return float(found[1]) * (60 if found[2] == "m" else 1)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ends the simulation as Ctrl-C does: everything is stopped on the way out."""
    raise KeyboardInterrupt
