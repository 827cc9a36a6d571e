"""Writes a worker's part of each checkpoint while training goes on (torch.distributed.checkpoint), whole or not."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from meshkit.errors import DataLossError, InvalidInputError
from meshkit.failpoints import failpoint
from meshkit.files import is_full, sync_directory
from training.checkpoint.api import Saved
from training.checkpoint.reading import plain_value
from training.checkpoint.spread import own_part
from training.checkpoint.sums import write_sums
from training.run.disk import whole_file
from training.run.group import Group

warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
_AGREE = timedelta(minutes=10)
"""One disk may be so much slower than another. A worker that is lost is seen by training's own sums long before."""


class _Disk(FileSystem):
    """Files that say what the disk said of them."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        failpoint("checkpoint.write")
        with whole_file(Path(path)) as stream:
            yield cast(io.IOBase, stream)


class _Writer(FileSystemWriter):
    """Makes its folder anew where an error of one worker is told to all: before, the others would wait for it."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        shutil.rmtree(self.path, ignore_errors=True)
        return super().prepare_local_plan(plan)


class DcpSaver:
    """See training.checkpoint.api.Saver. What every worker holds is written once, spread over the workers.

    Training waits while its numbers are copied to memory that is kept for this; everything else goes on beside it. A
    part is written under `.<step>`, with sums, and renamed when all workers have written theirs. Where one has no room
    all give it up. The workers agree in a process group of its own: training's sums and the checkpoint's must not meet.
    """

    def __init__(self, checkpoints: Path, group: Group) -> None:
        self._checkpoints = checkpoints
        self._group = group
        self._alone = group.world_size == 1
        self._agreeing = None if self._alone else distributed.new_group(backend="gloo", timeout=_AGREE)
        self._stager = DefaultStager(StagingOptions(group.device.type == "cuda", False, False, False))
        self._beside = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[Saved] | None = None
        self._whole: list[Saved] = []
        self._looked_at = False

    def save(self, step: int, state: dict[str, Any]) -> None:
        """See Saver. Raises InvalidInputError (BAD_TRAINER) for a schedule that could not be read again."""
        self._collect()
        self._look_at(state)
        writer = _Writer(self._checkpoints / f".{step}", single_file_per_rank=True, sync_files=True)
        writer.fs = _Disk()
        written: Any = state_dict_saver.async_save(
            self._own(state),
            storage_writer=writer,
            async_stager=self._stager,
            process_group=self._agreeing,
            no_dist=self._alone,
        )
        self._under_way = self._beside.submit(self._finish, step, written)

    def finished(self) -> list[Saved]:
        """See Saver."""
        if self._under_way is not None and self._under_way.done():
            self._collect()
        whole, self._whole = self._whole, []
        return whole

    def wait(self) -> list[Saved]:
        """See Saver."""
        self._collect()
        return self.finished()

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        """What this worker writes. A stage of a pipeline, which says the shapes of all, has nothing twice."""
        kept = {name: value for name, value in state.items() if name != "shapes"}
        return kept if "shapes" in state else own_part(kept, self._group.rank, self._group.world_size)

    def _look_at(self, state: dict[str, Any]) -> None:
        """Before the first one: a checkpoint that cannot be read is none."""
        if self._looked_at:
            return
        for name in ("scheduler", "optimizer"):
            value = state[name] if name == "scheduler" else state[name]["param_groups"]
            kept = io.BytesIO()
            try:
                torch.save(value, kept)
                kept.seek(0)
                plain_value(kept)
            except (pickle.PickleError, AttributeError, TypeError) as error:
                raise InvalidInputError(
                    f"the trainer's {name} has a state that a checkpoint cannot hold: {str(error).splitlines()[0]}",
                    hint="its state_dict may have numbers, text, lists, dictionaries and tensors",
                    reason="BAD_TRAINER",
                ) from error
        self._looked_at = True

    def _finish(self, step: int, written: Future[Any]) -> Saved:
        """In a thread of its own: waits until all have written, adds the sums and puts the part under its name.

        What is not whole in the end is removed at once: the next one may need the room.
        """
        folder, temporary = self._checkpoints / str(step), self._checkpoints / f".{step}"
        try:
            written.result()
            write_sums(temporary, self._group.rank, step, self._group.world_size)
            sync_directory(temporary)
            temporary.rename(folder)
            sync_directory(self._checkpoints)
            return Saved(step, {path.name: path.stat().st_size for path in folder.iterdir()})
        except (CheckpointException, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            return _given_up(step, error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _collect(self) -> None:
        """Waits for what is under way. Raises what `save` raises."""
        if self._under_way is None:
            return
        future, self._under_way = self._under_way, None
        self._whole.append(future.result())


def _given_up(step: int, error: BaseException) -> Saved:
    """What is said when a disk is full. Raises DataLossError when it was something else."""
    for rank, cause in _causes(error):
        if is_full(cause):
            whose = f"worker {rank}'s disk" if rank >= 0 else "the disk"
            return Saved(step, given_up=f"{whose} is full: {cause}"[:600])
    said = "; ".join(f"worker {rank}: {cause}" if rank >= 0 else str(cause) for rank, cause in _causes(error))
    raise DataLossError(
        f"checkpoint {step} could not be written: {said}"[:600], hint="the one before it still holds"
    ) from error


def _causes(error: BaseException) -> Iterator[tuple[int, BaseException]]:
    """What went wrong, with the rank of whom; -1 for this worker."""
    if not isinstance(error, CheckpointException):
        yield -1, error
        return
    for rank, (cause, _) in error.failures.items():
        yield rank, cause
