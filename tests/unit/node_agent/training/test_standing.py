"""Where a task stands, and what of it is reported."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from aimesh.training.v1 import training_pb2
from node_agent.training.folder import Folder
from node_agent.training.standing import FAILED, Standing
from node_agent.training.state import TaskState, load_all


def standing_in(root: Path, reports: list[int]) -> Standing:
    task = training_pb2.TrainingTask(job="j", attempt=2, rank=1, kind=training_pb2.TASK_KIND_TRAIN)
    tools = cast(Any, SimpleNamespace(on_change=lambda: reports.append(1)))
    return Standing(TaskState.new(task), Folder(root / "j" / "2-1"), tools)


@pytest.mark.parametrize(("known", "seen", "told"), [(0, 7, 7), (9, 0, 9), (3, 5, 5), (0, 0, 0)])
async def test_a_failure_tells_the_last_step_that_is_known(tmp_path: Path, known: int, seen: int, told: int) -> None:
    reports: list[int] = []
    standing = standing_in(tmp_path, reports)
    standing.status.step, standing.progress.point.step = known, seen
    await standing.fail("why", may_retry=True, at_ns=5)
    assert (standing.status.state, standing.status.message, standing.status.may_retry) == (FAILED, "why", True)
    assert standing.status.step == told
    assert standing.status.failed_at.ToNanoseconds() == 5
    assert standing.over
    assert reports
    ((_, written),) = load_all(tmp_path)
    assert written.status == standing.status, "the next agent knows it too"


async def test_of_two_that_write_a_task_down_at_once_the_last_is_read_whole(tmp_path: Path) -> None:
    standing = standing_in(tmp_path, [])

    with capture_logs() as said:
        await asyncio.gather(*(standing.set(FAILED, "x" * (97 * number % 5000)) for number in range(50)))
    ((_, written),) = load_all(tmp_path)
    assert written.status == standing.status
    assert [each["event"] for each in said if each["event"] == "task.not_saved"] == []


async def test_a_full_disk_does_not_keep_a_failure_from_being_reported(tmp_path: Path) -> None:
    reports: list[int] = []
    (tmp_path / "j").write_text("no folder")
    standing = standing_in(tmp_path, reports)
    await standing.fail("why", may_retry=False)
    assert standing.status.state == FAILED
    assert standing.status.failed_at.seconds
    assert reports
