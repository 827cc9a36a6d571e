"""The one loop of all engines: what a worker does from its first import to its last event.

A worker starts while its attempt is prepared: what takes no GPU and no other worker is done before it waits for go.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from meshkit.errors import InvalidInputError
from training.checkpoint.access import load, open_saver
from training.checkpoint.api import Saver
from training.process import Process
from training.run.course import Course, Portion, on_device
from training.run.engine import Engine
from training.run.finish import results
from training.run.group import Group, join
from training.run.policy import Policy, policy_of
from training.run.ready import Ready, make_ready
from training.run.sanity import Sanity
from training.run.seeds import seed_step
from training.trainer import Entry

MOST_POINTS = 20_000
"""A job of more steps writes a point every few of them: always the same ones."""
_RECENT = 0.1
"""How much the newest step counts in a worker's speed."""


@dataclass
class Run:
    """A worker under way."""

    process: Process
    entry: Entry
    course: Course
    group: Group
    engine: Engine
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    sanity: Sanity
    policy: Policy
    saver: Saver
    step: int = 0
    """Optimizer steps made."""
    saved: int = -1
    """The step of the newest checkpoint begun."""
    loss: float = 0.0
    speed: float = 0.0
    """Samples a second of this worker's own work."""
    counted: int = field(default=0)
    """Samples of all workers in this attempt."""


def train(process: Process) -> None:
    """Trains a task to its end, or to a checkpoint when it is told to stop. Raises what goes wrong."""
    ready = make_ready(process)
    if not process.wait_for_go():
        process.events.done(process.task.resume.step, stopped=True)
        return
    run = _prepare(process, ready)
    _resume(run)
    _say(run, f"begins at step {run.step} of {run.course.steps}")
    process.seen("training")
    began = time.monotonic()
    stopped = False
    while run.step < run.course.steps and not stopped:
        stopped = _step(run)
    process.place.step = 0
    process.seen("writing the last checkpoint")
    if run.saved != run.step:
        _save(run)
    if stopped and run.step < run.course.steps:
        _announce(run, wait=True)
        _say(run, f"stops at step {run.step}, as it was told to")
        process.events.done(run.step, stopped=True)
    else:
        measured = _finish(run, time.monotonic() - began)
        _say(run, f"ends at step {run.step}, loss {run.loss:.6g}")
        process.events.done(run.step, measured)
    run.group.close()


def _prepare(process: Process, ready: Ready) -> Run:
    """From the user's code to an engine that is joined with the others'."""
    task, folder, entry, engine = process.task, process.folder, ready.entry, ready.engine
    course = ready.course
    process.seen("making the model")
    model = entry.model()
    process.seen("meeting the other workers")
    own = task.workers[task.rank].address if task.workers else ""
    group = join(task.rank, max(len(task.workers), 1), task.rendezvous, own)
    if group.link is not None and not group.rank:
        process.events.link(group.link.message(group.world_size))
    process.seen("preparing the engine")
    engine.prepare(entry, model, group)
    return Run(
        process=process,
        entry=entry,
        course=course,
        group=group,
        engine=engine,
        scheduler=entry.scheduler(engine.optimizer),
        sanity=Sanity(entry.limit),
        policy=policy_of(task.spec.checkpoint, time.monotonic()),
        saver=open_saver(folder.checkpoints, group),
    )


def _resume(run: Run) -> None:
    """Goes on from the task's checkpoint, if it has one. Raises InvalidInputError when it is of another job."""
    folder = run.process.folder.resume
    if not run.process.task.HasField("resume"):
        return
    run.process.seen("reading the checkpoint")
    state = _state(run)
    load(folder, state)
    run.engine.load(state)
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    run.sanity.load(state["sanity"])
    run.step = run.saved = int(state["progress"]["step"])
    if run.step != run.process.task.resume.step:
        raise InvalidInputError(
            f"the checkpoint in {folder} is of step {run.step}, not {run.process.task.resume.step}",
            hint="its files were mixed up with another's",
            reason="BAD_CHECKPOINT",
        )


def _state(run: Run) -> dict[str, Any]:
    return {
        **run.engine.state(),
        "scheduler": run.scheduler.state_dict() if run.scheduler is not None else {},
        "sanity": run.sanity.state(),
        "progress": {"step": run.step, "world_size": run.group.world_size},
    }


def _step(run: Run) -> bool:
    """One optimizer step with all that belongs to it. Returns whether the workers have agreed to stop after it."""
    began = time.monotonic()
    course, engine, process = run.course, run.engine, run.process
    portion = course.portion(run.step, data_parallel=engine.data_parallel)
    process.place.step, process.place.batch = run.step + 1, course.numbers(portion)
    # Workers with parts of one model must draw the same; workers with the same model must not.
    seed_step(process.task.spec.seed, run.step, run.group.rank if engine.data_parallel else 0)
    due = run.group.rank == 0 and run.policy.due(run.step + 1, began)
    batch = on_device(course.learn.batch(portion.samples), run.group)
    agreed = engine.backward(batch, portion.weight, [process.stopping(), due])
    norm = engine.update()
    if run.scheduler is not None:
        rate = float(run.scheduler.get_last_lr()[0])
        run.scheduler.step()
    else:
        rate = float(engine.optimizer.param_groups[0]["lr"])
    run.loss, stop, save = agreed.wait()
    run.sanity.check(run.loss, norm, agreed.own[0], process.place)
    run.step += 1
    _measure(run, portion)
    _point(run, time.monotonic() - began, norm, rate)
    if save:
        _save(run)
    _announce(run)
    process.seen()
    return bool(stop)


def _measure(run: Run, portion: Portion) -> None:
    """This worker's own speed, and what all have gone through."""
    run.counted += len(run.course.order.batch(run.step - 1))
    seconds = run.engine.compute_s()
    if portion.size and seconds > 0:
        now = portion.size / seconds
        run.speed = now if not run.speed else (1 - _RECENT) * run.speed + _RECENT * now


def _point(run: Run, step_s: float, norm: float, rate: float) -> None:
    every = 1 + run.course.steps // MOST_POINTS
    if run.step % every and run.step != run.course.steps:
        return
    run.process.events.point(
        run.step,
        run.loss,
        step_s,
        {"gradient_norm": norm, "learning_rate": rate},
        attempt=run.process.task.attempt,
        samples_per_s=run.speed,
    )


def _save(run: Run) -> None:
    """Begins a checkpoint of the step that was just made."""
    run.saver.save(run.step, _state(run))
    run.saved = run.step
    run.policy.written(time.monotonic())


def _announce(run: Run, *, wait: bool = False) -> None:
    """Says which checkpoints have become whole, and for which the disk had no room."""
    for saved in run.saver.wait() if wait else run.saver.finished():
        if saved.given_up:
            run.process.events.no_checkpoint(f"that of step {saved.step} was given up: {saved.given_up}")
            _say(run, f"no checkpoint of step {saved.step}: {saved.given_up}")
            continue
        run.process.events.checkpoint(
            saved.step, saved.files, attempt=run.process.task.attempt, world_size=run.group.world_size
        )
        _say(run, f"checkpoint of step {saved.step}: {len(saved.files)} files, {sum(saved.files.values())} bytes")


def _say(run: Run, what: str) -> None:
    """A line in the worker's log, for people."""
    task = run.process.task
    place = f"attempt {task.attempt}, rank {run.group.rank} of {run.group.world_size} on {run.group.device}"
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S} {place}: {what}\n")
    sys.stdout.flush()


def _finish(run: Run, seconds: float) -> dict[str, float]:
    """Evaluates and exports on rank 0 while the last checkpoint is written; gives what was measured."""
    process = run.process
    process.seen("gathering the model")
    model = run.engine.full_model()
    measured = {"train_loss": run.loss, "steps": float(run.step)} if run.counted else {"steps": float(run.step)}
    if run.counted:
        measured["samples_per_s"] = run.counted / seconds
    if model is not None:
        measured |= results(process, run.entry, run.course, model, run.group)
        measured.setdefault("loss", run.loss)
    _announce(run, wait=True)
    return measured
