"""A rollout that nothing can be made of: it alone stops, and says why; the coordinator and all others go on."""

from __future__ import annotations

import structlog

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.etcd import Etcd, Put
from coordinator.rollout.controller import STOPPED
from coordinator.settings import EtcdSettings
from tests.mesh.coordinator.conftest import model
from tests.mesh.coordinator.test_api import DIGEST, _said, target
from tests.mesh.coordinator.test_rollout_api import Rolling, api, canary  # noqa: F401  # a fixture
from tests.processes import EtcdServer, eventually

STUCK = "p"


async def test_one_that_cannot_be_worked_out_holds_no_other(etcd: EtcdServer, api: Rolling) -> None:  # noqa: F811
    await api.push(model(STUCK, "1.0.0", digest=DIGEST))
    await api.deploy(STUCK, target())
    wrong = rollout_pb2.Rollout(id="p-1", state=rollout_pb2.ROLLOUT_STATE_RUNNING, phase=rollout_pb2.PHASE_LOADING)
    wrong.spec.name, wrong.spec.version = STUCK, "1.0.0"
    store = Etcd(EtcdSettings(endpoints=(etcd.address,)))
    await store.connect()
    with structlog.testing.capture_logs() as logs:
        await _put(store, wrong)
        assert (await _reason(api, STOPPED)).startswith(f"{STOPPED}IndexError: ")
        await api.start(canary=canary(50, 100, hold_s=0.5))
        await api.reaches("SUCCEEDED")
    faults = [each for each in logs if each["event"] == "rollout.fault" and each["log_level"] == "error"]
    assert [each["name"] for each in faults] == [STUCK], "once, however often it is looked at"
    assert "exc_info" in faults[0]

    wrong.steps.add(targets=[routing_pb2.Target(version="1.0.0", replicas=1, weight=1)])
    wrong.before.CopyFrom(routing_pb2.Deployment(name=STUCK, targets=wrong.steps[0].targets))
    await _put(store, wrong)
    await _reason(api, "compared, and as it was before")
    await store.close()


async def _put(store: Etcd, rollout: rollout_pb2.Rollout) -> None:
    assert await store.txn([], [Put(keys.rollout(STUCK), keys.encode(rollout))])


async def _reason(rolling: Rolling, begins: str) -> str:
    async def said() -> str:
        request = rollout_pb2.GetRolloutRequest(name=STUCK)
        reason = str((await _said(rolling.rollouts.GetRollout(request, timeout=5))).rollout.reason)
        return reason if reason.startswith(begins) else ""

    return str(await eventually(said, what=begins))
