"""The folder between an agent and a process: what is written is what the other reads."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError, UnavailableError
from training.contract import EventWriter, Folder, read_task, stop_requested


def events(folder: Path) -> list[training_pb2.WorkerEvent]:
    lines = Folder(folder).events.read_text().splitlines()
    return [json_format.Parse(line, training_pb2.WorkerEvent()) for line in lines]


def test_every_event_is_a_line_of_proto_json(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.port(4000)
    writer.point(7, 0.5, 0.01, {"gradient_norm": math.inf, "odd": math.nan}, attempt=2, samples_per_s=12.5)
    writer.checkpoint(7, {"b": 2, "a": 1}, attempt=2, world_size=3)
    writer.error(UnavailableError("gone", hint="wait", reason="PEER_LOST"), may_retry=True)
    writer.done(8, {"loss": 0.25}, stopped=True)
    writer.close()
    port, point, checkpoint, error, done = events(tmp_path)
    assert port.port == 4000
    assert (point.point.step, point.point.loss, point.point.attempt, point.samples_per_s) == (7, 0.5, 2, 12.5)
    assert point.point.values["gradient_norm"] == math.inf
    assert math.isnan(point.point.values["odd"])
    assert abs(point.point.at.ToNanoseconds() - port.at.ToNanoseconds()) < 60e9
    assert [(file.path, file.bytes) for file in checkpoint.checkpoint.files] == [("a", 1), ("b", 2)]
    assert error.error == training_pb2.WorkerError(message="gone. wait", may_retry=True, reason="PEER_LOST")
    assert done.done == training_pb2.Done(step=8, values={"loss": 0.25}, stopped=True)


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """No file grows beyond so many bytes, as if the disk were full (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_did_not_take_is_written_when_it_has_room_each_line_once_and_whole(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.port(1)
    with room_for(Folder(tmp_path).events.stat().st_size + 20):
        writer.port(2)  # begun: half a line
        writer.point(3, 0.5, 0.01, {}, attempt=1)
        writer.done(4)
        assert not writer.settled(0.0)
        assert len(Folder(tmp_path).events.read_text().splitlines()) == 2
    assert writer.settled(0.0)
    assert [event.WhichOneof("body") for event in events(tmp_path)] == ["port", "port", "point", "done"]


def test_two_processes_append_to_one_file(tmp_path: Path) -> None:
    first, second = EventWriter(tmp_path), EventWriter(tmp_path)
    first.port(1)
    second.done(1)
    first.port(2)
    assert [event.WhichOneof("body") for event in events(tmp_path)] == ["port", "done", "port"]


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    task = training_pb2.TrainingTask(job="j", attempt=3, rank=1, spec=training_pb2.JobSpec(seed=2**63))
    Folder(tmp_path).task.write_text(json_format.MessageToJson(task))
    assert read_task(tmp_path) == task


def test_a_task_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no task is to be had"):
        read_task(tmp_path)
    Folder(tmp_path).task.write_text("{")
    with pytest.raises(InvalidInputError, match="no task is to be had"):
        read_task(tmp_path)


def test_stop(tmp_path: Path) -> None:
    assert not stop_requested(tmp_path)
    Folder(tmp_path).stop.touch()
    assert stop_requested(tmp_path)


def test_what_follows_half_a_line_of_a_process_that_died_is_read(tmp_path: Path) -> None:
    Folder(tmp_path).events.write_bytes(b'{"port": 1}\n{"point": {"st')
    writer = EventWriter(tmp_path)
    writer.done(8)
    writer.close()
    first, half, done = Folder(tmp_path).events.read_text().splitlines()
    assert (first, half) == ('{"port": 1}', '{"point": {"st')
    assert json_format.Parse(done, training_pb2.WorkerEvent()).done.step == 8
