"""The API services against a real coordinator: a model's way from blob to placement, and every refusal on it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from meshkit.errors import (
    AimeshError,
    ConflictError,
    DataLossError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from meshkit.grpc_errors import from_call
from tests.mesh.coordinator.conftest import RunningCoordinator, agent, coordinator, model
from tests.processes import EtcdServer, eventually

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Api:
    """A user's view: errors come as the catalogue's."""

    def __init__(self, c1: RunningCoordinator) -> None:
        self.registry: Any = registry_pb2_grpc.RegistryServiceStub(c1.channel)
        self.routing: Any = routing_pb2_grpc.RoutingServiceStub(c1.channel)
        self.artifacts: Any = artifacts_pb2_grpc.ArtifactsServiceStub(c1.channel)

    async def upload(self, content: bytes, *, digest: str = "", offset: int = 0, size: int | None = None) -> None:
        head = artifacts_pb2.UploadBlobRequest(
            digest=digest or hashlib.sha256(content).hexdigest(),
            offset=offset,
            size=len(content) + offset if size is None else size,
            data=content,
        )
        await _said(self.artifacts.UploadBlob(iter([head]), timeout=5))

    async def push(self, version: registry_pb2.ModelVersion) -> registry_pb2.ModelVersion:
        request = registry_pb2.CreateVersionRequest(version=version)
        return (await _said(self.registry.CreateVersion(request, timeout=5))).version  # type: ignore[no-any-return]

    async def deploy(self, name: str, *targets: routing_pb2.Target) -> routing_pb2.DeploymentStatus:
        deployment = routing_pb2.Deployment(name=name, targets=targets)
        request = routing_pb2.ApplyDeploymentRequest(deployment=deployment)
        return (await _said(self.routing.ApplyDeployment(request, timeout=5))).status  # type: ignore[no-any-return]


async def _said(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from None


@pytest.fixture
async def c1(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with coordinator(etcd, tmp_path) as started:
        yield started


def target(version: str = "1.0.0", replicas: int = 1, weight: int = 1) -> routing_pb2.Target:
    return routing_pb2.Target(version=version, replicas=replicas, weight=weight)


async def test_blobs_resume_and_are_checked(c1: RunningCoordinator) -> None:
    api = Api(c1)
    with pytest.raises(PreconditionError, match="ended at byte 100"):
        await api.upload(CONTENT[:100], digest=DIGEST, size=len(CONTENT))
    stat = await api.artifacts.StatBlob(artifacts_pb2.StatBlobRequest(digest=DIGEST), timeout=5)
    assert (stat.complete, stat.received) == (False, 100)
    with pytest.raises(PreconditionError, match="100 bytes are held, not 50"):
        await api.upload(CONTENT[50:], digest=DIGEST, offset=50)
    await api.upload(CONTENT[100:], digest=DIGEST, offset=100)
    got = [
        part.data
        async for part in api.artifacts.DownloadBlob(artifacts_pb2.DownloadBlobRequest(digest=DIGEST, offset=5))
    ]
    assert b"".join(got) == CONTENT[5:]
    with pytest.raises(DataLossError, match="came with other content"):
        await api.upload(b"other", digest="f" * 64)
    with pytest.raises(DataLossError, match="were announced"):
        await api.upload(b"longer than said", digest="e" * 64, size=3)
    with pytest.raises(InvalidInputError, match="is no sha256 digest"):
        await api.upload(b"x", digest="../../etc/passwd")


async def test_versions_never_change(c1: RunningCoordinator) -> None:
    api = Api(c1)
    with pytest.raises(PreconditionError, match=r"content of 1/model\.py has not been uploaded"):
        await api.push(model(digest=DIGEST))
    await api.upload(CONTENT)
    first = await api.push(model(digest=DIGEST))
    assert first.digest
    assert (await api.push(model(digest=DIGEST))) == first, "the same content again changes nothing"
    await api.upload(b"changed")
    with pytest.raises(ConflictError, match="exists with other content"):
        await api.push(model(digest=hashlib.sha256(b"changed").hexdigest()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Big Model"}, "Big Model"),
        ({"version": "1"}, "'1'"),
        ({"runtime": "fortran"}, "runtime 'fortran' is unknown"),
        ({"path": "../../etc/passwd"}, "file path '../../etc/passwd' is not allowed"),
        ({"path": "/etc/passwd"}, "not allowed"),
        ({"path": "a//b"}, "not allowed"),
        ({"digest": "abc"}, "is no sha256"),
    ],
)
async def test_bad_versions_are_refused(c1: RunningCoordinator, change: dict[str, str], said: str) -> None:
    version = model(digest=DIGEST)
    for name, value in change.items():
        setattr(version.files[0] if name in ("path", "digest") else version, name, value)
    with pytest.raises(InvalidInputError, match=said):
        await Api(c1).push(version)


async def test_lists_are_paged_newest_first(c1: RunningCoordinator) -> None:
    api = Api(c1)
    await api.upload(CONTENT)
    for number in ("1.0.0", "1.10.0", "1.9.0", "2.0.0-rc.1"):
        await api.push(model(version=number, digest=DIGEST))
    seen, token = [], ""
    while True:
        request = registry_pb2.ListVersionsRequest(page_size=3, page_token=token)
        answer = await api.registry.ListVersions(request, timeout=5)
        seen += [version.version for version in answer.versions]
        token = answer.next_page_token
        if not token:
            break
    assert seen == ["2.0.0-rc.1", "1.10.0", "1.9.0", "1.0.0"]
    newest = await api.registry.GetVersion(registry_pb2.GetVersionRequest(name="m"), timeout=5)
    assert newest.version.version == "2.0.0-rc.1"
    with pytest.raises(InvalidInputError, match="page_token"):
        await _said(api.registry.ListVersions(registry_pb2.ListVersionsRequest(page_token="!"), timeout=5))


async def test_a_deployment_is_placed_served_and_removed(c1: RunningCoordinator) -> None:
    api = Api(c1)
    await api.upload(CONTENT)
    await api.push(model(digest=DIGEST))
    n1, n2 = agent(c1.settings.address, "n1"), agent(c1.settings.address, "n2", instance="i2")
    await n1.join()
    await n2.join()
    status = await api.deploy("m", target(replicas=3))
    assert (status.targets[0].wanted, sorted(status.targets[0].nodes)) == (3, ["n1", "n2"])
    assert {r.limit for r in status.targets[0].rejections} == {"occupied"}, "a missing replica has a reason"
    await eventually(lambda: _ready(api, 2), what="two ready replicas")
    assert n1.models() == n2.models() == {"m:1.0.0"}
    assert n1.assignments[-1].models[0].files[0].digest == DIGEST, "the assignment carries all that is needed"
    with pytest.raises(PreconditionError, match="is deployed"):
        await _said(api.registry.DeleteVersion(registry_pb2.DeleteVersionRequest(name="m", version="1.0.0"), timeout=5))
    await n2.vanish()
    await eventually(lambda: _ready(api, 1), what="the lost replica out of the count")
    await api.routing.DeleteDeployment(routing_pb2.DeleteDeploymentRequest(name="m"), timeout=5)
    await eventually(lambda: n1.models() == set(), what="unassigned")
    await api.registry.DeleteVersion(registry_pb2.DeleteVersionRequest(name="m", version="1.0.0"), timeout=5)
    await eventually(lambda: _blob_gone(api), what="the blob removed")
    await n1.vanish()


async def test_bad_deployments_are_refused(c1: RunningCoordinator) -> None:
    api = Api(c1)
    await api.upload(CONTENT)
    await api.push(model(digest=DIGEST))
    cases: list[tuple[type[AimeshError], str, list[routing_pb2.Target]]] = [
        (NotFoundError, "has no version '9.0.0'", [target("9.0.0")]),
        (InvalidInputError, "no targets", []),
        (InvalidInputError, "0 replicas", [target(replicas=0)]),
        (InvalidInputError, "sum to zero", [target(weight=0)]),
        (InvalidInputError, "a version twice", [target(), target()]),
    ]
    for kind, said, targets in cases:
        with pytest.raises(kind, match=said):
            await api.deploy("m", *targets)
    with pytest.raises(NotFoundError, match="model 'nobody' does not exist"):
        await api.deploy("nobody", target())
    with pytest.raises(NotFoundError, match="is not deployed"):
        await _said(api.routing.GetDeployment(routing_pb2.GetDeploymentRequest(name="m"), timeout=5))


async def test_a_failed_load_is_shown_with_its_reason(c1: RunningCoordinator) -> None:
    api = Api(c1)
    await api.upload(CONTENT)
    await api.push(model(digest=DIGEST))
    n1 = agent(c1.settings.address)
    n1.obedient = False
    await n1.join()
    await api.deploy("m", target())
    await eventually(lambda: n1.models() == {"m:1.0.0"}, what="assigned")
    failed = membership_pb2.MODEL_STATE_FAILED
    n1.report(membership_pb2.ModelStatus(name="m", version="1.0.0", state=failed, message="no such layer"))
    shown = await eventually(lambda: _rejections(api), what="the reason")
    assert [(r.node, r.limit, r.message) for r in shown] == [("n1", "load_failed", "no such layer")]
    await n1.vanish()


async def _ready(api: Api, count: int) -> bool:
    answer = await api.routing.GetDeployment(routing_pb2.GetDeploymentRequest(name="m"), timeout=5)
    return answer.status.targets[0].ready == count  # type: ignore[no-any-return]


async def _rejections(api: Api) -> Any:
    answer = await api.routing.GetDeployment(routing_pb2.GetDeploymentRequest(name="m"), timeout=5)
    return answer.status.targets[0].rejections


async def _blob_gone(api: Api) -> bool:
    stat = await api.artifacts.StatBlob(artifacts_pb2.StatBlobRequest(digest=DIGEST), timeout=5)
    return stat.received == 0  # type: ignore[no-any-return]
