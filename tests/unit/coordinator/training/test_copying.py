"""Checkpoints that are written faster than they are copied: one after the other still gets its two holders."""

from __future__ import annotations

import pytest

from aimesh.training.v1 import training_pb2
from coordinator.training.checkpoints import copies_of, copying, newest
from node_agent.training.holding import outdated, reported
from node_agent.training.state import TaskState
from tests.unit.coordinator.training.test_schedule import job, running, status


def test_what_is_copied_first_is_the_oldest_that_all_have_written_and_is_not_recorded() -> None:
    made = running(job(least=2), "a", "b")
    statuses = {0: status(0, 30, 20, 10), 1: status(1, 40, 30, 20)}
    assert copying(made, statuses) == 20
    files = copies_of(made, statuses, {}, ["a", "b"])
    assert [file.digest for file in files[1]] == ["0/20", "0/10", "0/30"]
    assert [file.digest for file in files[0]] == ["1/20", "1/30", "1/40"]
    made.checkpoint.step = 20
    assert copying(made, statuses) == 30
    assert copying(made, {0: status(0, 30)}) == 0


@pytest.mark.parametrize("slow", [1, 3, 7, 20])
def test_checkpoints_are_recorded_however_fast_others_are_written(slow: int) -> None:
    """`slow` checkpoints are written while one file is copied."""
    made = running(job(least=2), "a", "b")
    works = [TaskState.new(training_pb2.TrainingTask(job="j", attempt=1, rank=rank)) for rank in range(2)]
    held: dict[str, set[str]] = {"a": set(), "b": set()}
    recorded = []
    for step in range(1, 10 * slow + 10):
        for rank, work in enumerate(works):
            work.written.insert(0, status(rank, step).checkpoints[0])
            gone = outdated(work)
            work.written = [each for each in work.written if each not in gone]
            del work.status.checkpoints[:]
            work.status.checkpoints.extend(reported(work))
            own = {file.digest for each in work.written for file in each.files}
            held["ab"[rank]] = own | {digest for digest in held["ab"[rank]] if not digest.startswith(f"{rank}/")}
        statuses = {rank: work.status for rank, work in enumerate(works)}
        wanted = copies_of(made, statuses, held, ["a", "b"])
        for rank, work in enumerate(works):
            work.task.copying = copying(made, statuses)
            if step % slow == 0:
                held["ab"[rank]] |= {file.digest for file in wanted[rank][:1]}
        if (found := newest(made, statuses, held, 2)) is not None:
            made.checkpoint.CopyFrom(found)
            recorded.append(found.step)
    assert len(recorded) >= 5
    assert recorded == sorted(recorded)
