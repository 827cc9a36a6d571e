from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from meshkit.errors import ConflictError, ExhaustedError, PreconditionError
from meshkit.process import ProcessId
from meshkit.tls import TlsSettings
from node_agent.identity import hold_data_dir
from node_agent.session import _after
from node_agent.settings import AgentSettings, TritonSettings
from node_agent.triton import launch, leftover, selftest
from node_agent.triton.crashes import CrashCounter
from node_agent.triton.logfile import LogFile
from node_agent.triton.record import TritonRecord, write_record
from node_agent.triton.stubs import StubWatch
from node_agent.triton.supervisor import _obituary, _reachable
from tests.processes import eventually, process


def _settings(**more: Any) -> AgentSettings:
    triton = TritonSettings(**{"grpc_port": 1, "http_port": 2, "metrics_port": 3, **more.pop("triton", {})})
    return AgentSettings(node_id="node-1", data_dir=Path("/data"), triton=triton, **more)


def test_command_line() -> None:
    argv = launch.command(_settings(), Path("/bin/tritonserver"), Path("/b"), "s3cret")
    assert argv[0] == "/bin/tritonserver"
    for wanted in (
        "--model-repository=/data/repository",
        "--model-control-mode=explicit",
        "--grpc-address=127.0.0.1",
        "--http-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--grpc-port=1",
        "--http-port=2",
        "--metrics-port=3",
        "--exit-timeout-secs=30",
    ):
        assert wanted in argv


def test_with_tls_only_grpc_is_reachable_from_outside(tmp_path: Path) -> None:
    tls = TlsSettings(ca=tmp_path / "ca", cert=tmp_path / "cert", key=tmp_path / "key")
    argv = launch.command(_settings(tls=tls, triton={"listen": "10.0.0.7"}), Path("/t"), Path("/b"), "s3cret")
    assert {"--grpc-address=10.0.0.7", "--http-address=127.0.0.1", "--metrics-address=127.0.0.1"} <= set(argv)
    assert {"--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1", f"--grpc-root-cert={tmp_path / 'ca'}"} <= set(argv)


def test_a_fingerprint_tells_settings_and_files_apart(tmp_path: Path) -> None:
    server, backends = tmp_path / "tritonserver", tmp_path / "backends"
    server.write_text("1")
    (backends / "python" / "__pycache__").mkdir(parents=True)
    files = launch.TritonFiles(server, backends, None, ())
    first = launch.fingerprint(_settings(), files, {"PATH": "a"})
    assert launch.fingerprint(_settings(), files, {"PATH": "b"}) == first
    (backends / "python" / "__pycache__" / "x.pyc").write_text("written by a run")
    assert launch.fingerprint(_settings(), files, {}) == first
    others = {
        launch.fingerprint(_settings(drain_s=3.0), files, {}),
        launch.fingerprint(_settings(), files, {"CUDA_VISIBLE_DEVICES": "1"}),
    }
    server.write_text("another")
    others.add(launch.fingerprint(_settings(), files, {}))
    assert len({first, *others}) == 4


def test_environment_puts_our_libraries_first() -> None:
    libraries = (Path("/py/lib"), Path("/triton/libs"))
    assert launch.environment({"A": "1"}, libraries) == {
        "A": "1",
        "LD_LIBRARY_PATH": "/py/lib:/triton/libs",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert launch.environment({"LD_LIBRARY_PATH": "/x"}, libraries)["LD_LIBRARY_PATH"].endswith(":/x")


def test_a_triton_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="tritonserver, which does not exist"):
        launch.find_files(TritonSettings(server=tmp_path / "bin" / "tritonserver"))


def test_the_wheels_backends_get_the_stub_of_this_python(tmp_path: Path) -> None:
    files = launch.find_files(TritonSettings())
    backends = launch.prepare_backends(files, tmp_path / "backends")
    assert os.access(backends / "python" / "triton_python_backend_stub", os.X_OK)
    assert launch.prepare_backends(files, tmp_path / "backends") == backends


@pytest.mark.parametrize("key", ["grpc_port", "http_port", "metrics_port"])
def test_a_taken_port_is_named_with_its_setting(key: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            base = free.getsockname()[1]
        ports = {"grpc_port": base, "http_port": base + 1, "metrics_port": base + 2, key: port}
        with pytest.raises(ExhaustedError) as caught:
            launch.check_ports(_settings(triton=ports))
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert f"agent.triton.{key}" in caught.value.hint


def test_crashes_count_within_the_window_only() -> None:
    counter = CrashCounter(limit=3, window_s=10.0)
    assert [counter.add(now, 0.0) for now in (0.0, 1.0, 11.0)] == [1, 2, 1]
    assert not counter.looping
    looping = []
    for now, ready_s in ((12.0, 0.0), (13.0, 0.0), (100.0, 5.0), (200.0, 10.0)):
        counter.add(now, ready_s)
        looping.append(counter.looping)
    assert looping == [False, True, True, False], "a few seconds of work are no recovery"


def test_log_is_rotated_and_keeps_taking_lines(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log" / "t.log", limit_bytes=10)
    descriptor = log.open()
    os.write(descriptor, b"short\n")
    assert not log.rotate()
    os.write(descriptor, b"longer than ten\n")
    assert log.rotate()
    os.write(descriptor, b"after\n")
    os.close(descriptor)
    assert log.path.read_text() == "after\n"
    assert log.path.with_name("t.log.1").read_text() == "short\nlonger than ten\n"


def test_last_error_prefers_error_lines(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "t.log", limit_bytes=1 << 20)
    assert log.last_error(0) == ""
    log.path.write_text("2026-11-20T00:00:00Z E 12 old\n")
    start = log.size()
    with log.path.open("a") as file:
        file.write("2026-11-20T00:00:00Z I 12 fine\n")
        file.write("2026-11-20T00:00:01Z E 12 cannot bind\n2026-11-20T00:00:02Z I 12 exiting\n")
    assert log.last_error(start) == "2026-11-20T00:00:01Z E 12 cannot bind"
    log.path.write_text("./tritonserver: not found\n\n")
    assert log.last_error(0) == "./tritonserver: not found"


def test_obituaries() -> None:
    assert _obituary(-signal.SIGKILL, "", adopted=False) == "Triton was killed by SIGKILL"
    assert _obituary(1, "no GPU", adopted=False) == "Triton exited with status 1: no GPU"
    assert "status that only the agent that started it" in _obituary(None, "", adopted=True)


def test_reachable_addresses() -> None:
    assert [_reachable(a) for a in ("0.0.0.0", "127.0.0.1", "::1")] == ["127.0.0.1", "127.0.0.1", "[::1]"]


def test_a_wrong_answer_names_numpy() -> None:
    wrong = service_pb2.ModelInferResponse(raw_output_contents=[b"\x02\0\0\0" * 4])
    for answer in (wrong, service_pb2.ModelInferResponse(), service_pb2.ModelInferResponse(raw_output_contents=[b""])):
        with pytest.raises(PreconditionError, match=r"NumPy 1\.x"):
            selftest._check(answer)


def test_the_group_of_a_dead_leader_is_ended(tmp_path: Path) -> None:
    """As after an agent and its Triton were killed: the stubs are left, and known by their group alone."""
    leader = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60 >/dev/null & echo $!; read never"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert leader.stdout is not None
    orphan = int(leader.stdout.readline())
    write_record(tmp_path, TritonRecord(ProcessId.of(leader.pid)))
    orphan_id = ProcessId.of(orphan)
    os.kill(leader.pid, signal.SIGKILL)
    leader.communicate()
    assert orphan_id.alive()
    leftover.end_leftovers(tmp_path)
    deadline = time.monotonic() + 10
    while orphan_id.alive():
        assert time.monotonic() < deadline
    assert leftover.end_leftovers(tmp_path) == []


def test_a_pid_that_another_process_has_now_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        try:
            write_record(tmp_path, TritonRecord(ProcessId(other.pid, ProcessId.of(other.pid).started - 100)))
            leftover.end_leftovers(tmp_path)
            assert other.poll() is None
        finally:
            other.kill()


def test_a_record_that_is_garbage_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "triton.json").write_text("{")
    assert leftover.end_leftovers(tmp_path) == []


def test_one_agent_a_data_dir(tmp_path: Path) -> None:
    with hold_data_dir(tmp_path / "d") as first:  # noqa: SIM117  # the first must hold when the second comes
        with pytest.raises(ConflictError, match=f"pid {os.getpid()}"), hold_data_dir(tmp_path / "d"):
            pass
    with hold_data_dir(tmp_path / "d") as again:
        assert again == first


def test_coordinators_take_turns() -> None:
    assert _after("a:1", ("a:1", "c:1", "b:1")) == "b:1"
    assert _after("c:1", ("a:1", "c:1", "b:1")) == "a:1"
    assert _after("gone:1", ("a:1",)) == "a:1"


def test_a_stub_that_does_not_exit_is_killed(tmp_path: Path) -> None:
    stuck = subprocess.Popen(["sleep", "60"])
    try:
        StubWatch(tmp_path, lambda _: None).end([ProcessId.of(stuck.pid)], patience_s=0.1)
        assert stuck.wait(5) == -signal.SIGKILL
    finally:
        stuck.kill()
        stuck.wait()


async def test_a_process_that_has_a_stubs_pid_by_now_is_neither_killed_nor_watched(tmp_path: Path) -> None:
    with process(["sleep", "60"], tmp_path / "log") as other:
        gone = ProcessId(other.pid, other.started - 100)
        died: list[str] = []
        stubs = StubWatch(tmp_path, died.append)
        stubs.end([gone], patience_s=0.0)
        stubs.watch("m", [gone])
        assert died == ["m"], "the stub itself is gone"
        assert other.alive()


async def test_stubs_are_found_by_the_model_that_they_run(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "m" / "1" / "model.py")]
    with process(argv, tmp_path / "log") as stub:
        stubs = StubWatch(tmp_path, lambda _: None)
        found = await eventually(lambda: stubs.find(os.getpid(), "m"))
        assert found == {stub}
        assert stubs.find(os.getpid(), "other") == stubs.find(0, "m") == frozenset()
