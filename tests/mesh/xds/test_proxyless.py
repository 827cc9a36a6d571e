"""Stock gRPC clients on xds:///<deployment>, as the state changes under them."""

from __future__ import annotations

import contextlib
import time

import pytest
from tritonclient.utils import InferenceServerException

from aimesh.membership.v1 import membership_pb2
from coordinator.state import State
from tests.mesh.xds import harness
from tests.mesh.xds.clients import add_one, one_input, refusal, triton_client
from tests.mesh.xds.conftest import XdsMesh
from tests.processes import free_ports

READY = membership_pb2.MODEL_STATE_READY


def _deployed(mesh: XdsMesh, revision: int, ready: tuple[int, ...] = (0, 1)) -> State:
    nodes = [harness.node(index, mesh.tritons[index], {"addone": READY}) for index in ready]
    return harness.state_of(revision, nodes, [harness.deployment("addone")])


def test_a_name_that_nobody_deployed_fails_at_once_and_works_once_deployed(mesh: XdsMesh) -> None:
    mesh.coordinator.publish(harness.state_of(10, [], []))
    with triton_client("xds:///addone") as client:
        started = time.monotonic()
        assert refusal(lambda: client.infer("addone", one_input(), client_timeout=10))[0] == "NOT_FOUND"
        assert time.monotonic() - started < 3
        mesh.coordinator.publish(_deployed(mesh, 11))
        harness.eventually(lambda: _works(client), "the deployment reached the client")
        mesh.coordinator.publish(harness.state_of(12, [], []))
        harness.eventually(lambda: not _works(client), "so did its end")
        assert refusal(lambda: client.infer("addone", one_input(), client_timeout=10))[0] == "NOT_FOUND"


def test_without_a_ready_replica_calls_fail_at_once(mesh: XdsMesh) -> None:
    mesh.coordinator.publish(_deployed(mesh, 20, ready=()))
    with triton_client("xds:///addone") as client:
        code, message = refusal(lambda: client.infer("addone", one_input(), client_timeout=10))
    assert code == "UNAVAILABLE"
    assert "addone/1.0.0" in message


def test_requests_are_spread_over_the_ready_replicas(mesh: XdsMesh) -> None:
    mesh.coordinator.publish(_deployed(mesh, 30))
    before = _counts(mesh)
    with triton_client("xds:///addone") as client:
        harness.eventually(lambda: _works(client) and all(_since(mesh, before)), "both replicas answer")


def test_status_shows_the_client_and_what_it_acknowledged(mesh: XdsMesh) -> None:
    mesh.coordinator.publish(_deployed(mesh, 40))
    with triton_client("xds:///addone") as client:
        harness.eventually(lambda: _works(client), "the client works")
        harness.eventually(lambda: _acknowledged(mesh) == {"lds", "rds", "cds", "eds"}, "everything is acknowledged")


def test_clients_go_on_without_a_coordinator_and_follow_it_when_it_is_back(mesh: XdsMesh) -> None:
    state = _deployed(mesh, 50)
    ports = free_ports(2)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    bootstrap = harness.write_client_bootstrap(mesh.folder / "two.json", addresses)
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("GRPC_XDS_BOOTSTRAP", str(bootstrap))
        with harness.coordinator(ports[0]) as first:
            first.publish(state)
            gateway = stack.enter_context(harness.envoy(mesh.folder / "two", addresses))
            clients = [stack.enter_context(triton_client(target)) for target in ("xds:///addone", gateway)]
            for client in clients:
                harness.eventually(lambda client=client: _works(client), "both ways work")  # type: ignore[misc]
        for client in clients:
            for _ in range(20):
                add_one(client)
        with harness.coordinator(ports[1]) as second:
            second.publish(harness.state_of(51, [], []))
            for client in clients:
                harness.eventually(lambda client=client: not _works(client), "both follow the other")  # type: ignore[misc]


def _works(client: object) -> bool:
    try:
        add_one(client, client_timeout=5)
    except InferenceServerException:
        return False
    return True


def _counts(mesh: XdsMesh) -> list[int]:
    counts = []
    for each in mesh.tritons:
        with triton_client(f"127.0.0.1:{each.grpc_port}") as client:
            statistics = client.get_inference_statistics("addone")
            counts.append(int(statistics.model_stats[0].inference_count))
    return counts


def _since(mesh: XdsMesh, before: list[int]) -> list[int]:
    return [now - then for now, then in zip(_counts(mesh), before, strict=True)]


def _acknowledged(mesh: XdsMesh) -> set[str]:
    return {
        sub.type
        for client in mesh.coordinator.clients()
        if client.id.startswith("tests#") and "grpc" in client.user_agent.lower()
        for sub in client.subscriptions
        if sub.acked_version == sub.sent_version == "40" and not sub.nack
    }
