"""What a worker has and does before it meets the others: most of the time of a start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from training.building import build
from training.process import Process
from training.rendezvous import open_store
from training.run.course import Course, course_of
from training.run.engine import Engine, engine_for
from training.trainer import Entry


@dataclass(frozen=True)
class Ready:
    """What a worker has before it meets the others."""

    entry: Entry
    course: Course
    engine: Engine
    store: Any = None
    """Of rank 0: where the workers meet, as long as this lives."""


def make_ready(process: Process) -> Ready:
    """The user's code with its data, and the engine."""
    task, folder = process.task, process.folder
    process.seen("loading the trainer and its data")
    entry = build(task.spec, folder.root)
    ready = Ready(entry, course_of(task, entry), engine_for(task.plan.strategy, task.plan, len(task.workers)))
    if task.rank or len(task.workers) < 2 or task.go:
        return ready
    store, port = open_store(task.workers[0].address or "127.0.0.1")
    process.events.port(port)
    return replace(ready, store=store)
