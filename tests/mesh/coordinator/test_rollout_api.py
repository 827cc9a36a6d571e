"""The rollout service of a real coordinator: what it refuses, and what people do to a rollout."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aimesh.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from aimesh.routing.v1 import routing_pb2
from meshkit.errors import AimeshError, InvalidInputError, NotFoundError, PreconditionError
from tests.mesh.coordinator.conftest import RunningCoordinator, agent, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, _said, target
from tests.processes import EtcdServer, eventually

VERSIONS = ("1.0.0", "1.1.0", "1.2.0")


class Rolling(Api):
    """A user's view of rollouts of the model m."""

    def __init__(self, c1: RunningCoordinator) -> None:
        super().__init__(c1)
        self.address = c1.settings.address
        self.rollouts: Any = rollout_pb2_grpc.RolloutServiceStub(c1.channel)

    async def start(self, version: str = "1.1.0", **fields: Any) -> rollout_pb2.StartRolloutResponse:
        fields.setdefault("gates", rollout_pb2.Gates(none=True))
        if not fields.keys() & {"rolling", "blue_green", "canary", "shadow", "experiment"}:
            fields["canary"] = rollout_pb2.Canary(steps=[50, 100])
        spec = rollout_pb2.RolloutSpec(**{"name": "m", "version": version, **fields})
        return await _said(self.rollouts.StartRollout(rollout_pb2.StartRolloutRequest(spec=spec), timeout=5))  # type: ignore[no-any-return]

    async def get(self) -> rollout_pb2.Rollout:
        answer = await _said(self.rollouts.GetRollout(rollout_pb2.GetRolloutRequest(name="m"), timeout=5))
        return answer.rollout  # type: ignore[no-any-return]

    async def do(self, verb: str, **fields: Any) -> rollout_pb2.Rollout:
        request = getattr(rollout_pb2, f"{verb}RolloutRequest")(name="m", **fields)
        return (await _said(getattr(self.rollouts, f"{verb}Rollout")(request, timeout=5))).rollout  # type: ignore[no-any-return]

    async def reaches(self, state: str = "", phase: str = "") -> rollout_pb2.Rollout:
        async def there() -> rollout_pb2.Rollout | None:
            found = await self.get()
            as_asked = not state or rollout_pb2.RolloutState.Name(found.state) == f"ROLLOUT_STATE_{state}"
            as_asked = as_asked and (not phase or rollout_pb2.Phase.Name(found.phase) == f"PHASE_{phase}")
            return found if as_asked else None

        return await eventually(there, what=f"{state} {phase}")  # type: ignore[no-any-return]

    async def weights(self) -> dict[str, int]:
        request = routing_pb2.GetDeploymentRequest(name="m")
        found = await _said(self.routing.GetDeployment(request, timeout=5))
        return {each.version: each.weight for each in found.status.deployment.targets}


@pytest.fixture
async def api(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Rolling]:
    """Three nodes; m:1.0.0 with one replica that answers."""
    async with coordinator(etcd, tmp_path) as c1:
        made = Rolling(c1)
        await made.upload(CONTENT)
        for version in VERSIONS:
            await made.push(model("m", version, digest=DIGEST))
        agents = [agent(c1.settings.address, name, name) for name in ("n1", "n2", "n3")]
        for each in agents:
            await each.join()
        await made.deploy("m", target())

        async def ready() -> bool:
            found = await made.routing.GetDeployment(routing_pb2.GetDeploymentRequest(name="m"), timeout=5)
            return bool(found.status.targets[0].ready)

        await eventually(ready, what="a replica that answers")
        yield made
        for each in agents:
            await each.vanish()


def canary(*steps: int, hold_s: float = 60) -> rollout_pb2.Canary:
    made = rollout_pb2.Canary(steps=steps)
    made.hold.FromNanoseconds(int(hold_s * 1e9))
    return made


ARMS = [rollout_pb2.Arm(version="1.0.0", percent=60), rollout_pb2.Arm(version="1.1.0", percent=60)]
BAD: list[tuple[dict[str, Any], type[AimeshError], str]] = [
    ({"name": "gone"}, NotFoundError, "'gone' is not deployed"),
    ({"version": "9.0.0"}, NotFoundError, "has no version '9.0.0'"),
    ({"version": "1.0.0"}, InvalidInputError, "m:1.0.0 has all requests already"),
    ({"canary": canary(5, 25)}, InvalidInputError, "5,25 never reach 100 percent"),
    ({"canary": canary(50, 25, 100)}, InvalidInputError, "50,25,100 do not rise"),
    ({"canary": canary(50, 150)}, InvalidInputError, "each must be from 1 to 100"),
    ({"canary": canary(50, 100, hold_s=-1)}, InvalidInputError, "canary.hold of -1 s"),
    (
        {"version": "", "experiment": rollout_pb2.Experiment(arms=ARMS, header="x-user")},
        InvalidInputError,
        "120 percent",
    ),
    (
        {"version": "", "experiment": rollout_pb2.Experiment(arms=ARMS[:1])},
        InvalidInputError,
        "1 arms compares nothing",
    ),
    ({"gates": rollout_pb2.Gates(needs=["happiness"])}, InvalidInputError, "'happiness' is unknown"),
    ({"gates": rollout_pb2.Gates(rego="package aimesh.gates\nfail contains")}, InvalidInputError, "policy"),
    ({"blue_green": rollout_pb2.BlueGreen(), "replicas": 4}, PreconditionError, "4 more replicas are wanted"),
]


async def test_what_cannot_be_leaves_everything_as_it_was(api: Rolling) -> None:
    for fields, kind, said in BAD:
        with pytest.raises(kind, match=said):
            await api.start(**fields)
    with pytest.raises(NotFoundError, match="'m' never had a rollout"):
        await api.get()
    assert await api.weights() == {"1.0.0": 1}


async def test_people_steer_it(api: Rolling) -> None:
    started = await api.start(canary=canary(50, 100))
    assert [step.percent for step in started.plan.steps] == [50, 100]
    with pytest.raises(PreconditionError, match=r"rollout to 1\.1\.0 that is not over"):
        await api.start("1.2.0")
    with pytest.raises(PreconditionError, match="not over"):
        await api.deploy("m", target("1.2.0"))
    with pytest.raises(PreconditionError, match="not over"):
        await _said(api.routing.DeleteDeployment(routing_pb2.DeleteDeploymentRequest(name="m"), timeout=5))
    await api.reaches("RUNNING", "HOLDING")
    assert await api.weights() == {"1.0.0": 50, "1.1.0": 50}
    paused = await api.do("Pause", reason="lunch")
    assert (paused.reason, paused.decisions[-1].by) == ("paused by anyone: lunch", "anyone")
    with pytest.raises(PreconditionError, match="is PAUSED and cannot be paused"):
        await api.do("Pause")
    await api.do("Resume")
    await api.do("Promote", reason="looks good")
    done = await api.reaches("SUCCEEDED")
    assert [each.reason for each in done.decisions] == [
        "paused by anyone: lunch",
        "resumed by anyone",
        "promoted by anyone: looks good",
    ]
    assert await api.weights() == {"1.1.0": 100}
    with pytest.raises(PreconditionError, match="is SUCCEEDED and cannot be aborted"):
        await api.do("Abort")
    undone = await api.do("Undo", reason="not so good")
    assert (undone.spec.version, undone.reason) == ("1.0.0", "undoes the rollout to 1.1.0: not so good")
    await api.reaches("SUCCEEDED")
    assert await api.weights() == {"1.0.0": 1}


async def test_a_version_that_goes_backwards_must_be_meant(api: Rolling) -> None:
    await api.start(canary=canary(100))
    await api.reaches("SUCCEEDED")
    with pytest.raises(InvalidInputError, match=r"1\.0\.0 is lower than 1\.1\.0"):
        await api.start("1.0.0")
    await api.start("1.0.0", allow_downgrade=True, canary=canary(50, 100))
    await api.reaches("RUNNING", "HOLDING")
    watched = asyncio.create_task(_watched(api))
    await api.do("Abort", reason="enough")
    await api.reaches("ROLLED_BACK")
    assert await api.weights() == {"1.1.0": 100}
    assert (await asyncio.wait_for(watched, 5))[-1] == "ROLLED_BACK"
    listed = await api.rollouts.ListRollouts(rollout_pb2.ListRolloutsRequest(), timeout=5)
    assert [each.spec.name for each in listed.rollouts] == ["m"]


async def test_an_experiments_winner_is_promoted_by_a_person(api: Rolling) -> None:
    arms = [rollout_pb2.Arm(version=version, percent=50) for version in ("1.0.0", "1.2.0")]
    await api.start("", experiment=rollout_pb2.Experiment(arms=arms, header="x-user"))
    await api.reaches("RUNNING", "HOLDING")
    with pytest.raises(InvalidInputError, match="must be named"):
        await api.do("Promote")
    await api.do("Promote", version="1.2.0")
    await api.reaches("SUCCEEDED")
    assert await api.weights() == {"1.2.0": 100}


async def test_the_command_line_shows_the_plan_and_follows_to_the_end(api: Rolling) -> None:
    code, said = await _aimesh(api, "start", "m:1.1.0", "--steps", "50,100", "--hold", "1s", "--no-gates")
    assert code == 0, said
    for line in ("time to promote", "time to roll back", "at 50 %", "SUCCEEDED: 1.1.0 has all requests"):
        assert line in said
    assert said.index("time to promote") < said.index("at 50 %")
    code, said = await _aimesh(api, "abort", "m")
    assert (code, "cannot be aborted" in said) == (5, True)


async def _aimesh(api: Rolling, *arguments: str) -> tuple[int, str]:
    """(exit code, what it printed) of `aimesh rollout ARGUMENTS`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tools.cli.main", "rollout", *arguments),
        env={**os.environ, "AIMESH_COORDINATORS": api.address},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode()


async def _watched(api: Rolling) -> list[str]:
    stream = api.rollouts.WatchRollout(rollout_pb2.WatchRolloutRequest(name="m"), timeout=30)
    return [
        rollout_pb2.RolloutState.Name(answer.rollout.state).removeprefix("ROLLOUT_STATE_") async for answer in stream
    ]
