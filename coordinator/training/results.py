"""A job's result: brought from the node that packed it, and recorded as a version with the job as its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf import json_format

from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from coordinator.api.validate import check_version_message
from coordinator.blob_exchange import BlobExchange, node_address
from coordinator.etcd import Created
from coordinator.registry.checking import MOST_SOURCE
from coordinator.registry.recording import Recorder
from coordinator.state import State
from coordinator.training.record import strategy_word
from meshkit.chunks import list_bytes
from meshkit.errors import InvalidInputError, UnavailableError

_MOST_RESULTS = 16
"""Results that are written into the provenance."""


@dataclass(frozen=True)
class Results:
    """Records them."""

    recorder: Recorder
    exchange: BlobExchange

    async def record(
        self, state: State, job: training_pb2.Job, packed: str, guards: Sequence[Created]
    ) -> registry_pb2.ModelVersion:
        """Records what FINISH packed under the name and number of the job's record.

        Raises UnavailableError while its files cannot be had, and what Recorder.create raises.
        """
        version = check_version_message(result_version(job, packed))
        node = state.nodes.get(job.attempt.workers[0].node)
        address = node_address(node) if node is not None else ""
        for digest, size in _blobs(version):
            if not await self.exchange.bring(digest, size, address):
                raise UnavailableError(
                    f"{job.id}: blob {digest} of its result cannot be had from {address or 'a node'}"
                )
        return await self.recorder.create(version, guards)


def result_version(job: training_pb2.Job, packed: str) -> registry_pb2.ModelVersion:
    """What is recorded of a result. Raises InvalidInputError when what the node says is no version."""
    try:
        version = json_format.Parse(packed, registry_pb2.ModelVersion(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise InvalidInputError(f"{job.id}: what its node packed is no version: {error}") from None
    version.name, _, version.version = job.model.partition(":")
    version.provenance.source = f"training job {job.id}"
    for key, value in lineage(job).items():
        version.provenance.details[key] = value[:MOST_SOURCE]
    return version


def lineage(job: training_pb2.Job) -> dict[str, str]:
    """What a result was made from, and how, as text by name."""
    spec, data = job.spec, job.spec.data
    digests = " ".join(shard.digest for shard in data.shards)
    told = {
        "job": job.id,
        "strategy": strategy_word(job.plan.strategy),
        "workers": str(len(job.attempt.workers)),
        "steps": str(job.step),
        "seed": str(spec.seed),
        "base_model": spec.base_model,
        "task": spec.task,
        "code": spec.code.archive,
        "entry": spec.code.entry,
        "data": data.builtin or data.path or digests,
        "failures": str(job.failures),
        "preemptions": str(job.preemptions),
    }
    results = {f"result.{name}"[:63]: f"{value:.6g}" for name, value in sorted(job.results.items())[:_MOST_RESULTS]}
    return {key: value for key, value in {**told, **results}.items() if value}


def _blobs(version: registry_pb2.ModelVersion) -> list[tuple[str, int]]:
    files = [(file.digest, file.size) for file in version.files]
    return files + [(file.chunks, list_bytes(file.size)) for file in version.files if file.chunks]
