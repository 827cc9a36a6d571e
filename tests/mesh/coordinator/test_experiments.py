"""Experiments on a real coordinator, with versions that a real Triton answers for."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from aimesh.experiment.v1 import experiment_pb2, experiment_pb2_grpc
from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from coordinator.experiments import lifecycle
from coordinator.identity.signing import create_key_file
from coordinator.settings import AuthSettings, ExperimentSettings
from meshkit.errors import (
    AimeshError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from tests.mesh.coordinator.conftest import Agent, RunningCoordinator, agent, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, _said, target
from tests.mesh.xds.triton import RunningTriton, tritons
from tests.processes import EtcdServer, eventually
from tools.cli import experiments_client as client
from tools.cli.target import Mesh

NAME = "addone"
TENSOR = {"data_type": registry_pb2.DATA_TYPE_FP32, "shape": [-1]}
SIGNATURE = registry_pb2.Signature(
    inputs=[registry_pb2.TensorSpec(name="INPUT0", **TENSOR)],  # type: ignore[arg-type]
    outputs=[registry_pb2.TensorSpec(name="OUTPUT0", **TENSOR)],  # type: ignore[arg-type]
)

EASY = rollout_pb2.Gates(inconclusive=rollout_pb2.INCONCLUSIVE_PROMOTE, false_alarm=1e-12)
"""For versions that are alike: answers take a millisecond, and what a busy machine adds to one's must not count."""


def lines(count: int = 100, wrong: int = 0, begin: float = 0.0) -> bytes:
    """Questions with their answers, so many of which are wrong."""
    questions = [
        {"inputs": {"INPUT0": [begin or float(number)]}, "expected": (begin or number) + (1 if number >= wrong else 2)}
        for number in range(count)
    ]
    return "\n".join(map(json.dumps, questions)).encode()


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    with tritons(tmp_path_factory.mktemp("triton"), 1) as (running,):
        yield running


class Trying(Api):
    """A user's view of experiments."""

    def __init__(self, c1: RunningCoordinator) -> None:
        super().__init__(c1)
        self.c1 = c1
        self.stub: Any = experiment_pb2_grpc.ExperimentServiceStub(c1.channel)

    async def serve(self, triton: RunningTriton) -> list[Agent]:
        """Two versions on a node each; the second gets no requests."""
        await self.upload(CONTENT)
        for version in ("1.0.0", "1.1.0"):
            made = model(NAME, version, digest=DIGEST)
            made.signature.CopyFrom(SIGNATURE)
            made.files[0].size = len(CONTENT)
            await self.push(made)
        agents = [agent(self.c1.settings.address, name, name) for name in ("n1", "n2")]
        for each in agents:
            each.hello.report.triton.grpc_port = triton.grpc_port
            each.hello.labels["cost_per_hour"] = "2.0"
            await each.join()
        await self.deploy(NAME, target("1.0.0"), target("1.1.0", weight=0))
        return agents

    async def create(self, name: str, content: bytes, **fields: Any) -> experiment_pb2.Experiment:
        with contextlib.suppress(PreconditionError):  # it is there
            await self.upload(content)
        evaluation = rollout_pb2.Evaluation(dataset=hashlib.sha256(content).hexdigest(), metrics=["accuracy"])
        values = {"candidate": "1.1.0", "baseline": "1.0.0", "evaluation": evaluation, "repeat": 4, **fields}
        spec = experiment_pb2.ExperimentSpec(name=name, model=NAME, **values)
        request = experiment_pb2.CreateExperimentRequest(spec=spec)
        return (await _said(self.stub.CreateExperiment(request, timeout=10))).experiment  # type: ignore[no-any-return]

    async def get(self, name: str) -> experiment_pb2.GetExperimentResponse:
        request = experiment_pb2.GetExperimentRequest(name=name)
        return await _said(self.stub.GetExperiment(request, timeout=5))  # type: ignore[no-any-return]

    async def do(self, verb: str, name: str, reason: str = "") -> experiment_pb2.Experiment:
        request = getattr(experiment_pb2, f"{verb}ExperimentRequest")(name=name, reason=reason)
        return (await _said(getattr(self.stub, f"{verb}Experiment")(request, timeout=5))).experiment  # type: ignore[no-any-return]

    async def review(self, digits: str, reason: str) -> experiment_pb2.Quarantine:
        request = experiment_pb2.ReleaseQuarantineRequest(hash=digits, reason=reason)
        return (await _said(self.stub.ReleaseQuarantine(request, timeout=5))).quarantine  # type: ignore[no-any-return]

    async def reaches(self, name: str, state: str) -> experiment_pb2.GetExperimentResponse:
        async def there() -> experiment_pb2.GetExperimentResponse | None:
            found = await self.get(name)
            return found if lifecycle.word(found.experiment.state) == state else None

        return await eventually(there, what=f"{name} {state}")  # type: ignore[no-any-return]

    async def names(self) -> list[str]:
        answer = await _said(self.stub.ListExperiments(experiment_pb2.ListExperimentsRequest(), timeout=5))
        return [each.spec.name for each in answer.experiments]

    async def stable(self) -> str:
        request = registry_pb2.GetModelRequest(name=NAME)
        return (await _said(self.registry.GetModel(request, timeout=5))).model.aliases.get("stable", "")  # type: ignore[no-any-return]

    async def audited(self, name: str) -> list[tuple[str, str]]:
        """(actor, state) of the events of one."""
        stub: Any = identity_pb2_grpc.IdentityServiceStub(self.c1.channel)
        request = identity_pb2.ListAuditEventsRequest(target_prefix=f"experiments/{name}")
        found = await _said(stub.ListAuditEvents(request, timeout=5))
        return [
            (each.actor, json.loads(each.after)["state"].removeprefix("EXPERIMENT_STATE_")) for each in found.events
        ]


@pytest.fixture
async def api(etcd: EtcdServer, tmp_path: Path, triton: RunningTriton) -> AsyncIterator[Trying]:
    async with coordinator(etcd, tmp_path) as c1:
        made = Trying(c1)
        agents = await made.serve(triton)
        yield made
        for each in agents:
            await each.vanish()


async def test_a_candidate_that_is_as_good_becomes_stable_and_a_report_stays(api: Trying) -> None:
    content = lines()
    created = await api.create("good", content, parameters={"temperature": "0.5"}, gates=EASY)
    assert (created.state, created.spec.evaluation.output) == (lifecycle.CREATED, "OUTPUT0")
    found = await api.reaches("good", "PROMOTED")
    assert await api.stable() == "1.1.0"
    assert found.experiment.verdict in (rollout_pb2.VERDICT_PASS, rollout_pb2.VERDICT_INCONCLUSIVE)
    assert (found.report.questions, found.report.candidate.requests) == (100, 400)
    rows = {row.metric: row for row in found.report.rows}
    assert rows["accuracy"].candidate.value == rows["overlap"].candidate.value == 1.0
    assert rows["cost_per_request"].candidate.value > 0
    assert list(found.report.candidate.nodes) != list(found.report.baseline.nodes)
    with pytest.raises(PreconditionError, match="'good' is promoted and cannot be promoted"):
        await api.do("Promote", "good", "again")
    states = ["CREATED", "EXECUTING", "EVALUATED", "PROMOTING", "PROMOTED"]
    actors = ["anyone", "leader", "leader", "leader", "leader"]
    await eventually(lambda: _is(api.audited("good"), list(zip(actors, states, strict=True))), what="audit events")
    with pytest.raises(ConflictError, match="'good' already"):
        await api.create("good", content)

    evaluation = rollout_pb2.Evaluation(dataset=hashlib.sha256(content).hexdigest())
    request = experiment_pb2.CompareRequest(
        baseline_model=NAME,
        baseline="1.0.0",
        candidate_model=NAME,
        candidate="1.1.0",
        evaluation=evaluation,
        repeat=1,
    )
    told: list[tuple[int, int]] = []
    mesh = Mesh((api.c1.settings.address,), "", None, None)
    report = await client.compare(mesh, request, lambda done, total: told.append((done, total)))
    assert (told[-1], report.repeat) == ((200, 200), 1)
    assert await client.follow(mesh, "good", lambda _: None) == found
    assert await client.list_all(mesh, NAME) == ([found.experiment], "")
    assert await api.names() == ["good"]


async def test_a_bad_one_is_quarantined_and_refused_until_somebody_says_why_not(api: Trying) -> None:
    bad = lines(wrong=40)
    await api.create("bad", bad)
    ended = await api.reaches("bad", "QUARANTINED")
    found = ended.experiment
    assert {row.metric: row.candidate.value for row in ended.report.rows}["accuracy"] == 0.6
    assert "accuracy is 0.6" in found.reason or "latency" in found.reason, "the latter on a machine that stood still"
    assert await api.stable() == ""
    with pytest.raises(PreconditionError, match="quarantined") as refused:
        await api.create("bad-again", bad)
    assert refused.value.reason == "QUARANTINED"
    rollouts: Any = rollout_pb2_grpc.RolloutServiceStub(api.c1.channel)
    spec = rollout_pb2.RolloutSpec(name=NAME, version="1.1.0", blue_green=rollout_pb2.BlueGreen())
    start = rollout_pb2.StartRolloutRequest(spec=spec)
    with pytest.raises(PreconditionError, match=r"quarantined .* 'bad'") as refused:
        await _said(rollouts.StartRollout(start, timeout=5))
    assert refused.value.reason == "QUARANTINED"
    # What makes no sense changes nothing.
    wrong: list[tuple[Any, type[AimeshError], str]] = [
        (api.review("f" * 64, "why"), NotFoundError, "ever quarantined"),
        (api.review(found.hash, " "), InvalidInputError, "needs a reason"),
        (api.do("Promote", "bad"), InvalidInputError, "needs a reason"),
        (api.do("Cancel", "bad"), PreconditionError, "cannot be cancelled"),
        (api.do("Reject", "nobody", "x"), NotFoundError, "no experiment 'nobody'"),
    ]
    for call, error, said in wrong:
        with pytest.raises(error, match=said):
            await call
    assert (await api.get("bad")).experiment == found
    # A person looks at it, and tries it once more under another name.
    assert (await api.review(found.hash[:12], "labels were wrong")).review.reason == "labels were wrong"
    with pytest.raises(PreconditionError, match="was lifted by anyone: labels were wrong"):
        await api.review(found.hash, "again")
    await api.create("bad-again", bad, repeat=1)
    await api.reaches("bad-again", "QUARANTINED")
    promoted = await api.do("Promote", "bad-again", "we need it")
    assert promoted.events[-1].by == "anyone"
    found = (await api.reaches("bad-again", "PROMOTED")).experiment
    assert "we need it" in found.reason
    assert await api.stable() == "1.1.0"
    answer = await api.stub.ListQuarantine(experiment_pb2.ListQuarantineRequest(), timeout=5)
    (record,) = answer.quarantined
    assert (record.experiment, record.review.reason) == ("bad-again", "promoted: we need it")
    assert any(each.metric == "accuracy" for each in record.evidence)


async def test_what_cannot_be_tried_is_refused_and_nothing_stays(api: Trying) -> None:
    unlabelled = lines().splitlines()
    unlabelled[41] = b'{"inputs": {"INPUT0": [1.0]}}'
    refused: list[tuple[bytes, dict[str, Any], type[AimeshError], str]] = [
        (lines(99), {}, InvalidInputError, "has 99 questions, and an experiment needs 100"),
        (b"\n".join(unlabelled), {}, InvalidInputError, "line 42 of the evaluation set has no label"),
        (lines().replace(b"INPUT0", b"IN"), {}, InvalidInputError, "question 1 .* has the inputs IN"),
        (lines(), {"candidate": "3.0.0"}, NotFoundError, "no version '3.0.0'"),
        (lines(), {"baseline": "1.1.0"}, InvalidInputError, "both 1.1.0"),
        (lines(), {"repeat": 21}, InvalidInputError, "too many"),
        (lines(), {"gates": rollout_pb2.Gates(rego="package x")}, InvalidInputError, "policy"),
    ]
    for content, fields, error, said in refused:
        with pytest.raises(error, match=said):
            await api.create("e", content, **fields)
    assert await api.names() == []
    # A version that is loaded nowhere is waited for, and said.
    made = model(NAME, "2.0.0", digest=DIGEST)
    made.signature.CopyFrom(SIGNATURE)
    made.files[0].size = len(CONTENT)
    await api.push(made)
    await api.create("waits", lines(), candidate="2.0.0")

    async def says_so() -> bool:
        return (
            "no node answers for addone:2.0.0: load it with a weight of 0" in (await api.get("waits")).experiment.reason
        )

    await eventually(says_so, what="the reason")
    assert lifecycle.word((await api.do("Cancel", "waits", "no room")).state) == "CANCELLED"


async def test_the_next_leader_goes_on_and_a_lost_database_hurts_nothing_else(
    etcd: EtcdServer, tmp_path: Path, triton: RunningTriton
) -> None:
    pgserver = pytest.importorskip("pgserver")
    server = pgserver.get_server(tmp_path / "postgres", cleanup_mode="stop")
    create_key_file(tmp_path / "api-keys.pem")
    shared = {
        "experiments": ExperimentSettings(url=server.get_uri()),
        "auth": AuthSettings(key_file=tmp_path / "api-keys.pem"),
    }
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(server.cleanup)
        first = contextlib.AsyncExitStack()
        await first.enter_async_context(coordinator(etcd, tmp_path, "c1", **shared))
        c2 = await stack.enter_async_context(coordinator(etcd, tmp_path, "c2", **shared))
        second = Trying(c2)
        agents = await second.serve(triton)
        await second.create("long", lines(begin=-(2.0**-6)), repeat=1, gates=EASY)
        await second.reaches("long", "EXECUTING")
        await first.aclose()
        found = await second.reaches("long", "PROMOTED")
        assert found.experiment.attempts == 2
        assert [event.state for event in found.experiment.events].count(lifecycle.EVALUATED) == 1
        server.cleanup()
        with pytest.raises(UnavailableError, match="experiments' database") as away:
            await second.names()
        assert away.value.reason == "EXPERIMENT_STORE"
        await second.deploy(NAME, target("1.1.0"))
        for each in agents:
            await each.vanish()


async def _is(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)
