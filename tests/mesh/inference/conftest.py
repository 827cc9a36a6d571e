"""A real Triton server of its own for the runtimes, without the agent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton

from aimesh.registry.v1 import registry_pb2
from inference import runtimes
from inference.packaging import Package
from inference.signature import kserve_name
from meshkit.process import ProcessId, end_group
from tests.processes import free_ports


@dataclass
class Server:
    """A running Triton and the repository it loads from."""

    address: str
    repository: Path
    process: ProcessId
    client: triton.InferenceServerClient

    def load(self, package: Package) -> None:
        """Lays a packaged model out as the agent does, and loads it."""
        version = package.version
        home = self.repository / version.name / "1"
        home.mkdir(parents=True)
        for file in version.files:
            target = home / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(package.paths[file.digest])
        shutil.copy(Path(runtimes.__path__[0]) / version.runtime / "model.py", home)
        (home.parent / "config.pbtxt").write_text(render_config(version))
        self.client.load_model(version.name, client_timeout=60)

    def unload(self, name: str) -> None:
        """Unloads a model and waits until its process is gone."""
        process = ProcessId.of(self.stub(name).pid)
        self.client.unload_model(name, client_timeout=30)
        deadline = time.monotonic() + 20
        while process.alive():
            assert time.monotonic() < deadline, f"{name} is still there 20 s after its unload"
            time.sleep(0.05)

    def stub(self, name: str) -> psutil.Process:
        """The process in which a model runs."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if f"{self.repository}/{name}/" in " ".join(child.cmdline()):
                return child
        raise LookupError(name)


def render_config(version: registry_pb2.ModelVersion) -> str:
    """config.pbtxt of a version, with this environment for the stub."""
    signature = version.signature
    lines = [f'name: "{version.name}"', 'backend: "python"', f"max_batch_size: {signature.max_batch_size}"]
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            data_type = kserve_name(spec.data_type).replace("BYTES", "STRING")
            optional = "optional: true" if spec.optional else ""
            lines.append(
                f'{kind} {{ name: "{spec.name}" data_type: TYPE_{data_type} dims: {list(spec.shape)} {optional} }}'
            )
    lines.append(f"model_transaction_policy {{ decoupled: {str(signature.decoupled).lower()} }}")
    lines.append("instance_group { kind: KIND_CPU count: 1 }")
    for key, value in {**version.parameters, "EXECUTION_ENV_PATH": sys.prefix}.items():
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    return "\n".join(lines)


def start(home: Path) -> subprocess.Popen[bytes]:
    """tritonserver from the wheel, with no model, its backends copied so that the stub can be put beside them."""
    spec = find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    wheel = package / "tritonserver"
    backends = shutil.copytree(wheel / "backends", home / "backends")
    shutil.copy(wheel / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backends / "python")
    (home / "models").mkdir()
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{package.parent / 'nvidia_pytriton.libs'}"
    grpc_port, http_port, metrics_port = free_ports(3)
    command = [str(wheel / "bin" / "tritonserver"), f"--model-repository={home / 'models'}"]
    command += [f"--backend-directory={backends}", "--model-control-mode=explicit", "--strict-readiness=true"]
    command += [f"--grpc-port={grpc_port}", f"--http-port={http_port}", f"--metrics-port={metrics_port}"]
    command += ["--grpc-address=127.0.0.1", "--http-address=127.0.0.1", "--metrics-address=127.0.0.1"]
    (home / "address").write_text(f"127.0.0.1:{grpc_port}")
    with (home / "triton.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
        )


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One Triton for this directory's tests, ended with everything in its group."""
    home = tmp_path_factory.mktemp("triton")
    child = start(home)
    process = ProcessId.of(child.pid)
    address = (home / "address").read_text()
    try:
        with triton.InferenceServerClient(address) as client:
            wait_ready(client, child, home / "triton.log")
            yield Server(address, home / "models", process, client)
    finally:
        end_group(process)
        child.wait(10)


def wait_ready(client: triton.InferenceServerClient, child: subprocess.Popen[bytes], log: Path) -> None:
    """Polls until Triton is ready; fails with the end of its log."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        try:
            if client.is_server_ready(client_timeout=1):
                return
        except triton.InferenceServerException:
            time.sleep(0.05)
    pytest.fail(f"Triton did not start:\n{log.read_text()[-2000:]}")
