"""Which blobs jobs use, which of them coordinators are to hold, and how large they are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from aimesh.training.v1 import training_pb2
from coordinator.state import State
from coordinator.training.orders import statuses_of
from coordinator.training.record import SUCCEEDED, busy
from meshkit.chunks import list_bytes

MOST_CODE_BYTES = 256 * 1024**2
"""Bytes of an archive of code, whose size no record says."""
Jobs = Mapping[str, training_pb2.Job]


def used(jobs: Iterable[training_pb2.Job]) -> set[str]:
    """Digests of all blobs of jobs: code and data for as long as there is a record, checkpoints until the result is."""
    return {digest for job in jobs for digest in (*_uploaded(job), *_written(job))}


def kept(jobs: Iterable[training_pb2.Job]) -> set[str]:
    """Digests of the blobs that coordinators are to hold: what was uploaded, and the checkpoint of a job that no node
    holds anything for. While a job runs, its nodes hold its checkpoint."""
    return {digest for job in jobs for digest in (*_uploaded(job), *(() if busy(job) else _written(job)))}


def gone(before: Jobs, now: Jobs) -> set[str]:
    """Digests that some job used before and that job does not use now."""
    changed = [job_id for job_id, job in before.items() if now.get(job_id) is not job]
    left = used(now[job_id] for job_id in changed if job_id in now)
    return used(before[job_id] for job_id in changed) - left


def sizes(jobs: Iterable[training_pb2.Job]) -> dict[str, int]:
    """Bytes of each blob of jobs, by digest, but of archives of code, of which nobody says."""
    found: dict[str, int] = {}
    for job in jobs:
        for shard in job.spec.data.shards:
            found |= _sizes(shard.digest, shard.bytes, shard.chunk_list)
        for file in job.checkpoint.files:
            found |= _sizes(file.digest, file.bytes, file.chunk_list)
    return found


def most_bytes(jobs: Iterable[training_pb2.Job], digest: str) -> int | None:
    """Bytes that a blob may have; None when it is no job's."""
    known = list(jobs)
    if any(job.spec.HasField("code") and job.spec.code.archive == digest for job in known):
        return MOST_CODE_BYTES
    return sizes(known).get(digest)


def reported_size(state: State, digest: str) -> int | None:
    """Bytes of a part of a checkpoint that some worker has written; None when no agent speaks of such a blob."""
    for file in _reported(state):
        found = _sizes(file.digest, file.bytes, file.chunk_list).get(digest)
        if found is not None:
            return found
    return None


def _reported(state: State) -> Iterator[training_pb2.CheckpointFile]:
    for job in state.jobs.values():
        if busy(job):
            yield from job.checkpoint.files
            yield from job.attempt.resume.files
            for status in statuses_of(state, job).values():
                for checkpoint in status.checkpoints:
                    yield from checkpoint.files


def _uploaded(job: training_pb2.Job) -> Iterator[str]:
    if job.spec.HasField("code"):
        yield job.spec.code.archive
    for shard in job.spec.data.shards:
        yield shard.digest
        if shard.chunk_list:
            yield shard.chunk_list


def _written(job: training_pb2.Job) -> Iterator[str]:
    for file in job.checkpoint.files if job.state != SUCCEEDED else ():
        yield file.digest
        if file.chunk_list:
            yield file.chunk_list


def _sizes(digest: str, size: int, chunk_list: str) -> dict[str, int]:
    return {digest: size, **({chunk_list: list_bytes(size)} if chunk_list else {})}
