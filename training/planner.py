"""Plans a job: `python -m training.planner FOLDER`, started by an agent for a task of kind PLAN.

Builds the trainer, analyses the model, weighs every strategy on the nodes that the task names, and writes the events
`plan` and `done`. What the job's own code does wrong is found here, before many nodes are kept waiting for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from aimesh.training.v1 import training_pb2
from training.strategy.job import plan_job

if TYPE_CHECKING:
    from training.process import Process

__all__ = ["plan_folder", "plan_job", "work"]


def plan_folder(
    folder: Path,
    task: training_pb2.TrainingTask,
    draw: Random | None = None,
    seen: Callable[[str], object] = str,
) -> training_pb2.JobPlan:
    """The plan of the job whose code, data and base lie in a folder as agents lay them out.

    Runs the job's own code; `seen` is told what comes next. With `draw` the chooser may try something new. Raises
    InvalidInputError (BAD_TRAINER, BAD_DATA, BAD_HYPERPARAMETER, STRATEGY_REFUSED).
    """
    from training.analyse.job import analyse_job
    from training.building import build
    from training.contract import Folder
    from training.entry import calling

    seen("building the trainer")
    with calling("building the trainer", Folder(folder).code):
        entry = build(task.spec, folder)
    seen("analysing the model")
    analysis = analyse_job(task.spec, entry, task.workers, links=task.strategies.links)
    seen("weighing strategies")
    return plan_job(task.spec, analysis, task.workers, task.strategies, draw)


def work(process: Process) -> None:
    """Plans, with the same draw for the same job whoever does it."""
    draw = Random(process.task.job)  # noqa: S311 - of a strategy, not of a secret
    process.events.plan(plan_folder(process.folder.root, process.task, draw, process.seen))
    process.events.done(0)


if __name__ == "__main__":
    from training.process import run

    run(work)
