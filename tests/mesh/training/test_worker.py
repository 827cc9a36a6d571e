"""Worker processes: together they train as one does, and what goes wrong is said by the one where it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from inference.packaging import package
from inference.signature import describe
from tests.mesh.training.workers import Worker, attempt, gather, until
from tests.unit.inference.needs import without_torch

pytestmark = without_torch
SINGLE, DDP = training_pb2.STRATEGY_SINGLE, training_pb2.STRATEGY_DDP
TOLERANCE = 1e-5
"""Relative, of losses in FP32 over a few dozen steps: sums over workers are made in another order."""
# 1,797 - 180 samples in batches of 200: eight steps and one of the 17 that are left, each epoch.
DIGITS = training_pb2.JobSpec(
    task="classifier",
    data=training_pb2.Data(builtin="digits", holdout=0.1),
    hyperparameters={"hidden": "[32]", "lr": "0.01", "dropout": "0"},
    epochs=2,
    batch_size=200,
    seed=7,
    checkpoint=training_pb2.CheckpointPolicy(every_steps=5),
    output=training_pb2.Output(discard=True),
)
STEPS = 18
OWN = training_pb2.JobSpec(
    code=training_pb2.Code(entry="train:Trainer"),
    data=training_pb2.Data(builtin="iris"),
    steps=100_000,
    batch_size=10,
    output=training_pb2.Output(discard=True),
)
TRAINER = """
import torch, time
class Trainer:
    def __init__(self, job): self.job = job; self.step = 0
    def model(self): return torch.nn.Linear(4, 3)
    def loss(self, model, batch):
        self.step += 1
        {loss}
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of one process."""
    with attempt(tmp_path_factory.mktemp("alone"), DIGITS, SINGLE) as one:
        (done,) = one.finish()
        assert done.step == STEPS
        assert done.values["accuracy"] > 0.8
        losses = one.losses()
    assert list(losses) == list(range(1, STEPS + 1))
    return losses


def same(losses: dict[int, float], expected: dict[int, float]) -> None:
    assert list(losses) == list(expected)
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=TOLERANCE)


def code(loss: str) -> Callable[[Path], None]:
    """A trainer of the user's own, with a line in its loss."""

    def fill(folder: Path) -> None:
        (folder / "code").mkdir()
        (folder / "code" / "train.py").write_text(TRAINER.format(loss=loss))

    return fill


def has_steps(worker: Worker, count: int = 3) -> bool:
    return len(worker.losses()) >= count


@pytest.mark.parametrize("speeds", [(10, 3), (100, 100, 1)], ids=["uneven", "one-gets-nothing"])
def test_several_workers_train_as_one(tmp_path: Path, alone: dict[int, float], speeds: tuple[float, ...]) -> None:
    with attempt(tmp_path, DIGITS, DDP, speeds) as several:
        several.finish()
        same(several.losses(), alone)
        assert all(worker.losses() == several.losses() for worker in several.workers)
        links = [[event.link for event in worker.events() if event.HasField("link")] for worker in several.workers]
        assert [len(said) for said in links] == [1] + [0] * (len(speeds) - 1), "rank 0 says it once"
        assert links[0][0].bandwidth > 0
        assert (links[0][0].workers, 0 < links[0][0].latency_s < 1) == (len(speeds), True)


def written(worker: Worker, step: int) -> bool:
    return any(event.HasField("checkpoint") and event.checkpoint.step == step for event in worker.events())


def test_killed_and_resumed_on_fewer_workers_equals_uninterrupted(tmp_path: Path) -> None:
    short = training_pb2.JobSpec()
    short.CopyFrom(OWN)
    short.steps = 60
    short.checkpoint.every_steps = 10
    with attempt(tmp_path / "whole", short, SINGLE, fill=code("pass")) as uninterrupted:
        uninterrupted.finish()
        expected = uninterrupted.losses()
    with attempt(tmp_path, short, DDP, (0, 0), fill=code("time.sleep(0.03)")) as first:
        until(lambda: all(written(worker, 10) for worker in first.workers), what="the first checkpoint")
        first.kill(1)
        began = time.monotonic()
        assert first.workers[0].wait() == 1
        assert time.monotonic() - began < 10, "a connection that breaks is seen at once, not after a timeout"
        error = first.workers[0].error()
        assert error is not None
        assert (error.reason, error.may_retry) == ("PEER_LOST", True)
        assert "in step" in error.message
        before = first.losses()
        assert 10 <= max(before) < 60
        checkpoint = gather(first.workers, 10, [tmp_path / "2-0"])
    with attempt(tmp_path, short, SINGLE, number=2, resume=checkpoint, fill=code("pass")) as second:
        second.finish()
        after = second.losses()
    assert min(after) == 11
    same({**before, **after}, expected)


DRAWING = """
import random, torch
class Trainer:
    def __init__(self, job): pass
    def model(self): return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    def optimizer(self, parameters): return torch.optim.Adam(parameters, 0.01)
    def scheduler(self, optimizer): return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=40)
    def loss(self, model, batch):
        noise = random.random() * torch.rand(())
        return torch.nn.functional.cross_entropy(model(batch[0] + noise), batch[1])
"""


def test_going_on_with_dropout_noise_and_a_schedule_is_exact(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "code").mkdir()
        (folder / "code" / "train.py").write_text(DRAWING)

    short = training_pb2.JobSpec()
    short.CopyFrom(OWN)
    short.steps = 40
    short.checkpoint.every_steps = 25
    with attempt(tmp_path, short, SINGLE, fill=fill) as first:
        (whole,) = first.finish()
        expected = first.losses()
        checkpoint = gather(first.workers, 25, [tmp_path / "2-0"])
    with attempt(tmp_path, short, SINGLE, number=2, resume=checkpoint, fill=fill) as second:
        (after,) = second.finish()
        assert second.losses() == {step: loss for step, loss in expected.items() if step > 25}
    assert after.values["loss"] == whole.values["loss"]


def test_an_error_in_the_users_code_is_the_first_by_time_and_not_tried_again(tmp_path: Path) -> None:
    line = "if self.step == 5 and len(self.job.folder.name) and self.job.folder.name.endswith('1'): 1 / 0"
    with attempt(tmp_path, OWN, DDP, (0, 0), fill=code(line)) as both:
        assert [worker.wait() for worker in both.workers] == [1, 1]
        first, second = (next(e for e in worker.events() if e.HasField("error")) for worker in both.workers)
        assert (second.error.reason, second.error.may_retry) == ("TRAINER_FAILED", False)
        assert "in step 5, samples " in second.error.message
        assert "ZeroDivisionError: division by zero (train.py:8 in loss)" in second.error.message
        assert (first.error.reason, first.error.may_retry) == ("PEER_LOST", True)
        assert second.at.ToNanoseconds() < first.at.ToNanoseconds()


def test_a_loss_that_is_no_number_stops_all_with_the_step_and_the_batch(tmp_path: Path) -> None:
    line = "if self.step == 4 and self.job.folder.name == '1-1': return model(batch[0]).sum() * float('nan')"
    with attempt(tmp_path, OWN, DDP, (0, 0), fill=code(line)) as both:
        assert [worker.wait() for worker in both.workers] == [1, 1]
        errors = [worker.error() for worker in both.workers]
        assert [error.reason for error in errors if error] == ["NOT_FINITE", "NOT_FINITE"]
        assert [error.message.count("in step 4, samples ") for error in errors if error] == [1, 1]
        assert ["this worker's samples" in error.message for error in errors if error] == [False, True]


def _by_file(one: Worker) -> None:
    (one.folder / "stop").touch()


def _by_signal(one: Worker) -> None:
    assert one.process.pid is not None
    os.kill(one.process.pid, signal.SIGTERM)


@pytest.mark.parametrize("stop", [_by_file, _by_signal], ids=["file", "signal"])
def test_told_to_stop_all_stop_at_one_step_with_a_checkpoint(tmp_path: Path, stop: Callable[[Worker], None]) -> None:
    with attempt(tmp_path, OWN, DDP, (0, 0), fill=code("time.sleep(0.005)")) as both:
        until(lambda: has_steps(both.workers[0]), what="steps")
        stop(both.workers[0])
        done = both.finish()
        assert [one.stopped for one in done] == [True, True]
        assert done[0].step == done[1].step > 0
        assert all(written(worker, done[0].step) for worker in both.workers)


def test_a_trainer_that_never_returns_is_ended_with_the_line_it_is_at(tmp_path: Path) -> None:
    stalling = training_pb2.JobSpec()
    stalling.CopyFrom(OWN)
    stalling.stall_timeout.FromMilliseconds(2500)
    with attempt(tmp_path, stalling, SINGLE, fill=code("while self.step == 3: time.sleep(0.01)")) as one:
        assert one.workers[0].wait() == 1
        error = one.workers[0].error()
        assert error is not None
        assert (error.reason, error.may_retry) == ("STALLED", False)
        assert "in step 3" in error.message
        assert "(train.py:8 in loss)" in error.message


def test_the_process_as_an_agent_starts_it_leaves_a_version_that_can_be_pushed(tmp_path: Path) -> None:
    short = training_pb2.JobSpec()
    short.CopyFrom(DIGITS)
    short.ClearField("output")
    task = training_pb2.TrainingTask(job="j", attempt=1, kind=training_pb2.TASK_KIND_TRAIN, go=True, spec=short)
    task.plan.strategy = SINGLE
    task.workers.add()
    (tmp_path / "task.json").write_text(json_format.MessageToJson(task))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "training.worker", str(tmp_path)]
    ended = subprocess.run(argv, env=environment, timeout=90, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    packed = package(tmp_path / "export" / "model.pt2", "digits", "1.0.0")
    assert [describe(one) for one in packed.version.signature.inputs] == ["x FP32 [-1, 64]"]
    assert [describe(one) for one in packed.version.signature.outputs] == [
        "probabilities FP32 [-1, 10]",
        "label INT64 [-1]",
    ]
