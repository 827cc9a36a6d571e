"""Whether a job may be recorded: what it names exists, and some node could take its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.blob_exchange import BlobExchange
from coordinator.registry.finding import check_is_model, find_version
from coordinator.state import State
from coordinator.training.needs import never
from meshkit.blobs import BlobStore
from meshkit.chunks import list_bytes
from meshkit.errors import ConflictError, ExhaustedError, NotFoundError, PreconditionError

MOST_JOBS = 5000
"""Records: every coordinator holds all of them in memory."""
_SHOWN = 8


@dataclass(frozen=True)
class Admission:
    """Looks at all of it."""

    blobs: BlobStore
    exchange: BlobExchange

    async def check(self, state: State, job: training_pb2.Job) -> None:
        """Raises NotFoundError, ConflictError, ExhaustedError or PreconditionError; see TrainingService.SubmitJob."""
        if len(state.jobs) >= MOST_JOBS:
            raise ExhaustedError(
                f"there are {len(state.jobs)} jobs", hint="remove some that have ended: aimesh train rm"
            )
        check_base(state, job.spec)
        check_free(state, job.spec)
        check_nodes(state.known, job)
        if job.spec.HasField("code") and not await self._held(job.spec.code.archive):
            raise _missing("code.archive", job.spec.code.archive)
        for shard in job.spec.data.shards:
            fits = await self.exchange.has_size(shard.digest, shard.bytes)
            if not fits:
                raise _missing(
                    f"data.shards: {shard.name}", shard.digest, "" if fits is None else f" of {shard.bytes} bytes"
                )
            if shard.chunk_list and not await self.exchange.has_size(shard.chunk_list, list_bytes(shard.bytes)):
                raise _missing(f"data.shards: {shard.name}: chunk_list", shard.chunk_list)

    async def _held(self, digest: str) -> bool:
        return digest in self.blobs.held() or await self.exchange.held_elsewhere(digest)


def check_base(state: State, spec: training_pb2.JobSpec) -> None:
    """Raises NotFoundError when the version to start from does not exist, PreconditionError when it is a prompt."""
    if spec.base_model:
        name, _, version = spec.base_model.partition(":")
        check_is_model(find_version(state, name, version))


def check_free(state: State, spec: training_pb2.JobSpec) -> None:
    """Raises ConflictError when the version that the result is to get exists."""
    output = spec.output
    if output.version and not output.discard and (output.model, output.version) in state.versions:
        raise ConflictError(
            f"{output.model}:{output.version} exists",
            hint="versions never change; leave output.version out for the next one",
            reason="VERSION_EXISTS",
        )


def check_nodes(nodes: Mapping[str, membership_pb2.Node], job: training_pb2.Job) -> None:
    """Raises PreconditionError when no node could ever take a worker. A mesh without nodes may get some."""
    reasons = {
        node_id: never(job, node) for node_id, node in nodes.items() if node.state != membership_pb2.NODE_STATE_DEAD
    }
    if reasons and all(reasons.values()):
        shown = "; ".join(f"{node}: {why}" for node, why in sorted(reasons.items())[:_SHOWN])
        more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise PreconditionError(
            f"no node could take a worker of {job.spec.name}: {shown}{more}",
            hint="ask for less in resources, or add such a node",
            reason="JOB_NO_NODE",
        )


def _missing(field: str, digest: str, size: str = "") -> NotFoundError:
    return NotFoundError(
        f"{field}: no coordinator that answers holds blob {digest}{size}",
        hint="upload it with ArtifactsService.UploadBlob first",
        reason="BLOB_MISSING",
    )
