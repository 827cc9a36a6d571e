"""Packs what a training job has made as a model version: `python -m inference.finish FOLDER`, run by the node's agent.

FOLDER/export/ becomes FOLDER/packed/files/, as hard links, and FOLDER/packed/version.json, the version as proto JSON as
`aimesh models push` would record it. What went wrong, or that all is done, stands in FOLDER/finish.jsonl.
"""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

from google.protobuf import json_format

from aimesh.training.v1 import training_pb2
from inference.packaging import Package, package
from meshkit.errors import AimeshError, InvalidInputError
from meshkit.files import is_full, write_atomically


def finish(folder: Path) -> None:
    """Packs the export. Raises InvalidInputError when it is no model, or the task names none; OSError."""
    task = json_format.Parse(
        (folder / "task.json").read_text(), training_pb2.TrainingTask(), ignore_unknown_fields=True
    )
    name, _, number = task.model.partition(":")
    if not name or not number:
        raise InvalidInputError(f"the task of job {task.job} names no model as NAME:VERSION: {task.model!r}")
    packed = folder / "packed"
    shutil.rmtree(packed, ignore_errors=True)
    with package(_source(folder / "export"), name, number) as made:
        _link_all(made, packed / "files")
        write_atomically(packed / "version.json", json_format.MessageToJson(made.version).encode())


def main(folder: Path) -> int:
    """Exit status 0, or 1 after an event `error`; ENOSPC when the disk has no room for the event."""
    said, status = training_pb2.WorkerEvent(done=training_pb2.Done()), 0
    try:
        finish(folder)
    except (AimeshError, OSError, json_format.ParseError) as error:
        reason = error.reason if isinstance(error, AimeshError) else type(error).__name__
        if is_full(error):
            reason = "DISK_FULL"
        message = f"the result cannot be served: {error}"
        why = training_pb2.WorkerError(message=message, reason=reason, may_retry=isinstance(error, OSError))
        said, status = training_pb2.WorkerEvent(error=why), 1
    try:
        _say(folder, said)
    except OSError as error:
        if not is_full(error):
            raise
        status = errno.ENOSPC
    return status


def _source(export: Path) -> Path:
    """The one file that a trainer exports by itself, or the folder when there is more."""
    found = sorted(export.iterdir()) if export.is_dir() else []
    if not found:
        raise InvalidInputError(f"{export} holds nothing to pack", hint="a trainer exports its model before it is done")
    return found[0] if len(found) == 1 and found[0].is_file() else export


def _link_all(made: Package, target: Path) -> None:
    for file in made.version.files:
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(made.paths[file.digest])
        except OSError:  # another file system, or one without
            shutil.copyfile(made.paths[file.digest], place)


def _say(folder: Path, event: training_pb2.WorkerEvent) -> None:
    event.at.GetCurrentTime()
    with (folder / "finish.jsonl").open("a") as file:
        file.write(json_format.MessageToJson(event, indent=None) + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
