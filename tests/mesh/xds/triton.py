"""Real Tritons with a Python add-one model. Small on purpose: the agent's own launcher is tested apart."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytriton  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from meshkit.process import ProcessId, end_group
from meshkit.tls import TlsSettings, channel_credentials
from tests.processes import free_ports

# Adds one, after as many seconds as the first number is below zero; the file "sleeping" says that it has begun to wait.
_MODEL = """
import pathlib
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy() for request in requests]
        seconds = max([0.0, *(-float(value[0]) for value in inputs if value.size)])
        if seconds:
            pathlib.Path(__file__).with_name("sleeping").touch()
            time.sleep(seconds)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", value + 1)]) for value in inputs]
"""
_CONFIG = """
backend: "python"
max_batch_size: 0
input [ {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "{venv}" }} }}
"""


@dataclass(frozen=True)
class RunningTriton:
    """A Triton that answers on 127.0.0.1."""

    process: subprocess.Popen[bytes]
    grpc_port: int
    http_port: int

    def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def tritons(
    folder: Path, count: int, models: tuple[str, ...] = ("addone",), tls: TlsSettings | None = None
) -> Iterator[list[RunningTriton]]:
    """`count` Tritons that hold `models`, all ready; ended on leaving. With `tls` they ask clients for certificates."""
    for model in models:
        _write_model(folder / "models" / model)
    backends = _backends(folder)
    running: list[RunningTriton] = []
    try:
        running += [_start(folder, backends, index, models, tls) for index in range(count)]
        for each in running:
            _wait_ready(each, models, tls)
        yield running
    finally:
        for each in running:
            each.process.terminate()  # all at once: each takes seconds to unload
        for each in running:
            _end(each)


@contextlib.contextmanager
def another_triton(folder: Path, models: tuple[str, ...] = ("addone",)) -> Iterator[RunningTriton]:
    """One more Triton on the folder of running ones."""
    running = _start(folder, folder / "backends", free_ports(1)[0], models)
    try:
        _wait_ready(running, models)
        yield running
    finally:
        _end(running)


def _write_model(folder: Path) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(_MODEL)
    (folder / "config.pbtxt").write_text(_CONFIG.format(venv=sys.prefix))


def _server_folder() -> Path:
    return Path(pytriton.__file__).parent / "tritonserver"


def _backends(folder: Path) -> Path:
    backends = folder / "backends"
    shutil.copytree(_server_folder() / "backends", backends)
    stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    shutil.copy2(_server_folder() / "python_backend_stubs" / stub, backends / "python")
    return backends


def _start(
    folder: Path, backends: Path, index: int, models: tuple[str, ...], tls: TlsSettings | None = None
) -> RunningTriton:
    grpc_port, http_port = free_ports(2)
    libraries = [str(sysconfig.get_config_var("LIBDIR")), f"{sysconfig.get_path('purelib')}/nvidia_pytriton.libs"]
    command = [
        str(_server_folder() / "bin" / "tritonserver"),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        *("--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"),
        *("--http-address=127.0.0.1", f"--http-port={http_port}"),
        "--allow-metrics=false",
        *(_tls_flags(tls) if tls else ()),
        f"--backend-config=python,shm-region-prefix-name={_shared_memory(grpc_port)}",
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
    with (folder / f"triton-{index}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    return RunningTriton(process, grpc_port, http_port)


def _tls_flags(tls: TlsSettings) -> list[str]:
    files = [f"--grpc-server-cert={tls.cert}", f"--grpc-server-key={tls.key}", f"--grpc-root-cert={tls.ca}"]
    return ["--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1", *files]


def _end(triton: RunningTriton) -> None:
    if triton.process.poll() is None:
        end_group(ProcessId.of(triton.process.pid))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(triton.process.pid, signal.SIGKILL)  # the stubs of one that was killed
    triton.process.wait()
    for left in Path("/dev/shm").glob(f"{_shared_memory(triton.grpc_port)}*"):
        left.unlink()  # by a Triton that was killed


def _shared_memory(grpc_port: int) -> str:
    """How the names of a Triton's shared memory begin."""
    return f"xds{os.getpid()}_{grpc_port}_"


def _wait_ready(
    triton: RunningTriton, models: tuple[str, ...], tls: TlsSettings | None = None, patience_s: float = 40.0
) -> None:
    deadline = time.monotonic() + patience_s
    credentials = channel_credentials(tls) if tls else None
    target, options = f"127.0.0.1:{triton.grpc_port}", [("grpc.enable_http_proxy", 0)]
    opened = (
        grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
    )
    with opened as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for model in models:
            while not _ready(stub, model):
                assert triton.process.poll() is None, "Triton ended before it was ready"
                assert time.monotonic() < deadline, f"Triton was not ready in {patience_s} s"


def _ready(stub: service_pb2_grpc.GRPCInferenceServiceStub, model: str) -> bool:
    try:
        answer = stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=1, wait_for_ready=True)
    except grpc.RpcError:
        time.sleep(0.05)
        return False
    if not answer.ready:
        time.sleep(0.05)
    return bool(answer.ready)
