"""What a worker trains on, held against what the job was planned for."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from tests.unit.inference.needs import without_torch

pytestmark = without_torch


def task(samples: int, holdout: int) -> training_pb2.TrainingTask:
    made = training_pb2.TrainingTask(job="j", rank=1)
    made.spec.task, made.spec.data.builtin, made.spec.data.holdout, made.spec.epochs = "classifier", "iris", 0.2, 1
    made.plan.samples, made.plan.holdout = samples, holdout
    made.workers.add(node="node-1")
    made.workers.add(rank=1, node="node-2")
    return made


def test_workers_that_have_what_was_planned_for_have_a_course(tmp_path: Path) -> None:
    from training.building import build
    from training.run.course import course_of

    for made in (task(120, 30), task(0, 0)):  # of no plan, as tests of workers alone
        course = course_of(made, build(made.spec, tmp_path))
        assert (len(course.learn), len(course.kept)) == (120, 30)


@pytest.mark.parametrize(("samples", "holdout"), [(121, 30), (119, 30), (120, 29)])
def test_a_node_with_other_samples_is_told_from_the_plan(samples: int, holdout: int, tmp_path: Path) -> None:
    from training.building import build
    from training.run.course import course_of

    made = task(samples, holdout)
    with pytest.raises(InvalidInputError) as caught:
        course_of(made, build(made.spec, tmp_path))
    assert caught.value.message == f"node-2 has 150 samples, the job was planned for {samples + holdout}"
    assert caught.value.reason == "BAD_DATA"
