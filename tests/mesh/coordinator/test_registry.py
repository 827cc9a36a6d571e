"""What is said of models: provenance, aliases that deployments follow, tags, compatibility, prompts; on a real etcd."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.etcd import Delete, Etcd, Put
from coordinator.settings import EtcdSettings
from meshkit.errors import (
    AimeshError,
    ConflictError,
    DataLossError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    SupersededError,
)
from tests.mesh.coordinator.conftest import RunningCoordinator, agent, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, _said
from tests.processes import EtcdServer, eventually

TEXT = b"Dear {{ user }}"


class Registry(Api):
    """The registry as users see it."""

    def __init__(self, c1: RunningCoordinator) -> None:
        super().__init__(c1)
        self.audit: Any = identity_pb2_grpc.IdentityServiceStub(c1.channel)

    async def versions(self, *numbers: str, name: str = "m") -> None:
        await self.upload(CONTENT)
        for number in numbers:
            await self.push(model(name=name, version=number, digest=DIGEST))

    async def alias(self, alias: str, version: str, name: str = "m") -> registry_pb2.SetAliasResponse:
        request = registry_pb2.SetAliasRequest(name=name, alias=alias, version=version)
        return await _said(self.registry.SetAlias(request, timeout=5))  # type: ignore[no-any-return]

    async def tag(self, version: str, *remove: str, **tags: str) -> registry_pb2.Model:
        request = registry_pb2.TagVersionRequest(name="m", version=version, set=tags, remove=remove)
        return (await _said(self.registry.TagVersion(request, timeout=5))).model  # type: ignore[no-any-return]

    async def model(self) -> registry_pb2.Model:
        return (await _said(self.registry.GetModel(registry_pb2.GetModelRequest(name="m"), timeout=5))).model  # type: ignore[no-any-return]

    async def delete(self, version: str, name: str = "m") -> None:
        request = registry_pb2.DeleteVersionRequest(name=name, version=version)
        await _said(self.registry.DeleteVersion(request, timeout=5))

    async def remove_alias(self, alias: str) -> None:
        await _said(self.registry.DeleteAlias(registry_pb2.DeleteAliasRequest(name="m", alias=alias), timeout=5))

    async def targets(self) -> list[tuple[str, str]]:
        found = await _said(self.routing.GetDeployment(routing_pb2.GetDeploymentRequest(name="m"), timeout=5))
        return [(target.version, target.alias) for target in found.status.deployment.targets]


@pytest.fixture
async def api(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Registry]:
    async with coordinator(etcd, tmp_path) as started:
        yield Registry(started)


@pytest.fixture
async def direct(etcd: EtcdServer) -> AsyncIterator[Etcd]:
    client = Etcd(EtcdSettings(endpoints=(etcd.address,)))
    await client.connect()
    yield client
    await client.close()


def following(alias: str, weight: int = 1) -> routing_pb2.Target:
    return routing_pb2.Target(alias=alias, replicas=1, weight=weight)


async def test_a_version_tells_where_it_comes_from(api: Registry) -> None:
    await api.upload(CONTENT)
    version = model(digest=DIGEST)
    version.changelog = "First."
    version.provenance.pushed_by = "somebody else"
    version.provenance.source = "job 7"
    recorded = await api.push(version)
    assert (recorded.provenance.pushed_by, recorded.provenance.source) == ("anyone", "job 7")
    assert (recorded.changelog, recorded.kind) == ("First.", registry_pb2.KIND_MODEL)
    version.changelog = "Said anew."
    assert await api.push(version) == recorded, "the same content is the same version, and what was said of it stays"
    version.version, version.changelog = "1.0.1", "x" * 1_000_000
    with pytest.raises(InvalidInputError, match="changelog has 1000000 bytes"):
        await api.push(version)


async def test_a_break_is_refused_and_two_at_once_meet(api: Registry) -> None:
    await api.upload(CONTENT)

    def taking(number: str, *names: str, replaces: str = "") -> registry_pb2.ModelVersion:
        version = model(version=number, digest=DIGEST)
        version.replaces = replaces
        for name in names:
            version.signature.inputs.add(name=name, data_type=registry_pb2.DATA_TYPE_FP32, shape=[-1])
        return version

    await api.push(taking("1.0.0", "x"))
    with pytest.raises(PreconditionError, match=r"breaks callers of 1\.0\.0: input 'z' is new") as caught:
        await api.push(taking("1.1.0", "x", "z"))
    assert caught.value.reason == "SIGNATURE_BREAKS"
    with pytest.raises(InvalidInputError, match=r"cannot replace 1\.1\.0"):
        await api.push(taking("1.1.0", "x", replaces="1.1.0"))
    with pytest.raises(NotFoundError, match=r"replaces '0\.9\.0'"):
        await api.push(taking("1.1.0", "x", replaces="0.9.0"))
    await api.push(taking("2.0.0", "x", "z"))
    # Each of these breaks the other: one of them is recorded at most.
    both = [taking("3.1.0", "x"), taking("3.2.0", "y")]
    done = await asyncio.gather(*map(api.push, both), return_exceptions=True)
    failed = [each for each in done if isinstance(each, AimeshError)]
    assert [type(each) for each in failed] in ([SupersededError], [PreconditionError])


async def test_a_deployment_follows_its_alias_there_and_back(api: Registry) -> None:
    await api.versions("1.0.0", "1.1.0", "2.0.0")
    with pytest.raises(NotFoundError, match="no alias 'champion'") as caught:
        await api.deploy("m", following("champion"))
    assert caught.value.reason == "ALIAS_NOT_FOUND"
    first = await api.alias("champion", "1.0.0")
    assert (first.previous_version, list(first.deployments)) == ("", [])
    await api.deploy("m", following("champion"))
    assert await api.targets() == [("1.0.0", "champion")]

    moved = await api.alias("champion", "1.1.0")
    assert (moved.previous_version, list(moved.deployments)) == ("1.0.0", ["m"])
    assert await api.targets() == [("1.1.0", "champion")]
    assert list((await api.alias("champion", "1.1.0")).deployments) == [], "nothing to change"
    back = await api.alias("champion", moved.previous_version)
    assert (back.previous_version, await api.targets()) == ("1.1.0", [("1.0.0", "champion")])
    events = await api.audit.ListAuditEvents(identity_pb2.ListAuditEventsRequest(page_size=1000), timeout=5)
    told = [event.target for event in events.events if event.action.endswith("SetAlias")]
    assert (told.count("catalog/m"), told.count("deployments/m")) == (3, 2)

    # A split between two aliases, which must not meet.
    await api.alias("next", "2.0.0")
    await api.deploy("m", following("champion"), following("next"))
    with pytest.raises(PreconditionError, match=r"alias champion and alias next .* come to the same version 1\.0\.0"):
        await api.alias("next", "1.0.0")
    assert await api.targets() == [("1.0.0", "champion"), ("2.0.0", "next")]
    assert (await api.model()).aliases["next"] == "2.0.0"


async def test_aliases_and_versions_in_use_stay(api: Registry) -> None:
    await api.versions("1.0.0", "1.1.0", "1.2.0")
    await api.alias("champion", "1.0.0")
    await api.alias("old", "1.1.0")
    await api.deploy("m", following("champion"))
    cases: list[tuple[type[AimeshError], str, Any]] = [
        (NotFoundError, "has no version '9.0.0'", api.alias("champion", "9.0.0")),
        (NotFoundError, "'nobody' does not exist", api.alias("champion", "1.0.0", "nobody")),
        (InvalidInputError, "version '' is not allowed", api.alias("champion", "")),
        (InvalidInputError, "alias '1.0.0' is not allowed", api.alias("1.0.0", "1.0.0")),
        (InvalidInputError, "alias '9' is not allowed", api.deploy("m", following("9"))),
        (PreconditionError, "follows the alias 'champion'", api.remove_alias("champion")),
        (NotFoundError, "no alias 'none'", api.remove_alias("none")),
        (PreconditionError, "m:1.1.0 is what the alias old stands for", api.delete("1.1.0")),
        (PreconditionError, "is deployed", api.delete("1.0.0")),
    ]
    for kind, said, call in cases:
        with pytest.raises(kind, match=said):
            await call
    await api.delete("1.2.0")
    await api.remove_alias("old")
    await api.delete("1.1.0")
    assert dict((await api.model()).aliases) == {"champion": "1.0.0"}


async def test_an_alias_waits_for_a_rollout_that_is_not_over(api: Registry, direct: Etcd) -> None:
    await api.versions("1.0.0", "1.1.0")
    await api.alias("champion", "1.0.0")
    await api.deploy("m", following("champion"))

    spec = rollout_pb2.RolloutSpec(name="m", version="1.1.0")

    async def rollout(state: rollout_pb2.RolloutState.ValueType) -> None:
        assert await direct.txn(
            [], [Put(keys.rollout("m"), keys.encode(rollout_pb2.Rollout(id="r", spec=spec, state=state)))]
        )

    for state in (rollout_pb2.ROLLOUT_STATE_RUNNING, rollout_pb2.ROLLOUT_STATE_HELD):
        await rollout(state)
        with pytest.raises(PreconditionError, match=r"a rollout to 1\.1\.0 that is not over") as caught:
            await api.alias("champion", "1.1.0")
        assert caught.value.reason == "ROLLOUT_RUNNING"
    await api.alias("candidate", "1.1.0")
    assert await api.targets() == [("1.0.0", "champion")]
    await rollout(rollout_pb2.ROLLOUT_STATE_ROLLED_BACK)
    await api.alias("champion", "1.1.0")
    assert await api.targets() == [("1.1.0", "champion")]
    await direct.txn([], [Delete(keys.rollout("m"))])


async def test_an_alias_is_not_moved_to_what_the_policy_does_not_take(api: Registry) -> None:
    await api.upload(CONTENT)
    batching = model(digest=DIGEST)
    batching.signature.max_batch_size = 8
    await api.push(batching)
    await api.push(model(version="2.0.0", digest=DIGEST))
    await api.alias("champion", "1.0.0")
    deployment = routing_pb2.Deployment(name="m", targets=[following("champion")])
    deployment.policy.scheduling.priority_levels = 2
    request = routing_pb2.ApplyDeploymentRequest(deployment=deployment)
    await _said(api.routing.ApplyDeployment(request, timeout=5))
    with pytest.raises(InvalidInputError, match=r"version 2\.0\.0 takes no batches"):
        await api.alias("champion", "2.0.0")
    assert (await api.targets(), (await api.model()).aliases["champion"]) == ([("1.0.0", "champion")], "1.0.0")


async def test_tags_come_and_go_with_their_version(api: Registry) -> None:
    await api.versions("1.0.0", "1.1.0")
    await api.tag("1.0.0", stage="tested", by="")
    assert dict((await api.tag("1.0.0", "by", stage="good")).tags["1.0.0"].values) == {"stage": "good"}
    for kind, said, call in (
        (NotFoundError, "has no tag 'by'", api.tag("1.0.0", "by")),
        (NotFoundError, "has no version", api.tag("3.0.0", a="b")),
        (InvalidInputError, "257 characters", api.tag("1.0.0", a="x" * 257)),
        (InvalidInputError, "is not allowed", api.tag("1.0.0", **{"k" * 64: ""})),
    ):
        with pytest.raises(kind, match=said):
            await call
    await api.delete("1.0.0")
    assert await api.model() == registry_pb2.Model(name="m")
    await api.delete("1.1.0")
    with pytest.raises(NotFoundError):
        await api.model()


async def test_prompts_are_recorded_fetched_and_never_deployed(api: Registry) -> None:
    await api.upload(TEXT)
    file = registry_pb2.ModelFile(path="p.txt", digest=hashlib.sha256(TEXT).hexdigest(), size=len(TEXT))
    prompt = registry_pb2.ModelVersion(name="p", version="1.0.0", kind=registry_pb2.KIND_PROMPT, files=[file])
    await api.push(prompt)
    await api.versions("1.0.0")
    found = await api.registry.GetVersion(registry_pb2.GetVersionRequest(name="p"), timeout=5)
    assert found.text.encode() == TEXT
    for kind, names in (
        (registry_pb2.KIND_UNSPECIFIED, ["m", "p"]),
        (registry_pb2.KIND_MODEL, ["m"]),
        (registry_pb2.KIND_PROMPT, ["p"]),
    ):
        page = await api.registry.ListVersions(registry_pb2.ListVersionsRequest(kind=kind), timeout=5)
        assert [version.name for version in page.versions] == names
    with pytest.raises(PreconditionError, match="prompts run on no node") as caught:
        await api.deploy("p", routing_pb2.Target(version="1.0.0", replicas=1, weight=1))
    assert caught.value.reason == "WRONG_KIND"
    with pytest.raises(PreconditionError, match="prompts run on no node"):
        await _said(api.registry.GetCompatibility(registry_pb2.GetCompatibilityRequest(name="p"), timeout=5))
    with pytest.raises(ConflictError, match="p is a prompt"):
        await api.push(model(name="p", version="1.1.0", digest=DIGEST))
    await api.upload(b"\xff\xfe")
    prompt.version, prompt.files[0].digest = "1.1.0", hashlib.sha256(b"\xff\xfe").hexdigest()
    with pytest.raises(InvalidInputError, match=f"p.txt has other than the {len(TEXT)} bytes"):
        await api.push(prompt)
    prompt.files[0].size = 2
    with pytest.raises(InvalidInputError, match="byte 0 is 0xff"):
        await api.push(prompt)


async def test_a_prompt_whose_bytes_have_changed_is_not_given_out(api: Registry, tmp_path: Path) -> None:
    await api.upload(TEXT)
    file = registry_pb2.ModelFile(path="p.txt", digest=hashlib.sha256(TEXT).hexdigest(), size=len(TEXT))
    await api.push(registry_pb2.ModelVersion(name="p", version="1.0.0", kind=registry_pb2.KIND_PROMPT, files=[file]))
    blob = tmp_path / "c1" / "blobs" / file.digest
    blob.chmod(0o644)
    blob.write_bytes(TEXT.replace(b"Dear", b"dear"))
    with pytest.raises(DataLossError, match="is not what was pushed"):
        await _said(api.registry.GetVersion(registry_pb2.GetVersionRequest(name="p"), timeout=5))


async def test_which_nodes_can_run_a_version(api: Registry, etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path, "c2") as c2:
        wide, small = agent(c2.settings.address, "n1"), agent(c2.settings.address, "n2", "i2", memory_gib=1)
        await wide.join()
        await small.join()
        await api.upload(CONTENT)
        await api.push(model(digest=DIGEST, memory_gib=2))

        async def matrix() -> dict[str, bool]:
            answer = await api.registry.GetCompatibility(registry_pb2.GetCompatibilityRequest(name="m"), timeout=5)
            assert answer.version == "1.0.0"
            return {node.node: node.compatible for node in answer.nodes}

        async def as_it_is() -> bool:
            return await matrix() == {"n1": True, "n2": False}

        await eventually(as_it_is, what="both nodes")
        await wide.vanish()
        await small.vanish()
