"""The aggregator of a federated job: `python -m training.federated.aggregator FOLDER`, on the node of rank 0.

It listens at MASTER_ADDR, at MASTER_PORT or a port of the system's choice, says which by an event, and goes from round
to round. After each round it writes a checkpoint, from which another one goes on in the round that this one was in.
After the last one clients whose data is their own measure the model on what they hold out.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from pathlib import Path

import torch

from aimesh.training.v1 import training_pb2
from meshkit.errors import UnavailableError
from meshkit.files import is_full
from meshkit.tls import TlsSettings
from training.federated import local, state
from training.federated.beginning import Run, prepare
from training.federated.population import has_own_data
from training.federated.service import federated_server
from training.federated.settings import Settings
from training.federated.underway import Closed
from training.process import Process, run
from training.run.finish import evaluate, results
from training.run.group import Group
from training.run.watch import DEFAULT_LIMIT_S

_CPU = Group(0, 1, torch.device("cpu"))
"""Where the aggregator computes: a node's GPU is its client's."""
_LOOK_S = 0.2
"""How often the stop file and deadlines are looked at."""
_MOST_NAMED = 8
"""Clients whose names a message has."""
_FAREWELL_S = 5.0
"""How long clients have to hear that the job is over."""


def aggregate(process: Process) -> None:
    """Carries a job through its rounds, or to where it is told to stop. Raises what goes wrong."""
    process.seen("loading the trainer and its data")
    under_way = prepare(process)
    asyncio.run(_serve(under_way))


def tls_of_environment() -> TlsSettings:
    """The files that the agent names; off when it names none."""
    named = {name: os.environ.get(f"AIMESH_TLS_{name.upper()}") for name in ("ca", "cert", "key")}
    return TlsSettings(**{name: Path(path) for name, path in named.items() if path})


async def _serve(run: Run) -> None:
    process = run.process
    server = federated_server(_address(), run.rounds, tls_of_environment())
    if run.desk.number > run.course.steps:  # the last aggregator died at the very end
        _last(run, run.desk.state)
    await server.start()
    process.events.port(server.port)
    try:
        going_on = True
        while run.desk.number <= run.course.steps and going_on:
            going_on = await _round(run)
        if not going_on or not await _evaluate(run):
            process.events.done(run.desk.number - 1, stopped=True)
            return
        await _finish(run)
        await _farewell(run)
    finally:
        await server.stop(0.5)


async def _round(run: Run) -> bool:
    """One round from its opening to its checkpoint; False when the process is to end before it is over."""
    process, desk = run.process, run.desk
    began = time.monotonic()
    process.place.step, process.place.doing = 0, f"waiting for updates of round {desk.number}"
    told = False
    while not run.rounds.ready():
        process.seen()
        if process.stopping():
            return False
        if (overdue_s := desk.overdue_s(time.monotonic())) and not told:
            print(f"job {process.task.job}, {_lacking(run)}", flush=True)  # noqa: T201  # the worker's log
            told = True
        _check_patience(run, overdue_s)
        await run.rounds.changes.wait(_LOOK_S)
    closed = await run.rounds.close()
    await _keep(process, desk.settings, closed.state)
    seconds = time.monotonic() - (desk.started_s or began)
    if closed.state.round >= run.course.steps:
        _last(run, closed.state)
    run.rounds.advance(closed)
    run.samples += closed.samples * desk.settings.local_epochs
    measured = await asyncio.to_thread(_measure, run, closed)
    _say(run, closed, measured, seconds)
    return True


async def _keep(process: Process, settings: Settings, made: state.Global) -> None:
    """Writes a round's checkpoint. Where the disk has no room it says so and goes on: the next may have room again.

    Not where rounds that are made again cost something: privacy, or the clients' variates, which go by what counted.
    """
    try:
        written = await asyncio.to_thread(state.write, process.folder.checkpoints, made)
    except OSError as error:
        if not is_full(error) or settings.private or settings.aggregation == training_pb2.AGGREGATION_SCAFFOLD:
            raise
        process.events.no_checkpoint(f"the aggregator's disk is full: {error}")
        return
    process.events.checkpoint(
        made.round, written, attempt=process.task.attempt, world_size=len(process.task.workers) or 1
    )


def _lacking(run: Run) -> str:
    """Whom a round waits for whose deadline is over, for people."""
    desk = run.desk
    clients = ", ".join(f"{client} on {run.rounds.nodes[client]}" for client in desk.waiting[:_MOST_NAMED])
    more = f" and {len(desk.waiting) - _MOST_NAMED} more" if len(desk.waiting) > _MOST_NAMED else ""
    return (
        f"round {desk.number}: {len(desk.taken)} updates count after {desk.settings.deadline_s:g} s, and min_clients "
        f"is {desk.settings.min_clients}; it waits for clients {clients}{more}"
    )


def _check_patience(run: Run, overdue_s: float) -> None:
    """Raises UnavailableError when stall_timeout has passed since a round's deadline: another attempt begins."""
    limit_s = run.process.task.spec.stall_timeout.ToTimedelta().total_seconds() or DEFAULT_LIMIT_S
    if overdue_s > limit_s:
        raise UnavailableError(
            f"{_lacking(run)}, for {limit_s:g} s by now",
            hint="look at these nodes; stall_timeout says how long a round may wait, min_clients how many it needs",
            reason="TOO_FEW_CLIENTS",
        )


def _last(run: Run, made: state.Global) -> None:
    """All rounds are made: clients with data of their own measure the model, others may go."""
    if has_own_data(run.process.task.spec) and run.process.task.spec.data.holdout:
        run.rounds.evaluate(made.round, made.model)
    else:
        run.rounds.finish()


async def _evaluate(run: Run) -> bool:
    """What clients measure of the last model, where they do; False when the process is to end before it is over."""
    process, rounds = run.process, run.rounds
    process.place.doing = "waiting for what clients measure of the last model"
    while rounds.evaluation is not None and run.evaluated is None:
        process.seen()
        if process.stopping():
            return False
        if (found := rounds.evaluated()) is None:
            await rounds.changes.wait(_LOOK_S)
            continue
        run.evaluated = found
        for client, why in found.left_out.items():
            _log(run, client, "evaluation", f"client {client} is left out: {why}")
    rounds.finish()
    return True


def _measure(run: Run, closed: Closed) -> dict[str, float]:
    """What the new model does on samples held out of the one set; of private data what clients said of the last one."""
    if has_own_data(run.process.task.spec):
        found = dict(closed.state.values)
    elif len(run.course.kept):
        local.load(run.model, closed.state.model)
        found = evaluate(run.entry, run.course.kept, run.model, _CPU)
    else:
        found = {}
    return {"holdout_loss" if name == "loss" else name: value for name, value in found.items()}


def _say(run: Run, closed: Closed, measured: dict[str, float], seconds: float) -> None:
    """The round's point, and in the log whose update was refused and why."""
    for client, why in closed.refused.items():
        _log(run, client, f"round {closed.state.round}, update refused", why)
    values = {**measured, "clients": float(closed.clients), "refused": float(len(closed.refused))}
    values["update_length"] = closed.length
    if math.isfinite(closed.epsilon):
        values["epsilon"] = closed.epsilon
    run.process.events.point(
        closed.state.round,
        closed.state.loss,
        seconds,
        values,
        attempt=run.process.task.attempt,
        samples_per_s=closed.samples * run.desk.settings.local_epochs / seconds,
    )


def _log(run: Run, client: int, what: str, why: str) -> None:
    node = run.rounds.nodes[client]
    print(f"job {run.process.task.job}, {what}, on {node}: {why}", flush=True)  # noqa: T201  # the worker's log


async def _finish(run: Run) -> None:
    """Evaluates and exports the last model, and says what came out."""
    process, desk = run.process, run.desk
    local.load(run.model, desk.state.model)
    seconds = time.monotonic() - run.began_s
    measured = await asyncio.to_thread(results, process, run.entry, run.course, run.model, _CPU)
    if has_own_data(process.task.spec):  # what this node's own samples say is not what all clients' do
        measured = run.evaluated.results() if run.evaluated else {}
    measured |= {"train_loss": desk.state.loss, "steps": float(desk.state.round)}
    measured.setdefault("loss", desk.state.loss)
    if run.samples:
        measured["samples_per_s"] = run.samples / seconds
    if desk.settings.private:
        measured["epsilon"] = desk.epsilon
    process.events.done(desk.state.round, measured)


async def _farewell(run: Run) -> None:
    """Waits a little until every client that came has heard that the job is over."""
    deadline = time.monotonic() + _FAREWELL_S
    while run.rounds.seen - run.rounds.told_over and time.monotonic() < deadline:
        await run.rounds.changes.wait(_LOOK_S)


def _address() -> str:
    host, port = os.environ.get("MASTER_ADDR") or "127.0.0.1", os.environ.get("MASTER_PORT") or "0"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    run(aggregate)
