"""Which models this agent goes on with without loading them: those that are just what was recorded of them.

They are served by a Triton that it adopted, or by a new one that was started with them. A Triton opens its port once
it has loaded what it was started with: who still asks it for these models, because no coordinator could take the node
out of the routes, is refused a connection (and asks another node), and never told that there is no such model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import structlog
from tritonclient.grpc import model_config_pb2

from aimesh.registry.v1 import registry_pb2
from meshkit.process import ProcessId
from node_agent.gpuchoice import GpuShare
from node_agent.modelconfig import KEY, scheduling_note
from node_agent.repository import Repository
from node_agent.served import Served, ServedRecord, environment
from node_agent.triton.client import TritonClient
from node_agent.triton.selftest import NAME as SELFTEST
from node_agent.triton.stubs import StubWatch
from node_agent.work import LoadedAs

log = structlog.get_logger()


@dataclass(frozen=True)
class AdoptedModel:
    """A model that goes on serving."""

    version: registry_pb2.ModelVersion
    """Its name, version and digest only."""
    key: str
    gpu: GpuShare | None
    stubs: frozenset[ProcessId]
    strays: frozenset[ProcessId]
    """Stubs of its name that are not its own: of a version that was replaced, or is being loaded."""
    note: str


async def find_models(
    client: TritonClient, pid: int, served: ServedRecord, repository: Repository, stubs: StubWatch
) -> list[AdoptedModel]:
    """What an adopted Triton serves and is known to be right. What else lies in the repository is removed.

    Raises AimeshError when Triton does not answer.
    """
    index = await client.index()
    found = []
    for name in sorted(name for name, entry in index.items() if entry.state == "READY" and name != SELFTEST):
        alive = await asyncio.to_thread(stubs.find, pid, name)
        model, doubt = judge(name, await client.config(name), served.get(name), alive, repository)
        if model is None:
            log.warning("model.not_adopted", model=name, reason=doubt)
        else:
            found.append(model)
    await asyncio.to_thread(served.keep, {model.version.name for model in found})
    # What it loads at this moment, for the agent before, is left alone as well.
    await asyncio.to_thread(
        repository.clear, {name for name, entry in index.items() if entry.state not in ("", "UNAVAILABLE")}
    )
    log.info("models.adopted", models=[model.version.name for model in found])
    return found


def startable(
    served: ServedRecord, repository: Repository, verify: Callable[[str], bool], allows: Callable[[Served], bool]
) -> list[str]:
    """The models that a new Triton may be started with: they are laid out, whole, and passed their test as they are.

    `verify` says whether a blob is what its digest says, `allows` whether the mesh takes what is recorded, by its
    signatures. Blocks on the disk.
    """
    here = environment()
    return [
        name
        for name, recorded in sorted(served.all().items())
        if recorded.environment == here
        and (laid_out := LoadedAs.parse(repository.key_of(name))) is not None
        and laid_out.key == recorded.key
        and allows(recorded)
        and all(verify(digest) for digest in sorted(recorded.digests))
        and _whole(name, recorded, repository)
    ]


def _whole(name: str, recorded: Served, repository: Repository) -> bool:
    """Whether what is laid out is what was: a link keeps the old bytes when its blob was found damaged and replaced."""
    damaged = repository.damaged(name, recorded.files, recorded.digests)
    if damaged:
        log.warning("model.files_damaged", model=name, files=damaged)
    repository.drop_bytecode(name)
    return bool(recorded.files) and not damaged


async def find_started(
    names: Collection[str],
    client: TritonClient,
    pid: int,
    served: ServedRecord,
    repository: Repository,
    stubs: StubWatch,
) -> list[AdoptedModel]:
    """What a Triton that was started with these models serves of them. What it could not load is forgotten.

    Raises AimeshError when Triton does not answer.
    """
    index = await client.index()
    found = []
    for name in sorted(names):
        entry, recorded = index.get(name), served.get(name)
        model, doubt = None, entry.reason if entry is not None else "it is not there"
        if entry is not None and entry.state == "READY":
            alive = await asyncio.to_thread(stubs.find, pid, name)
            own = replace(recorded, stubs=alive) if recorded and len(alive) >= len(recorded.stubs) else recorded
            model, doubt = judge(name, await client.config(name), own, alive, repository)
            if model is not None and own is not None:
                await asyncio.to_thread(served.put, name, own)
        if model is None:
            log.warning("model.not_started", model=name, reason=doubt)
            await asyncio.to_thread(served.forget, name)
        else:
            found.append(model)
    log.info("models.started", models=[model.version.name for model in found])
    return found


def judge(
    name: str,
    config: model_config_pb2.ModelConfig,
    recorded: Served | None,
    alive: frozenset[ProcessId],
    repository: Repository,
) -> tuple[AdoptedModel | None, str]:
    """A model that Triton calls ready, or why it is not to be trusted."""
    loaded = LoadedAs.parse(config.parameters[KEY].string_value) if KEY in config.parameters else None
    if loaded is None:
        return None, "the agent before did not load it"
    if recorded is None or recorded.key != loaded.key:
        return None, "it has not passed its test"
    if not recorded.stubs <= alive:
        return None, "a process of it died"
    version = registry_pb2.ModelVersion(name=name, version=loaded.version, digest=loaded.digest)
    # A template that was upgraded meanwhile makes another key: it serves until it has been loaded anew.
    current = repository.template_digest(loaded.runtime) == loaded.template
    key = loaded.key if current else loaded.text
    note = scheduling_note(config) if loaded.scheduled else ""
    return AdoptedModel(version, key, recorded.gpu, recorded.stubs, alive - recorded.stubs, note), ""
