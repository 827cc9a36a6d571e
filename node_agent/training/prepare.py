"""Brings what a task needs into its folder: fetched by digest, checked, and linked from the store."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import structlog

from aimesh.training.v1 import training_pb2
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, InvalidInputError, NotFoundError, PreconditionError
from meshkit.threads import uninterrupted
from node_agent.fetch import Fetcher
from node_agent.store import ModelStore, link_or_copy
from node_agent.training.folder import Folder
from node_agent.training.needs import Need, needs_of, resume_of
from node_agent.training.unpack import MOST_BYTES, unpack

log = structlog.get_logger()

_TRIES = 5
"""So often a fetch is tried before the task fails."""
_MIB = 1024 * 1024
_OWN = ("code", "data", "base", "resume")


class Preparer:
    """Prepares the tasks of one node."""

    def __init__(self, node_id: str, store: ModelStore, fetcher: Fetcher) -> None:
        self._node_id = node_id
        self._store = store
        self._fetcher = fetcher

    async def prepare(self, task: training_pb2.TrainingTask, folder: Folder, told: Callable[[str], None]) -> None:
        """Makes the folder hold, from nothing, what a process needs to start; `told` is called with what it waits for.

        Raises InvalidInputError and PreconditionError when it never can, else what fetching failed with.
        """
        self._check(task, folder)
        await uninterrupted(_clear, folder, task.kind)
        if task.spec.code.archive and task.kind != training_pb2.TASK_KIND_FINISH:
            told("fetching the code")
            await self.fetch_code(task.spec.code.archive)
            await uninterrupted(unpack, self._store.path(task.spec.code.archive), folder.path / "code")
        await self._bring(needs_of(task), folder, told)

    async def bring_checkpoint(
        self, task: training_pb2.TrainingTask, folder: Folder, told: Callable[[str], None]
    ) -> None:
        """Makes the folder hold the checkpoint to go on from, which a process that starts does not need yet.

        Raises what `prepare` raises.
        """
        await self._bring(resume_of(task), folder, told)

    async def _bring(self, needs: Sequence[Need], folder: Folder, told: Callable[[str], None]) -> None:
        for number, need in enumerate(needs, 1):
            await self.fetch(need, partial(_tell, told, f"file {number} of {len(needs)}"))
            await uninterrupted(_place, self._store.path(need.digest), folder.path / need.place)
        told("")

    async def fetch_code(self, digest: str) -> None:
        """Makes the store hold an archive of code. Raises what fetching failed with."""
        await _again(lambda: self._fetcher.fetch_unsized(digest, MOST_BYTES, ()))

    async def fetch(self, need: Need, told: Callable[[str], None]) -> None:
        """Makes the store hold a blob. Raises what fetching failed with."""

        def progress(received: int) -> None:
            told(f"{need.place}: {received // _MIB} of {need.bytes // _MIB} MiB")

        try:
            await _again(lambda: self._fetcher.fetch_shared(need.file, (), progress))
        except AimeshError as error:
            what = f"{need.place} (blob {need.digest}) could not be fetched: {error.message}"
            raise type(error)(what, hint=error.hint, reason=error.reason) from None

    def _check(self, task: training_pb2.TrainingTask, folder: Folder) -> None:
        path = task.spec.data.path
        if task.kind == training_pb2.TASK_KIND_FINISH:
            if not folder.export.is_dir() or not any(folder.export.iterdir()):
                raise NotFoundError(
                    f"rank {task.rank} of job {task.job} has left no result on node {self._node_id}",
                    hint="its folder was removed, or another agent's data directory is in use",
                )
        elif path and not Path(path).is_absolute():
            raise InvalidInputError(f"data.path = {path!r} of job {task.job} is not absolute", hint="begin it with /")
        elif path and not Path(path).exists():
            raise PreconditionError(
                f"data.path = {path!r} of job {task.job} does not exist on node {self._node_id}",
                hint="put the data there, choose nodes that have it with resources.node_labels, or upload it as shards",
            )


async def _again(fetch: Callable[[], Awaitable[None]]) -> None:
    """Fetches until it succeeds, at most _TRIES times: a peer that leaves is no reason to give a job up."""
    backoff = Backoff(first_s=0.2, most_s=5.0)
    while True:
        try:
            await fetch()
        except (AimeshError, OSError) as error:
            if isinstance(error, InvalidInputError) or backoff.failures + 1 >= _TRIES:
                raise
            log.info("task.fetch_failed", reason=str(error))
            await asyncio.sleep(backoff.next_delay())
        else:
            return


def _clear(folder: Folder, kind: training_pb2.TaskKind.ValueType) -> None:
    """Nothing of an earlier preparation is left; a result that is to be packed is."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if kind == training_pb2.TASK_KIND_FINISH:
        shutil.rmtree(folder.packed, ignore_errors=True)
        folder.finish_events.unlink(missing_ok=True)
        return
    for name in (*_OWN, "checkpoints", "export", "packed"):
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for path in (folder.stop, folder.go, folder.events, folder.finish_events):
        path.unlink(missing_ok=True)


def _tell(told: Callable[[str], None], which: str, text: str) -> None:
    told(f"{which}, {text}")


def _place(blob: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    link_or_copy(blob, place)


def strip(folder: Folder, kind: training_pb2.TaskKind.ValueType) -> None:
    """Removes what is large, once the task is assigned no more; logs, events, and a result that is to be packed stay.

    Blocks on the disk.
    """
    names = [*_OWN, "checkpoints", *(["export", "packed"] if kind == training_pb2.TASK_KIND_FINISH else [])]
    for path in (folder.path, folder.client.path):
        for name in names:
            _remove(path / name)


def _remove(path: Path) -> None:
    """A folder, or the link to one."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
