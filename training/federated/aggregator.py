"""The aggregator of a federated job: `python -m training.federated.aggregator FOLDER`, on the node of rank 0.

It listens at MASTER_ADDR, at MASTER_PORT or a port of the system's choice, says which by an event, and goes from round
to round. After each round it writes a checkpoint, from which another one goes on in the round that this one was in.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from meshkit.errors import InvalidInputError
from meshkit.tls import TlsSettings
from training.building import build
from training.data.order import Order, total_steps
from training.federated import local, state
from training.federated.population import clients_there, has_own_data, learn_and_kept
from training.federated.rounds import Closed, Desk, fresh
from training.federated.service import FederatedRounds, federated_server
from training.federated.settings import settings_of
from training.process import Process, run
from training.run.course import Course
from training.run.finish import evaluate, results
from training.run.group import Group
from training.trainer import Entry

_CPU = Group(0, 1, torch.device("cpu"))
"""Where the aggregator computes: a node's GPU is its client's."""
_LOOK_S = 0.2
"""How often the stop file and deadlines are looked at."""
_FAREWELL_S = 5.0
"""How long clients have to hear that the job is over."""


@dataclass
class _Run:
    """An aggregator under way."""

    process: Process
    entry: Entry
    model: nn.Module
    course: Course
    rounds: FederatedRounds
    samples: int = 0
    """Gone through by clients in this attempt."""
    began_s: float = field(default_factory=time.monotonic)

    @property
    def desk(self) -> Desk:
        """Where rounds are given out."""
        return self.rounds.desk


def aggregate(process: Process) -> None:
    """Carries a job through its rounds, or to where it is told to stop. Raises what goes wrong."""
    process.seen("loading the trainer and its data")
    under_way = _prepare(process)
    asyncio.run(_serve(under_way))


def tls_of_environment() -> TlsSettings:
    """The files that the agent names; off when it names none."""
    named = {name: os.environ.get(f"AIMESH_TLS_{name.upper()}") for name in ("ca", "cert", "key")}
    return TlsSettings(**{name: Path(path) for name, path in named.items() if path})


def _prepare(process: Process) -> _Run:
    task, folder = process.task, process.folder
    entry = build(task.spec, folder.root)
    learn, kept = learn_and_kept(task.spec, entry)
    model = entry.model()
    trained = local.trained_names(model)
    ranges = clients_there(task)
    settings = settings_of(task, ranges[-1].stop)
    begun = fresh(local.travelling(model), trained, settings)
    if task.HasField("resume"):
        begun = _resumed(process, begun)
    shutil.rmtree(folder.root / "updates", ignore_errors=True)
    desk = Desk(settings, begun, trained, folder.root / "updates", np.random.default_rng())
    nodes = [task.workers[rank].node if task.workers else "" for rank, mine in enumerate(ranges) for _ in mine]
    course = Course(
        learn=learn,
        kept=kept,
        order=Order(task.spec.seed, len(learn), task.spec.batch_size or 32),
        steps=total_steps(task.spec, len(learn)),
        rank=0,
        speeds=[0.0],
    )
    return _Run(process, entry, model, course, FederatedRounds(desk, nodes))


def _resumed(process: Process, begun: state.Global) -> state.Global:
    """The state of the task's checkpoint. Raises InvalidInputError (BAD_CHECKPOINT) when it is another's."""
    process.seen("reading the checkpoint")
    found = state.read(process.folder.resume, begun)
    wanted = process.task.resume.step
    if found.round != wanted:
        raise InvalidInputError(
            f"the checkpoint in {process.folder.resume} is of round {found.round}, not {wanted}",
            hint="its files were mixed up with another's",
            reason="BAD_CHECKPOINT",
        )
    # The round that was lost with the last aggregator may have been seen by clients before its checkpoint had a copy.
    return replace(found, releases=found.releases + 1) if found.releases else found


async def _serve(run: _Run) -> None:
    process = run.process
    server = federated_server(_address(), run.rounds, tls_of_environment())
    if run.desk.number > run.course.steps:  # the last aggregator died at the very end
        run.rounds.finish()
    await server.start()
    process.events.port(server.port)
    try:
        stopped = False
        while run.desk.number <= run.course.steps and not stopped:
            stopped = not await _round(run)
        if stopped:
            process.events.done(run.desk.number - 1, stopped=True)
            return
        await _finish(run)
        await _farewell(run)
    finally:
        await server.stop(0.5)


async def _round(run: _Run) -> bool:
    """One round from its opening to its checkpoint; False when the process is to end before it is over."""
    process, desk = run.process, run.desk
    began = time.monotonic()
    process.place.step, process.place.doing = 0, f"waiting for updates of round {desk.number}"
    while not run.rounds.ready():
        process.seen()
        if process.stopping():
            return False
        await run.rounds.changes.wait(_LOOK_S)
    closed = await run.rounds.close()
    written = await asyncio.to_thread(state.write, process.folder.checkpoints, closed.state)
    process.events.checkpoint(
        closed.state.round, written, attempt=process.task.attempt, world_size=len(process.task.workers) or 1
    )
    seconds = time.monotonic() - (desk.started_s or began)
    if closed.state.round >= run.course.steps:
        run.rounds.finish()
    run.rounds.advance(closed)
    run.samples += closed.samples * desk.settings.local_epochs
    measured = await asyncio.to_thread(_measure, run, closed)
    _say(run, closed, measured, seconds)
    return True


def _measure(run: _Run, closed: Closed) -> dict[str, float]:
    """What the new model does on samples held out of the one set; of private data what clients said of the last one."""
    if has_own_data(run.process.task.spec):
        found = dict(closed.state.values)
    elif len(run.course.kept):
        local.load(run.model, closed.state.model)
        found = evaluate(run.entry, run.course.kept, run.model, _CPU)
    else:
        found = {}
    return {"holdout_loss" if name == "loss" else name: value for name, value in found.items()}


def _say(run: _Run, closed: Closed, measured: dict[str, float], seconds: float) -> None:
    """The round's point, and in the log whose update was refused and why."""
    for why in closed.refused.values():
        print(f"round {closed.state.round}: {why}", flush=True)  # noqa: T201  # the worker's log
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


async def _finish(run: _Run) -> None:
    """Evaluates and exports the last model, and says what came out."""
    process, desk = run.process, run.desk
    local.load(run.model, desk.state.model)
    seconds = time.monotonic() - run.began_s
    measured = await asyncio.to_thread(results, process, run.entry, run.course, run.model, _CPU)
    if has_own_data(process.task.spec):
        measured = dict(desk.state.values)
    measured |= {"train_loss": desk.state.loss, "steps": float(desk.state.round)}
    measured.setdefault("loss", desk.state.loss)
    if run.samples:
        measured["samples_per_s"] = run.samples / seconds
    if desk.settings.private:
        measured["epsilon"] = desk.epsilon
    process.events.done(desk.state.round, measured)


async def _farewell(run: _Run) -> None:
    """Waits a little until every client that came has heard that the job is over."""
    deadline = time.monotonic() + _FAREWELL_S
    while run.rounds.seen - run.rounds.told_over and time.monotonic() < deadline:
        await run.rounds.changes.wait(_LOOK_S)


def _address() -> str:
    host, port = os.environ.get("MASTER_ADDR") or "127.0.0.1", os.environ.get("MASTER_PORT") or "0"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    run(aggregate)
