"""Makes the files that a task has made blobs of the node's store, and forgets them when nobody needs them any more."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

import structlog

from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from meshkit.chunks import digests_of
from meshkit.errors import AimeshError, DataLossError, NotFoundError
from meshkit.threads import uninterrupted
from node_agent.store import ModelStore
from node_agent.training.folder import Folder, checked_path
from node_agent.training.needs import blobs_of
from node_agent.training.state import TaskState

log = structlog.get_logger()

KEPT = 2
"""Checkpoints that are kept by itself: the last recorded one may be the one before the newest."""
_SHOWN = 2
"""Checkpoints that are reported, but for one that is being copied."""
LINGER_S = 30.0
"""So long a checkpoint's blobs stay after nothing asks for them: the leader may be about to."""


async def hold_file(store: ModelStore, path: Path, name: str) -> training_pb2.CheckpointFile:
    """Makes a file a blob, and its chunk list too; says what it is under that name.

    Raises ExhaustedError when there is no room in the store, OSError: then neither is one.
    """
    digest, listed = await uninterrupted(digests_of, path)
    size = path.stat().st_size  # noqa: ASYNC240  # was read a moment ago
    chunk_list = hashlib.sha256(listed).hexdigest() if listed else ""
    new = {blob for blob in (digest, chunk_list) if blob} - store.held()
    try:
        for blob, count in ((digest, size), (chunk_list, len(listed))):
            if blob in new:
                with store.reserved(blob, count, {digest, chunk_list}):
                    if blob == digest:
                        await uninterrupted(store.link, path, blob)
                    else:
                        await uninterrupted(store.put, listed, blob)
    except (AimeshError, OSError):
        _discard(store, new)
        raise
    return training_pb2.CheckpointFile(path=name, digest=digest, bytes=size, chunk_list=chunk_list)


async def hold_checkpoint(
    store: ModelStore, folder: Folder, task: training_pb2.TrainingTask, said: training_pb2.Checkpoint
) -> training_pb2.Checkpoint:
    """Makes this worker's part of a checkpoint blobs. Raises NotFoundError when it is not there, and what hold_file
    raises: then none of its files is a blob because of it.
    """
    before = frozenset(store.held())
    files: list[training_pb2.CheckpointFile] = []
    place = folder.checkpoints / str(said.step)
    names = [checked_path(file.path, "checkpoint file") for file in said.files] or await uninterrupted(_files, place)
    try:
        for name in sorted(names):
            files.append(await hold_file(store, place / name, name))
    except (AimeshError, OSError) as error:
        _discard(store, blobs_of(files) - before)
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"checkpoint {said.step} lacks {error.filename}") from None
        raise
    return training_pb2.Checkpoint(
        step=said.step,
        files=files,
        attempt=said.attempt or task.attempt,
        world_size=said.world_size or max(1, len(task.workers)),
    )


async def hold_version(
    store: ModelStore, folder: Folder, version: registry_pb2.ModelVersion
) -> list[training_pb2.CheckpointFile]:
    """Makes the files of a packed result blobs. Raises DataLossError when one is not what the version says."""
    held = []
    for file in version.files:
        found = await hold_file(store, folder.packed / "files" / checked_path(file.path, "file"), file.path)
        if (found.digest, found.chunk_list) != (file.digest, file.chunks):
            raise DataLossError(f"{file.path} of the packed result is not what its description says")
        held.append(found)
    return held


def outdated(state: TaskState) -> list[training_pb2.Checkpoint]:
    """The checkpoints that make room for newer ones; one that other nodes copy does not yet. Pure."""
    old = state.written[max(KEPT, state.task.spec.checkpoint.keep) :]
    return [each for each in old if each.step != state.task.copying]


def reported(state: TaskState) -> list[training_pb2.Checkpoint]:
    """The newest checkpoints, and the one that other nodes copy, newest first. Pure."""
    return [each for index, each in enumerate(state.written) if index < _SHOWN or each.step == state.task.copying]


def sweep(folder: Folder, upto: int, kept: Collection[int]) -> None:
    """Removes the checkpoints of steps up to this one that are not kept: outdated, not held, or left out.

    Blocks on the disk.
    """
    found: list[Path] = []
    with suppress(OSError):  # none was written yet, or they are cleared away; the next look tries again
        found = list(folder.checkpoints.iterdir())
    for path in found:
        if path.name.isdecimal() and int(path.name) <= upto and int(path.name) not in kept:
            shutil.rmtree(path, ignore_errors=True)


class Pins:
    """Which blobs the store keeps for training."""

    def __init__(self, store: ModelStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._needed_at: dict[str, float] = {}
        """When a checkpoint's blob was last asked for."""

    def set(self, needed: Collection[str], made: Collection[str], spare: Collection[str]) -> None:
        """`needed` are blobs of tasks that are assigned, `made` those of them that exist only because of jobs, `spare`
        those of jobs that wait. A made one that nothing asks for any more is dropped after a while.
        """
        now = self._clock()
        self._needed_at.update(dict.fromkeys(made, now))
        idle = {digest for digest, at in self._needed_at.items() if now - at > LINGER_S}
        self._store.pin("training", {*needed, *(self._needed_at.keys() - idle)})
        self._store.spare(spare)
        gone = idle - set(spare)
        for digest in gone:
            del self._needed_at[digest]
        for digest in gone - self._store.pinned():
            self._store.discard(digest)


def _discard(store: ModelStore, digests: Iterable[str]) -> None:
    for digest in digests:
        store.discard(digest)


def _files(place: Path) -> list[str]:
    if not place.is_dir():
        raise NotFoundError(f"checkpoint {place.name} is not there")
    return [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]
