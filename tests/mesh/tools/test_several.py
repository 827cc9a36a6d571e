"""A mesh of three coordinators and three members of etcd goes on when one of them dies, and so do its clients."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from tests.mesh.tools.meshes import MODEL, Aimesh, until

LONGER = MODEL.replace("x + 1", "x + 2")
FIRST, SECOND = [2.0, 3.0], [3.0, 4.0]


@pytest.fixture
def several(mesh: Aimesh) -> Aimesh:
    """Two nodes serve x + 1; x + 2 is pushed."""
    mesh.run("up", "--detach", "--coordinators", "3", "--etcd", "3", "--nodes", "2")
    mesh.add_model()
    mesh.add_model(version="2.0.0", text=LONGER)
    mesh.run("deploy", "adder:1.0.0", "--replicas", "2")
    return mesh


def test_nothing_in_the_mesh_is_single(several: Aimesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = several
    _what_runs_is_shown(mesh)
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", str(mesh.state_dir / "xds_bootstrap.json"))
    with triton.InferenceServerClient("xds:///adder") as client:
        assert _ask(client) == FIRST
        _another_leads(mesh)
        _each_coordinator_may_be_away(mesh)
        _clients_move(mesh, client)
        _a_member_of_etcd_may_die(mesh, client)
    _all_is_started_again(mesh)
    mesh.run("down")
    mesh.hold_gone()


def _what_runs_is_shown(mesh: Aimesh) -> None:
    layout, found = mesh.record.layout, mesh.json("status")["cluster"]
    assert [each["address"] for each in found["coordinators"]] == list(layout.coordinators)
    assert sum(each["leader"] for each in found["coordinators"]) == 1
    pids = [each["pid"] for each in (*found["coordinators"], *found["etcd"])]
    assert len(set(pids)) == 6
    assert all(psutil.pid_exists(pid) for pid in pids)
    assert f"AIMESH_COORDINATORS={','.join(layout.coordinators)}\n" in mesh.run("env").stdout
    assert "--coordinators 3" in mesh.run("up", "--coordinators", "2", "--detach", code=5).stderr
    assert "--etcd 3" in mesh.run("up", "--etcd", "1", "--detach", code=5).stderr


def _another_leads(mesh: Aimesh) -> None:
    """After kill -9 of the leader; then a write through one that does not lead is taken."""
    old = _leader(mesh)
    assert old is not None
    os.kill(old.pid, signal.SIGKILL)
    began = time.monotonic()
    until(
        lambda: (new := _leader(mesh)) is not None and new.pid != old.pid,
        lambda: f"nobody leads {time.monotonic() - began:.1f} s after kill -9 of the leader; its lease is 5 s",
    )
    leader = _leader(mesh)
    assert leader is not None
    follower = next(each for each in _statuses(mesh) if each != leader.address)
    # Named by its address alone, the command line knows no other.
    mesh.run("deploy", "adder:1.0.0", "--replicas", "1", AIMESH_STATE_DIR="", AIMESH_COORDINATORS=follower)


def _each_coordinator_may_be_away(mesh: Aimesh) -> None:
    """The command line finds another when one accepts connections and says nothing."""
    _all_is_started_again(mesh)
    for name in mesh.record.layout.coordinator_names:
        with _stopped(mesh.record.processes[name].pid):
            assert len(mesh.json("status")["nodes"]) == 2


def _clients_move(mesh: Aimesh, client: triton.InferenceServerClient) -> None:
    """kill -9 of the coordinators that they are on: they hear of the next version from others."""
    _all_is_started_again(mesh)
    layout = mesh.record.layout
    used = {_place(mesh, "grpc"), _place(mesh, "envoy")}
    assert "" not in used, _statuses(mesh)
    for address in used:
        name = layout.coordinator_names[layout.coordinators.index(address)]
        os.kill(mesh.record.processes[name].pid, signal.SIGKILL)
    until(lambda: _place(mesh, "grpc") not in {"", *used}, lambda: f"the client went nowhere: {_statuses(mesh)}")
    mesh.run("deploy", "adder:2.0.0", "--replicas", "1")
    until(lambda: _ask(client) == SECOND, lambda: f"the client did not follow: {_statuses(mesh)}")
    until(lambda: _through_gateway(mesh) == SECOND, lambda: f"the gateway did not follow: {_statuses(mesh)}")


def _a_member_of_etcd_may_die(mesh: Aimesh, client: triton.InferenceServerClient) -> None:
    os.kill(mesh.record.processes["etcd"].pid, signal.SIGKILL)
    mesh.run("deploy", "adder:1.0.0", "--replicas", "1")
    until(lambda: _ask(client) == FIRST, lambda: f"the client did not follow: {_statuses(mesh)}")
    assert mesh.adds()


def _all_is_started_again(mesh: Aimesh) -> None:
    def parts() -> str:
        return str({name: part for name, part in mesh.record.parts.items() if part.state != "ready"})

    until(lambda: all(process.alive() for process in mesh.record.processes.values()) and parts() == "{}", parts)


def _place(mesh: Aimesh, agent: str) -> str:
    """The address of the coordinator that a kind of xDS client is on; empty when it is on none."""
    on = [
        address
        for address, status in _statuses(mesh).items()
        if any(client.user_agent.lower().startswith(agent) for client in status.xds_clients)
    ]
    return on[0] if on else ""


def _leader(mesh: Aimesh) -> cluster_pb2.Coordinator | None:
    """Whom all that answer name."""
    named = [next((each for each in status.coordinators if each.leader), None) for status in _statuses(mesh).values()]
    return named[0] if named and all(each == named[0] for each in named) else None


def _statuses(mesh: Aimesh) -> dict[str, cluster_pb2.Status]:
    """What each coordinator says that answers, by address."""
    found = {}
    for address in mesh.record.layout.coordinators:
        with grpc.insecure_channel(address) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            try:
                found[address] = stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=2).status
            except grpc.RpcError:
                continue
    return found


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _through_gateway(mesh: Aimesh) -> list[float] | None:
    with triton.InferenceServerClient(mesh.record.layout.gateway) as client:
        return _ask(client)


def _ask(client: triton.InferenceServerClient) -> list[float] | None:
    """What the model makes of 1 and 2; None when there is no answer."""
    given = triton.InferInput("x", [2], "FP32")
    given.set_data_from_numpy(np.array([1, 2], dtype=np.float32))
    try:
        found: list[float] = client.infer("adder", [given], client_timeout=5).as_numpy("y").tolist()
    except InferenceServerException:
        return None
    return found
