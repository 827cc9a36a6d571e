"""A process that waits until all workers of its attempt are ready."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from training.contract import EventWriter, Folder
from training.process import Process


def process(root: Path, *, go: bool = False) -> Process:
    folder = Folder(root)
    task = training_pb2.TrainingTask(job="j", attempt=2, go=go)
    folder.task.write_text(json_format.MessageToJson(task))
    return Process(folder, EventWriter(root), task)


def tell(one: Process, rendezvous: str) -> None:
    told = training_pb2.TrainingTask(job="j", attempt=2, go=True, rendezvous=rendezvous)
    one.folder.go.write_text(json_format.MessageToJson(told))


def said(one: Process) -> str:
    return one.folder.events.read_text()


def test_it_says_that_it_waits_and_goes_on_with_the_task_as_it_is_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    one = process(tmp_path)
    tell(one, "[fd00::7]:4711")
    assert one.wait_for_go()
    assert '"waiting": true' in said(one)
    assert (one.task.go, one.task.rendezvous) == (True, "[fd00::7]:4711")
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("fd00::7", "4711")


def test_one_that_is_started_with_go_waits_for_nothing(tmp_path: Path) -> None:
    one = process(tmp_path, go=True)
    assert one.wait_for_go()
    assert said(one) == ""


@pytest.mark.parametrize("how", ["stop", "signal", "removed"])
def test_it_ends_when_it_is_told_to_or_its_folder_is_gone(tmp_path: Path, how: str) -> None:
    one = process(tmp_path)
    if how == "stop":
        one.folder.stop.touch()
    elif how == "signal":
        one.terminated = True
    else:
        one.folder.task.unlink()
    assert not one.wait_for_go()


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    one = process(tmp_path)
    one.folder.go.write_text("{")
    with pytest.raises(InvalidInputError, match="no task is to be had"):
        one.wait_for_go()
