"""What the gateway answers in place of a replica: the right code, and a message that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from aimesh.membership.v1 import membership_pb2
from meshkit.errors import ExhaustedError
from tests.mesh.xds import harness
from tests.mesh.xds.clients import add_one, one_input, refusal, triton_client
from tests.mesh.xds.conftest import XdsMesh
from tools.gateway import GatewaySettings, run
from tools.gateway_replies import MAX_REST_BYTES

READY = membership_pb2.MODEL_STATE_READY
_BAD_MESSAGE = 'cannot read "model.onnx": 100% of %REQ(:path)%\nis missing'


@pytest.fixture(scope="module", autouse=True)
def _state(mesh: XdsMesh) -> None:
    nodes = [
        harness.node(1, mesh.tritons[0], {"addone": READY, "waiting": membership_pb2.MODEL_STATE_LOADING}),
        harness.node(2, mesh.tritons[1], {"addone": READY, "add": READY}),
        harness.node(3, None, {"broken": membership_pb2.MODEL_STATE_FAILED}, _BAD_MESSAGE),
        harness.node(4, None, {"broken": READY}, state=membership_pb2.NODE_STATE_SUSPECT),
    ]
    nodes[2].state = membership_pb2.NODE_STATE_READY
    deployments = [harness.deployment(name) for name in ("addone", "waiting", "broken", "nowhere")]
    state = harness.state_of(2, nodes, deployments, recorded=["shelved"], coordinators=[mesh.coordinator.address])
    mesh.coordinator.publish(state)
    harness.eventually(lambda: "is not deployed" in _rest(mesh, "shelved/ready")[1], "the gateway took the state")


def _rest(mesh: XdsMesh, below: str) -> tuple[int, str]:
    return harness.get(f"http://{mesh.gateway}/v2/models/{below}")


UNAVAILABLE = {
    "waiting": "model waiting 1.0.0: 0 of 2 replicas ready; agent-1: loading",
    "broken": (
        "model broken 1.0.0: 0 of 2 replicas ready; "
        'agent-3: failed: cannot read "model.onnx": 100% of %REQ(:path)% is missing, agent-4: node is suspect'
    ),
    "nowhere": (
        "model nowhere 1.0.0: 0 of 2 replicas ready; no node has been given one (aimesh status says which limit failed)"
    ),
    "shelved": "model shelved is not deployed; run: aimesh deploy shelved",
}


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_a_model_without_a_ready_replica_is_unavailable_with_the_reason(mesh: XdsMesh, name: str) -> None:
    expected = ("UNAVAILABLE", UNAVAILABLE[name])
    with triton_client(mesh.gateway) as client:
        assert refusal(lambda: client.infer(name, one_input())) == expected
        assert refusal(lambda: client.infer("x", one_input(), headers={"x-aimesh-model": name})) == expected
        assert refusal(lambda: client.get_model_metadata(name)) == expected
        assert refusal(lambda: client.is_model_ready(name)) == expected
    status, body = _rest(mesh, f"{name}/infer")
    assert (status, json.loads(body)) == (503, {"error": UNAVAILABLE[name]})


@pytest.mark.parametrize("name", ["nosuch", "addon", "addonex", 'q"uote%'])
def test_a_model_that_does_not_exist_is_not_found(mesh: XdsMesh, name: str) -> None:
    expected = ("NOT_FOUND", f"model '{name}' does not exist; see: aimesh models list")
    with triton_client(mesh.gateway) as client:
        assert refusal(lambda: client.infer(name, one_input())) == expected
        assert refusal(lambda: client.infer("addone", one_input(), headers={"x-aimesh-model": name})) == expected
        assert refusal(lambda: client.get_model_config(name)) == expected
        assert refusal(lambda: client.get_inference_statistics(name)) == expected


def test_a_rest_path_with_an_unknown_model_is_not_found(mesh: XdsMesh) -> None:
    for below in ("nosuch", "addon", "addonex", "addonex/infer", "add/infer", "nosuch?x=1"):
        status, body = _rest(mesh, below)
        expected = f"no model of that name: /v2/models/{below}; see: aimesh models list"
        assert (status, json.loads(body)) == (404, {"error": expected})


def test_a_message_without_a_name_is_an_invalid_argument(mesh: XdsMesh) -> None:
    with triton_client(mesh.gateway) as client:
        code, message = refusal(lambda: client.infer("", one_input()))
    assert code == "INVALID_ARGUMENT"
    assert message == "the request names no model, in its message or in the header x-aimesh-model"


@pytest.mark.parametrize("header", [None, {"x-aimesh-model": "addone"}])
def test_what_the_mesh_decides_is_refused(mesh: XdsMesh, header: dict[str, str] | None) -> None:
    with triton_client(mesh.gateway) as client:
        calls = [
            lambda: client.load_model("addone", headers=header),
            lambda: client.unload_model("addone", headers=header),
            lambda: client.get_system_shared_memory_status(headers=header),
            lambda: client.register_system_shared_memory("r", "/r", 8, headers=header),
            lambda: client.unregister_cuda_shared_memory(headers=header),
            lambda: client.get_trace_settings(headers=header),
            lambda: client.update_log_settings({"log_info": False}, headers=header),
        ]
        for call in calls:
            code, message = refusal(call)
            assert code == "PERMISSION_DENIED"
            assert "the mesh decides what is loaded" in message
            assert "aimesh deploy" in message


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/addone/load",
        "//v2//repository/index",
        "/v2/models/addone/../../repository/index",
        "/v2/models/addone/%2e%2e/%2E%2e/repository/index",
        "/v2/models/addone/trace/setting",
        "/v2/models/addone/versions/1/trace/setting",
        "/v2/logging",
        "/v2/systemsharedmemory/status",
    ],
)
def test_what_the_mesh_decides_is_refused_over_rest(mesh: XdsMesh, path: str) -> None:
    status, body = harness.get(f"http://{mesh.gateway}{path}")
    assert status == 403
    assert "the mesh decides what is loaded" in json.loads(body)["error"]


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_what_can_be_asked_of_a_model_over_rest_is_passed_on(mesh: XdsMesh, version: str) -> None:
    for suffix in ("", "/config", "/ready", "/stats", "?x=1", "/ready?x=/trace"):
        assert _rest(mesh, f"addone{version}{suffix}")[0] == 200, suffix
    tensor = {"name": "INPUT0", "shape": [1], "datatype": "FP32", "data": [1.5]}
    url = f"http://{mesh.gateway}/v2/models/addone{version}/infer"
    assert harness.get(url, json.dumps({"inputs": [tensor]}).encode())[0] == 200
    for suffix in ("/trace/setting", "/trace"):
        assert _rest(mesh, f"addone{version}{suffix}")[0] == 403, suffix
    for suffix in ("/", "/%74race%20/setting", "/infer/", "/infer;a", "/nothing", "/versions/x/ready", "/versions/1/x"):
        path = f"addone{version}{suffix}"
        status, body = _rest(mesh, path)
        assert status in (403, 404), suffix
        assert "aimesh deploy" in body or "nothing is served at /v2/models/addone" in json.loads(body)["error"]


def test_escaped_slashes_are_rejected(mesh: XdsMesh) -> None:
    assert harness.get(f"http://{mesh.gateway}/v2/models/x%2f..%2frepository")[0] == 400


def test_calls_that_nobody_serves(mesh: XdsMesh) -> None:
    status, body = harness.get(f"http://{mesh.gateway}/nothing")
    assert (status, json.loads(body)) == (404, {"error": "nothing is served at /nothing"})
    with grpc.insecure_channel(mesh.gateway) as channel, pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/some.Service/Call", None, None)(b"", timeout=5)
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert failed.value.details() == "nothing is served at /some.Service/Call"


def test_bytes_that_are_no_message_are_refused_and_the_gateway_goes_on(mesh: XdsMesh) -> None:
    with grpc.insecure_channel(mesh.gateway) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None)
        for garbage in (b"\xff\xff\xff", b"\x0a\x06addone\xff"):
            with pytest.raises(grpc.RpcError) as failed:
                call(garbage, timeout=5)
            assert failed.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    with triton_client(mesh.gateway) as client:
        add_one(client)


def test_the_largest_message_passes_and_a_larger_one_is_refused(mesh: XdsMesh) -> None:
    with triton_client(mesh.gateway) as client:
        add_one(client, count=16 * 1024 * 1024 - 256)
        code, message = refusal(lambda: client.infer("addone", one_input(17 * 1024 * 1024)))
    assert (code, message) == ("RESOURCE_EXHAUSTED", "the message is larger than 67108864 bytes")


def test_a_rest_body_has_a_limit_below_what_kills_triton(mesh: XdsMesh) -> None:
    def body(count: int) -> bytes:
        tensor = {"name": "INPUT0", "shape": [count], "datatype": "FP32", "data": [1.5] * count}
        return json.dumps({"inputs": [tensor]}).encode()

    url = f"http://{mesh.gateway}/v2/models/addone/infer"
    fits, large = body(300_000), body(600_000)
    assert (len(fits) < MAX_REST_BYTES < len(large), harness.get(url, fits)[0]) == (True, 200)
    status, text = harness.get(url, large)
    assert status == 413
    assert "by gRPC" in json.loads(text)["error"]


def test_envoy_takes_the_longest_reasons_the_largest_weights_and_the_longest_timeouts(tmp_path: Path) -> None:
    nodes = [
        harness.node(number, None, {"broken": membership_pb2.MODEL_STATE_FAILED, "split": READY}, "錯" * 5000)
        for number in range(6)
    ]
    split = harness.deployment("split")
    split.targets.add(version="2.0.0", replicas=1, weight=2**32 - 1)
    split.targets[0].weight = 2**32 - 1
    for each in nodes[:1]:
        each.report.models.add(name="split", version="2.0.0", state=READY)
    split.policy.timeout.seconds = 315_576_000_000
    with harness.coordinator() as coordinator:
        coordinator.publish(harness.state_of(1, nodes, [harness.deployment("broken"), split]))
        with harness.envoy(tmp_path, [coordinator.address]) as gateway:
            status, body = harness.get(f"http://{gateway}/v2/models/broken")
            harness.eventually(lambda: _acknowledged(coordinator), "Envoy answered for all it was sent")
    assert (status, json.loads(body)["error"][-4:]) == (503, "錯...")


def _acknowledged(coordinator: harness.Coordinator) -> bool:
    sent = [each for client in coordinator.clients() for each in client.subscriptions]
    assert not any(each.nack for each in sent), sent
    return len(sent) == 3 and all(each.acked_version == each.sent_version for each in sent)


def test_two_gateways_do_not_share_a_port(mesh: XdsMesh, tmp_path: Path) -> None:
    port = int(mesh.gateway.rpartition(":")[2])
    with pytest.raises(ExhaustedError, match=f"cannot listen on 127.0.0.1:{port}"):
        run(GatewaySettings(data_dir=tmp_path, coordinators=("127.0.0.1:1",), port=port))


def test_the_access_log_is_json(mesh: XdsMesh) -> None:
    with triton_client(mesh.gateway) as client:
        add_one(client)

    def logged() -> bool:
        lines = (mesh.folder / "access.log").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        return any(each["model"] == "addone" and each["cluster"] == "addone/1.0.0" for each in entries)

    harness.eventually(logged, "the call is in the access log")
