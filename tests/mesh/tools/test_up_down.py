from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import psutil

from tests.mesh.tools.meshes import Aimesh, until

START_FAILED, PORT_TAKEN, CONFLICT = 6, 7, 5


def test_a_mesh_of_two_nodes_from_up_to_down(mesh: Aimesh) -> None:
    out = mesh.run("up", "--nodes", "2", "--detach").stdout
    layout = mesh.record.layout
    assert layout.gateway in out

    found = mesh.json("status")
    assert found["cluster"]["state_dir"] == str(mesh.state_dir)
    assert found["cluster"]["gateway"] == layout.gateway
    [coordinator] = found["cluster"]["coordinators"]
    assert coordinator["leader"]
    assert coordinator["address"] == layout.coordinators[0]
    assert [(node["id"], node["state"]) for node in found["nodes"]] == [("node-1", "READY"), ("node-2", "READY")]
    pids = [coordinator["pid"], found["cluster"]["etcd"][0]["pid"]]
    pids += [node[key] for node in found["nodes"] for key in ("pid", "triton_pid")]
    assert len(set(pids)) == 6
    assert all(psutil.pid_exists(pid) for pid in pids)
    assert sum(node["capacity"]["memory_bytes"] for node in found["nodes"]) < psutil.virtual_memory().total
    assert "node-2" in mesh.run("status").stdout

    assert "already" in mesh.run("up", "--detach").stdout
    assert "aimesh down" in mesh.run("up", "--nodes", "3", code=CONFLICT).stderr
    assert mesh.json("status")["cluster"]["coordinators"] == [coordinator], "nothing was touched"

    exports = mesh.run("env").stdout
    shown = subprocess.run(
        ["/bin/sh", "-c", f'{exports}\ncat "$GRPC_XDS_BOOTSTRAP"; echo "$AIMESH_GATEWAY"'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert layout.coordinators[0] in shown
    assert layout.gateway in shown

    mesh.run("down")
    mesh.hold_gone()
    mesh.run("down")
    assert "aimesh up" in mesh.run("status", code=START_FAILED).stderr


def test_a_mesh_comes_back_after_any_kill(mesh: Aimesh) -> None:
    mesh.run("up", "--detach")
    mesh.add_model()
    mesh.run("deploy", "adder")
    assert mesh.adds()
    before = mesh.record

    for process in mesh.processes():
        process.kill()
    until(lambda: not mesh.processes())
    mesh.run("up", "--detach")
    assert mesh.record.layout == before.layout
    until(mesh.adds, lambda: mesh.run("status").stdout)

    supervisor = mesh.record.supervisor
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: not mesh.record.supervised)
    assert mesh.adds(), "the mesh serves without its supervisor"
    leftover = mesh.record.processes
    mesh.run("up", "--detach")
    assert not any(process.alive() for process in leftover.values())
    assert mesh.record.layout == before.layout
    until(mesh.adds, lambda: mesh.run("status").stdout)

    supervisor = mesh.record.supervisor
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: not mesh.record.supervised)
    os.kill(mesh.record.processes["node-1"].pid, signal.SIGKILL)
    assert mesh.adds(), "Triton serves without its agent"
    mesh.run("down")
    mesh.hold_gone()


def test_two_meshes_live_side_by_side(new_mesh: Callable[[str], Aimesh]) -> None:
    one, two = new_mesh("one"), new_mesh("two")
    one.run("up", "--detach")
    two.run("up", "--detach")
    assert not set(one.record.layout.ports()) & set(two.record.layout.ports())

    taken = one.record.layout.port_base
    third = new_mesh("third")
    error = third.run("up", "--port-base", str(taken), code=PORT_TAKEN).stderr
    assert f"port {taken}" in error
    assert "pid" in error

    one.run("down")
    one.hold_gone()
    assert two.json("status")["nodes"][0]["state"] == "READY"


def test_a_part_that_dies_is_started_again(mesh: Aimesh) -> None:
    mesh.run("up", "--detach")
    triton = mesh.json("status")["nodes"][0]["triton_pid"]
    for name in ("coordinator", "node-1"):
        old = mesh.record.processes[name]
        os.kill(old.pid, signal.SIGKILL)
        until(lambda old=old, name=name: mesh.record.processes[name] != old)  # type: ignore[misc]
    pid = mesh.record.processes["node-1"].pid
    until(lambda: [(node["state"], node["pid"]) for node in mesh.json("status")["nodes"]] == [("READY", pid)])
    until(lambda: {part.state for part in mesh.record.parts.values()} == {"ready"})
    assert mesh.json("status")["nodes"][0]["triton_pid"] == triton, "the next agent goes on with the same Triton"


def test_a_start_that_fails_shows_the_log_and_leaves_nothing(mesh: Aimesh) -> None:
    error = mesh.run("up", "--detach", code=START_FAILED, AIMESH_AGENT_TRITON_SERVER="/nowhere/bin/tritonserver").stderr
    assert "node-1 did not start" in error
    assert "/nowhere/bin/tritonserver" in error
    assert "node-1.log" in error
    mesh.hold_gone()


def test_a_taken_port_is_named_with_its_owner_and_nothing_starts(mesh: Aimesh) -> None:
    with socket.socket() as held:
        # Between the blocks that meshes choose and the ports of the kernel's own choice, one for each test worker.
        base = 30_100 + 100 * (os.getpid() % 25)
        port = base + 4
        held.bind(("127.0.0.1", port))
        held.listen(1)
        error = mesh.run("up", "--detach", "--port-base", str(base), code=PORT_TAKEN).stderr
    assert f"port {port} (for the gateway) is taken" in error
    assert f"pid {os.getpid()}" in error
    assert mesh.processes() == []


def test_ctrl_c_ends_a_mesh_in_the_foreground(mesh: Aimesh) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.cli.main", "up"],
        env=mesh.environ(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 0
    mesh.hold_gone()
