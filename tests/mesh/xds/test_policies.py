"""What becomes of each rule of a policy in real engines: Envoy, and gRPC's own client on xds:///."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf import descriptor_pb2, duration_pb2
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import State
from tests.contract.conftest import REPOSITORY, require_node
from tests.mesh.xds import harness
from tests.mesh.xds.clients import one_input, refusal, triton_client
from tests.mesh.xds.conftest import XdsMesh
from tests.mesh.xds.triton import RunningTriton, tritons
from tests.processes import free_ports

READY = membership_pb2.MODEL_STATE_READY
POLICY = routing_pb2.RoutePolicy
MOMENT = duration_pb2.Duration(nanos=200_000_000)
_revisions = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Two Tritons that serve addone and know nothing of backup, and one the other way round."""

    mesh: XdsMesh
    backup: RunningTriton

    def nodes(self, *versions: str) -> list[membership_pb2.Node]:
        """A node a version of addone."""
        found = [harness.node(index, self.mesh.tritons[index], {"addone": READY}) for index, _ in enumerate(versions)]
        for node, version in zip(found, versions, strict=True):
            node.report.models[0].version = version
        return found

    def publish(self, nodes: Sequence[membership_pb2.Node], *deployments: routing_pb2.Deployment) -> State:
        """Makes it so, and waits until the gateway has taken it."""
        number = next(_revisions)
        marker = f"marker-{number}"
        state = harness.state_of(number, nodes, deployments, recorded=[marker])
        self.mesh.coordinator.publish(state)
        url = f"http://{self.mesh.gateway}/v2/models/{marker}"
        harness.eventually(lambda: "is not deployed" in harness.get(url)[1], "the gateway took the state")
        refused = [sub.nack for client in self.mesh.coordinator.clients() for sub in client.subscriptions if sub.nack]
        assert not refused
        return state

    @contextlib.contextmanager
    def paused(self, index: int) -> Iterator[None]:
        """One of the two hangs: it accepts and never answers."""
        pid = self.mesh.tritons[index].process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def stage(mesh: XdsMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with tritons(tmp_path_factory.mktemp("backup"), 1, ("backup",)) as running:
        yield Stage(mesh, running[0])


@pytest.fixture(params=["xds", "gateway"])
def target(request: pytest.FixtureRequest, stage: Stage) -> str:
    return "xds:///addone" if request.param == "xds" else stage.mesh.gateway


def addone(policy: POLICY | None = None, **weights: int) -> routing_pb2.Deployment:
    """addone with the policy; versions as v1=50, v2=50, else 1.0.0 alone."""
    named = {f"{key[1:]}.0.0": weight for key, weight in weights.items()} or {harness.VERSION: 100}
    targets = [routing_pb2.Target(version=version, replicas=1, weight=weight) for version, weight in named.items()]
    return routing_pb2.Deployment(name="addone", targets=targets, policy=policy)


def infer(client: Any, headers: dict[str, str] | None = None, first: float = 0.0, **call: Any) -> Any:
    tensor = tritonclient.grpc.InferInput("INPUT0", [1], "FP32")
    tensor.set_data_from_numpy(np.array([first], np.float32))
    return client.infer("addone", [tensor], headers=headers, **call)


def counts(stage: Stage) -> list[int]:
    """Answers given by each of the two."""
    found = []
    for each in stage.mesh.tritons:
        with triton_client(f"127.0.0.1:{each.grpc_port}") as client:
            found.append(int(client.get_inference_statistics("addone").model_stats[0].inference_count))
    return found


def where(stage: Stage, call: Callable[[], object]) -> int:
    """Which of the two answered."""
    before = counts(stage)
    call()
    grown: list[int] = []

    def counted() -> bool:  # Triton counts an answer a moment after it gave it
        grown[:] = [index for index, (now, then) in enumerate(zip(counts(stage), before, strict=True)) if now > then]
        return bool(grown)

    harness.eventually(counted, "the answer is counted")
    (index,) = grown
    return index


@contextlib.contextmanager
def busy(client: Any) -> Iterator[None]:
    """A call of a second in flight."""
    call = threading.Thread(target=lambda: infer(client, first=-1.0))
    call.start()
    time.sleep(0.3)  # it is on its way; nothing outside tells
    yield
    call.join()


def backup_node(stage: Stage) -> membership_pb2.Node:
    return harness.node(9, stage.backup, {"backup": READY})


def dead_node(stage: Stage, number: int, model: str = "addone") -> membership_pb2.Node:
    """One of which the mesh does not know yet that nothing answers there."""
    grpc_port, http_port = free_ports(2)
    gone = dataclasses.replace(stage.backup, grpc_port=grpc_port, http_port=http_port)
    return harness.node(number, gone, {model: READY})


BALANCERS = {
    "by_capacity": routing_pb2.Balancer(by_capacity=routing_pb2.ByCapacity()),
    "ring_hash": routing_pb2.Balancer(ring_hash=routing_pb2.RingHash(header="x-session")),
    "least_request": routing_pb2.Balancer(least_request=routing_pb2.LeastRequest()),
}


@pytest.mark.parametrize("kind", BALANCERS)
def test_a_retry_finds_the_replica_that_lives_however_small_its_share(stage: Stage, kind: str) -> None:
    dead, live = dead_node(stage, 5), stage.nodes("1.0.0")[0]
    dead.capacity.cpu_cores, live.capacity.cpu_cores = 64, 1
    stage.publish([dead, dead_node(stage, 6), live], addone(POLICY(balancer=BALANCERS[kind])))
    with triton_client(stage.mesh.gateway) as client:
        for session in range(60):
            infer(client, {"x-session": str(session)}, client_timeout=5)


def test_as_many_replicas_are_left_out_as_the_policy_allows(stage: Stage) -> None:
    outlier = routing_pb2.OutlierEjection(consecutive_errors=2, max_ejected_percent=90)
    policy = POLICY(outlier=outlier, retry=routing_pb2.RetryPolicy(max_retries=0))
    stage.publish([dead_node(stage, 5), dead_node(stage, 6), *stage.nodes("1.0.0")], addone(policy))
    with triton_client(stage.mesh.gateway) as client:
        harness.eventually(lambda: all(_answers(client, 5.0) for _ in range(9)), "both are left out, most of the three")


def test_a_version_without_weight_answers_its_match_while_the_others_are_down(stage: Stage, target: str) -> None:
    match = routing_pb2.Match(header="x-tenant", value="acme", version="2.0.0")
    tested = harness.node(0, stage.mesh.tritons[0], {"addone": READY})
    tested.report.models[0].version = "2.0.0"
    url = f"http://{stage.mesh.gateway}/v2/models/addone/ready"
    stage.publish([tested], addone(POLICY(matches=[match]), v1=100, v2=0))
    with triton_client(target) as client:
        assert infer(client, {"x-tenant": "acme"}, client_timeout=10).get_response().model_name == "addone"
        assert refusal(lambda: infer(client, client_timeout=10))[0] == "UNAVAILABLE"
    assert harness.get(url)[0] == 503
    both = addone(POLICY(matches=[match], fallbacks=["backup"]), v1=100, v2=0)
    stage.publish([tested, backup_node(stage)], both, harness.deployment("backup"))
    with triton_client(stage.mesh.gateway) as client:
        assert infer(client, {"x-tenant": "acme"}).get_response().model_name == "addone"
        assert infer(client).get_response().model_name == "backup"


def test_every_try_at_a_fallback_has_its_name_once_also_where_one_name_begins_with_the_other(stage: Stage) -> None:
    nodes = [dead_node(stage, 5, "backup"), backup_node(stage)]
    back = routing_pb2.Deployment(name="back", targets=addone().targets, policy=POLICY(fallbacks=["backup"]))
    stage.publish(nodes, back, harness.deployment("backup"))
    body = {"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "FP32", "data": [1]}]}
    url = f"http://{stage.mesh.gateway}/v2/models/back/infer"
    for _ in range(8):
        status, text = harness.get(url, json.dumps(body).encode())
        assert (status, json.loads(text).get("model_name")) == (200, "backup")


def test_a_fallback_answers_under_its_own_name_whichever_way_the_request_is_written(stage: Stage) -> None:
    stage.publish([backup_node(stage)], addone(POLICY(fallbacks=["backup"])), harness.deployment("backup"))
    with triton_client(stage.mesh.gateway) as client:
        for headers in (None, {"x-aimesh-model": "addone"}):
            answer = infer(client, headers, first=4.0)
            assert (answer.get_response().model_name, answer.as_numpy("OUTPUT0").tolist()) == ("backup", [5])
        big = client.infer("addone", one_input(2_000_000)).as_numpy("OUTPUT0")
        assert (big.size, big[-1]) == (2_000_000, 2_000_000)
        assert [each.get_response().model_name for each in _streamed(client, 3)] == ["backup"] * 3
    body = {"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "FP32", "data": [1]}]}
    url = f"http://{stage.mesh.gateway}/v2/models/addone/infer"
    status, text = harness.get(url, json.dumps(body).encode())
    assert (status, json.loads(text)["model_name"]) == (200, "backup")
    with triton_client("xds:///addone") as client:
        assert refusal(lambda: infer(client, client_timeout=10))[0] == "UNAVAILABLE"


def _streamed(client: Any, count: int) -> list[Any]:
    answers: list[Any] = []
    done = threading.Semaphore(0)

    def take(result: Any, error: InferenceServerException | None) -> None:
        answers.append(result if error is None else error)
        done.release()

    client.start_stream(take)
    for _ in range(count):
        client.async_stream_infer("addone", one_input())
        assert done.acquire(timeout=10), "an answer before the caller has said all"
    client.stop_stream()
    return answers


def test_a_mirror_gets_copies_and_answers_nobody(stage: Stage) -> None:
    policy = POLICY(mirror=routing_pb2.Mirror(deployment="backup", percent=100))
    stage.publish([*stage.nodes("1.0.0"), backup_node(stage)], addone(policy), harness.deployment("backup"))
    with triton_client(f"127.0.0.1:{stage.backup.grpc_port}") as backup, triton_client(stage.mesh.gateway) as client:

        def copied() -> int:
            return int(backup.get_inference_statistics("backup").model_stats[0].inference_count)

        before = copied()
        assert {infer(client).get_response().model_name for _ in range(5)} == {"addone"}
        harness.eventually(lambda: copied() == before + 5, "five copies arrived")


def test_a_shadow_version_gets_copies_and_answers_nobody(stage: Stage) -> None:
    policy = POLICY(mirror=routing_pb2.Mirror(version="2.0.0", percent=100))
    stage.publish(stage.nodes("1.0.0", "2.0.0"), addone(policy, v1=100, v2=0))
    with triton_client(stage.mesh.gateway) as client:
        then = counts(stage)
        for _ in range(5):
            infer(client)
        # Triton counts an answer some time after it gave it, also those of tests before.
        harness.eventually(
            lambda: all(now - was >= 5 for now, was in zip(counts(stage), then, strict=True)), "each has five more"
        )
        with stage.paused(1):  # the shadow hangs: who asks is answered all the same
            answers = [infer(client, client_timeout=5).as_numpy("OUTPUT0").tolist() for _ in range(5)]
    assert answers == [[1]] * 5


def test_a_match_decides_before_weights_and_is_passed_over_while_its_version_is_not_ready(
    stage: Stage, target: str
) -> None:
    match = routing_pb2.Match(header="x-tenant", value="acme", version="2.0.0")
    deployment = addone(POLICY(matches=[match]), v1=100, v2=0)
    stage.publish(stage.nodes("1.0.0", "2.0.0"), deployment)
    with triton_client(target) as client:
        assert {where(stage, lambda: infer(client)) for _ in range(4)} == {0}
        assert {where(stage, lambda: infer(client, {"x-tenant": "acme"})) for _ in range(4)} == {1}
    stage.publish(stage.nodes("1.0.0"), deployment)
    with triton_client(target) as client:
        assert where(stage, lambda: infer(client, {"x-tenant": "acme"})) == 0


def test_a_sticky_caller_stays_with_its_version(stage: Stage) -> None:
    policy = POLICY(sticky=routing_pb2.Sticky(header="x-user"))
    stage.publish(stage.nodes("1.0.0", "2.0.0"), addone(policy, v1=50, v2=50))
    with triton_client(stage.mesh.gateway) as client:
        versions = [
            {where(stage, lambda user=user: infer(client, {"x-user": f"user-{user}"})) for _ in range(3)}  # type: ignore[misc]
            for user in range(12)
        ]
    assert all(len(each) == 1 for each in versions), versions
    assert set.union(*versions) == {0, 1}


def test_a_ring_keeps_each_value_on_one_replica(stage: Stage, target: str) -> None:
    policy = POLICY(balancer=routing_pb2.Balancer(ring_hash=routing_pb2.RingHash(header="x-session")))
    stage.publish(stage.nodes("1.0.0", "1.0.0"), addone(policy))
    with triton_client(target) as client:
        replicas = [
            {where(stage, lambda key=key: infer(client, {"x-session": f"s{key}"})) for _ in range(3)}  # type: ignore[misc]
            for key in range(12)
        ]
    assert all(len(each) == 1 for each in replicas), replicas
    assert set.union(*replicas) == {0, 1}


def test_shares_follow_capacity(stage: Stage, target: str) -> None:
    nodes = stage.nodes("1.0.0", "1.0.0")
    nodes[0].capacity.cpu_cores, nodes[1].capacity.cpu_cores = 24, 8
    stage.publish(nodes, addone(POLICY(balancer=routing_pb2.Balancer(by_capacity=routing_pb2.ByCapacity()))))
    with triton_client(target) as client:
        infer(client)
        before = counts(stage)
        for _ in range(200):
            infer(client)
    # Triton counts an answer some time after it gave it.
    harness.eventually(lambda: sum(counts(stage)) - sum(before) >= 200, "all are counted")
    large, small = (after - then for after, then in zip(counts(stage), before, strict=True))
    assert 0.6 < large / (large + small) < 0.9  # 0.75, give or take five standard deviations where it is drawn


def test_least_request_avoids_the_busy_replica_in_the_gateway_and_programs_take_the_next_policy(stage: Stage) -> None:
    policy = POLICY(balancer=routing_pb2.Balancer(least_request=routing_pb2.LeastRequest()))
    stage.publish(stage.nodes("1.0.0", "1.0.0"), addone(policy))
    with triton_client("xds:///addone") as client:
        harness.eventually(lambda: len({where(stage, lambda: infer(client)) for _ in range(6)}) == 2, "both answer")
    with triton_client(stage.mesh.gateway) as client:
        infer(client)
        with stage.paused(0), concurrent.futures.ThreadPoolExecutor(4) as pool:
            # Each of those that fall on the paused one hangs there and makes it the busier of two.
            hanging = [pool.submit(_answers, client, 5.0) for _ in range(4)]
            harness.eventually(lambda: sum(each.done() for each in hanging) >= 1, "one met the other")
            answered = sum(_answers(client, 0.5) for _ in range(20))
    # Drawn at random, ten would hang; of two drawn with replacement, both are the paused one for five.
    assert answered >= 11, answered


def _answers(client: Any, patience_s: float) -> bool:
    try:
        infer(client, client_timeout=patience_s)
    except InferenceServerException:
        return False
    return True


@pytest.mark.parametrize(
    "policy",
    [
        POLICY(hedge=routing_pb2.Hedge(delay=MOMENT)),
        POLICY(try_timeout=MOMENT),
    ],
    ids=["hedge", "try_timeout"],
)
def test_a_replica_that_hangs_costs_a_moment_and_no_answer(stage: Stage, policy: POLICY) -> None:
    stage.publish(stage.nodes("1.0.0", "1.0.0"), addone(policy))
    with triton_client(stage.mesh.gateway) as client:
        infer(client)
        with stage.paused(0):
            started = time.monotonic()
            for _ in range(6):
                infer(client, client_timeout=5)
            assert time.monotonic() - started < 5


@pytest.mark.parametrize("policy", [POLICY(hedge=routing_pb2.Hedge(delay=MOMENT)), POLICY(try_timeout=MOMENT)])
def test_a_stream_is_neither_cut_nor_copied_when_its_first_answer_is_late(stage: Stage, policy: POLICY) -> None:
    stage.publish(stage.nodes("1.0.0", "1.0.0"), addone(policy))
    request = service_pb2.ModelInferRequest(model_name="addone")
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1]).contents.fp32_contents.append(-1.0)
    before = sum(counts(stage))
    with grpc.insecure_channel(stage.mesh.gateway) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for headers in ((), (("x-aimesh-model", "addone"),)):
            answers = list(stub.ModelStreamInfer(iter([request]), timeout=10, metadata=headers))
            assert [each.error_message for each in answers] == [""]
    harness.eventually(lambda: sum(counts(stage)) == before + 2, "each ran once")


def test_a_replica_that_fails_is_left_out_for_a_while(stage: Stage) -> None:
    outlier = routing_pb2.OutlierEjection(consecutive_errors=3, base_ejection=duration_pb2.Duration(seconds=30))
    policy = POLICY(outlier=outlier, try_timeout=MOMENT)
    stage.publish(stage.nodes("1.0.0", "1.0.0"), addone(policy))
    with triton_client("xds:///addone") as client:
        infer(client)  # its engine takes the rule in the form that it knows
    with triton_client(stage.mesh.gateway) as client, stage.paused(0):

        def slow() -> int:
            times = [_time(lambda: infer(client, client_timeout=5)) for _ in range(8)]
            return sum(each > 0.19 for each in times)

        harness.eventually(lambda: slow() == 0, "no request meets the replica that hangs")


def _time(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def test_beyond_the_limit_calls_end_at_once_each_engine_in_its_own_words(stage: Stage, target: str) -> None:
    stage.publish(stage.nodes("1.0.0"), addone(POLICY(limits=routing_pb2.Limits(max_requests=1))))
    with triton_client(target) as client:
        infer(client)
        with busy(client):
            code, message = refusal(lambda: infer(client, client_timeout=5))
            status, body = harness.get(f"http://{stage.mesh.gateway}/v2/models/addone/ready")
        infer(client)
    if target.startswith("xds"):
        assert (code, message) == ("UNAVAILABLE", "circuit breaker drop")
    else:
        assert code == "RESOURCE_EXHAUSTED"
        assert "limits.max_requests of the model's policy allows: addone" in message
        assert status == 200, "REST has a limit of its own"
        assert not body


def test_rest_beyond_the_limit_is_told_to_come_back(stage: Stage) -> None:
    stage.publish(stage.nodes("1.0.0"), addone(POLICY(limits=routing_pb2.Limits(max_requests=1))))
    url = f"http://{stage.mesh.gateway}/v2/models/addone/infer"
    body = json.dumps({"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "FP32", "data": [-1]}]}).encode()
    seen: collections.Counter[int] = collections.Counter()
    replies: list[str] = []

    def call() -> None:
        status, text = harness.get(url, body)
        seen[status] += 1
        replies.append(text)

    calls = [threading.Thread(target=call) for _ in range(3)]
    for each in calls:
        each.start()
    for each in calls:
        each.join()
    assert seen == {200: 1, 429: 2}
    assert any("in flight" in json.loads(text).get("error", "") for text in replies)


def test_codes_budget_and_back_off_are_taken_by_both(stage: Stage, target: str) -> None:
    retry = routing_pb2.RetryPolicy(
        max_retries=1,
        codes=["UNAVAILABLE", "INTERNAL"],
        budget_percent=20,
        back_off=duration_pb2.Duration(nanos=5_000_000),
    )
    stage.publish(stage.nodes("1.0.0"), addone(POLICY(retry=retry)))
    with triton_client(target) as client:
        infer(client)


def test_adaptive_weights_reach_both(stage: Stage, target: str) -> None:
    policy = POLICY(balancer=routing_pb2.Balancer(latency_adaptive=routing_pb2.LatencyAdaptive()))
    nodes = stage.nodes("1.0.0", "1.0.0")
    state = stage.publish(nodes, addone(policy))
    weights = [
        routing_pb2.NodeWeight(version="1.0.0", node=node.id, weight=weight)
        for node, weight in zip(nodes, (1600, 400), strict=True)
    ]
    stage.mesh.coordinator.publish(
        dataclasses.replace(
            state, revision=next(_revisions), weights={"addone": routing_pb2.NodeWeights(nodes=weights)}
        )
    )

    def follows() -> bool:
        before = counts(stage)
        for _ in range(100):
            infer(client)
        return counts(stage)[0] - before[0] > 65

    with triton_client(target) as client:
        harness.eventually(follows, "the faster node gets more")


EVERY_RULE = POLICY(
    timeout=duration_pb2.Duration(seconds=30),
    retry=routing_pb2.RetryPolicy(max_retries=2, codes=["UNAVAILABLE", "INTERNAL"], budget_percent=50),
    balancer=routing_pb2.Balancer(least_request=routing_pb2.LeastRequest()),
    matches=[routing_pb2.Match(header="x-tenant", value="acme", version="1.0.0")],
    sticky=routing_pb2.Sticky(header="x-user"),
    hedge=routing_pb2.Hedge(delay=duration_pb2.Duration(seconds=5)),
    outlier=routing_pb2.OutlierEjection(),
    limits=routing_pb2.Limits(max_requests=100),
    mirror=routing_pb2.Mirror(deployment="backup", percent=0.5),
    fallbacks=["backup"],
)


@pytest.mark.parametrize("balancer", ["least_request", "ring_hash"])
def test_nodejs_takes_every_rule_too(stage: Stage, balancer: str, tmp_path: Path) -> None:
    policy = POLICY()
    policy.CopyFrom(EVERY_RULE)
    if balancer == "ring_hash":
        policy.balancer.ring_hash.header = "x-user"
    nodes = [*stage.nodes("1.0.0", "1.0.0"), backup_node(stage)]
    stage.publish(nodes, addone(policy), harness.deployment("backup"))
    found = descriptor_pb2.FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(found.file.add())
    descriptors = tmp_path / "kserve.binpb"
    descriptors.write_bytes(found.SerializeToString())
    command = [require_node(), str(REPOSITORY / "tests/contract/node/client.js"), str(descriptors)]
    ran = subprocess.run(
        [*command, "xds:///addone", "xds:///nosuch"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["infer"] == [2, 3.5, -3]
