"""What a task needs on its node before it can start. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from node_agent.training.folder import checked_path


@dataclass(frozen=True)
class Need:
    """A blob, and where it goes below the task's folder."""

    place: str
    digest: str
    bytes: int
    chunk_list: str = ""

    @property
    def file(self) -> registry_pb2.ModelFile:
        """As what is fetched."""
        return registry_pb2.ModelFile(path=self.place, digest=self.digest, size=self.bytes, chunks=self.chunk_list)


def needs_of(task: training_pb2.TrainingTask) -> list[Need]:
    """Files that a process needs to start, but for the code. Raises InvalidInputError when two lie in one place."""
    if task.kind == training_pb2.TASK_KIND_FINISH:
        return []
    shards = [
        Need(f"data/{checked_path(shard.name, 'shard')}", shard.digest, shard.bytes, shard.chunk_list)
        for shard in task.spec.data.shards
    ]
    needs = [*shards, *_files("base", task.base.files)]
    places = [need.place for need in (*needs, *resume_of(task))]
    if len(set(places)) < len(places):
        twice = sorted({place for place in places if places.count(place) > 1})
        raise InvalidInputError(f"job {task.job} has two files named {twice[0]}", hint="rename one of them")
    return needs


def resume_of(task: training_pb2.TrainingTask) -> list[Need]:
    """Files of the checkpoint that it goes on from."""
    return _files("resume", task.resume.files) if task.kind == training_pb2.TASK_KIND_TRAIN else []


def copies_of(task: training_pb2.TrainingTask) -> list[Need]:
    """Checkpoint files that the node is to hold for others."""
    return _files("copies", task.copies)


def digests_of(task: training_pb2.TrainingTask) -> frozenset[str]:
    """All blobs that must stay in the node's store while the task is assigned."""
    found = {task.spec.code.archive}
    for need in (*needs_of(task), *resume_of(task), *copies_of(task)):
        found |= {need.digest, need.chunk_list}
    return frozenset(found - {""})


def blobs_of(files: Iterable[training_pb2.CheckpointFile]) -> frozenset[str]:
    """Digests of some files and their chunk lists."""
    return frozenset(digest for file in files for digest in (file.digest, file.chunk_list) if digest)


def _files(folder: str, files: Iterable[training_pb2.CheckpointFile]) -> list[Need]:
    return [
        Need(f"{folder}/{checked_path(file.path, 'file')}", file.digest, file.bytes, file.chunk_list) for file in files
    ]
