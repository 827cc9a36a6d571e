"""How Triton is started: its files, its command line, its environment, and the ports it needs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import socket
import sys
import sysconfig
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshkit.errors import ExhaustedError, PreconditionError
from meshkit.tls import TlsSettings
from node_agent.settings import AgentSettings, TritonSettings

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_RESTRICTED = "model-repository,shared-memory,trace,logging"
"""Triton's names of the calls that are the agent's alone; health, metadata, configuration, statistics and inference are
everybody's."""
SECRET_KEY = "aimesh-agent"  # noqa: S105  # the header's name
"""The header that opens them over REST; over gRPC it is `triton-grpc-protocol-` and this."""


@dataclass(frozen=True)
class TritonFiles:
    """What a Triton needs of the disk."""

    server: Path
    backends: Path
    stub: Path | None
    """The Python backend's stub for this Python, where it does not lie in `backends` yet."""
    libraries: tuple[Path, ...]
    """Directories for LD_LIBRARY_PATH."""


def find_files(settings: TritonSettings) -> TritonFiles:
    """The settings' Triton, or that of the nvidia-pytriton wheel. Raises PreconditionError when one is missing."""
    if settings.server is not None:
        backends = settings.backends_dir or settings.server.parents[1] / "backends"
        files = TritonFiles(settings.server, backends, None, _python_library())
    else:
        files = _wheel_files(settings)
    for path in (files.server, files.backends / "python", files.stub):
        if path is not None and not path.exists():
            raise PreconditionError(
                f"Triton needs {path}, which does not exist",
                hint="install nvidia-pytriton, or set agent.triton.server and agent.triton.backends_dir",
            )
    return files


def _wheel_files(settings: TritonSettings) -> TritonFiles:
    # Found, not imported: pytriton itself starts threads and patches modules when it is imported.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise PreconditionError(
            "no Triton: the package nvidia-pytriton is not installed",
            hint="pip install 'aimesh[agent]', or set agent.triton.server to the path of a tritonserver",
        )
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    return TritonFiles(
        server=root / "bin" / "tritonserver",
        backends=settings.backends_dir or root / "backends",
        stub=root / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub",
        libraries=(*_python_library(), package.parent / "nvidia_pytriton.libs"),
    )


def _python_library() -> tuple[Path, ...]:
    """Where libpython lies, which the Python backend's stub is linked with."""
    directory, name = sysconfig.get_config_vars("LIBDIR", "INSTSONAME")
    library = Path(str(directory)) / str(name)
    if not library.exists():
        raise PreconditionError(
            f"Triton's Python backend needs {library.name}, which is not in {library.parent}",
            hint=f"install libpython{_PYTHON}, or a Python {_PYTHON} that was built with --enable-shared",
        )
    return (library.parent,)


def prepare_backends(files: TritonFiles, target: Path) -> Path:
    """A copy of the backends (a few MB) with the stub for this Python in it, made when it lacks. Gives its directory.

    Without a stub to add, the backends are used where they are.
    """
    if files.stub is None:
        return files.backends
    if _same(files.stub, target / "python" / files.stub.name) and all(
        _same(path, target / path.relative_to(files.backends)) for path in _files_below(files.backends)
    ):
        return target  # needs no space on a disk that may be full
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(files.backends, target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(files.stub, target / "python" / files.stub.name)
    return target


def _files_below(directory: Path) -> list[Path]:
    """All but what Python writes there itself."""
    return [path for path in sorted(directory.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def _same(source: Path, copy: Path) -> bool:
    if not copy.exists():
        return False
    ours, theirs = source.stat(), copy.stat()
    return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def memory_prefix(data_dir: Path) -> str:
    """How the names of this agent's shared memory regions start, so that leftovers are known."""
    return f"aimesh_{hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]}"


def trace_file(data_dir: Path) -> Path:
    """Where Triton writes traces of the models that are traced: this name, a dot and a number."""
    return data_dir / "triton" / "traces" / "t"


def command(settings: AgentSettings, server: Path, backends: Path, secret: str) -> list[str]:
    """Triton's command line. `secret` opens the calls that change what it serves.

    Everybody on this machine can read a command line: it keeps out who comes over the network.
    """
    triton, python = settings.triton, "--backend-config=python,"
    # Triton's REST and metrics servers know no TLS.
    plain = "127.0.0.1" if settings.tls.on else triton.listen
    return [
        str(server),
        f"--id={settings.node_id}",
        f"--model-repository={settings.data_dir / 'repository'}",
        "--model-control-mode=explicit",
        # Strict, one model that failed or was unloaded would make the whole server "not ready" to every client.
        "--strict-readiness=false",
        f"--backend-directory={backends}",
        f"{python}shm-region-prefix-name={memory_prefix(settings.data_dir)}",
        f"{python}stub-timeout-seconds={max(30, int(triton.start_timeout_s))}",
        f"--grpc-address={triton.listen}",
        f"--grpc-port={triton.grpc_port}",
        f"--http-address={plain}",
        f"--http-port={triton.http_port}",
        f"--metrics-address={plain}",
        f"--metrics-port={triton.metrics_port}",
        *_tls_flags(settings.tls),
        f"--grpc-restricted-protocol={_RESTRICTED}:{SECRET_KEY}={secret}",
        f"--http-restricted-api={_RESTRICTED}:{SECRET_KEY}={secret}",
        # Clients that check their connections often are welcome, as at every server of the mesh.
        "--grpc-http2-min-recv-ping-interval-without-data=5000",
        "--grpc-http2-max-ping-strikes=0",
        f"--exit-timeout-secs={max(1, round(settings.drain_s))}",
        "--log-format=ISO8601",
        # Nothing is traced until a model's own setting says so, at run time; the place can only be said here.
        f"--trace-config=triton,file={trace_file(settings.data_dir)}",
        "--trace-config=triton,log-frequency=1",
        "--trace-config=rate=1",
    ]


def startup_models(names: Collection[str]) -> list[str]:
    """What makes Triton load models before it opens its ports. One that fails is left out, and no reason to exit."""
    return ["--exit-on-error=false", *(f"--load-model={name}" for name in sorted(names))] if names else []


def _tls_flags(tls: TlsSettings) -> list[str]:
    """Triton reads the files once, as it starts."""
    if not tls.on:
        return []
    return [
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={tls.cert}",
        f"--grpc-server-key={tls.key}",
        f"--grpc-root-cert={tls.ca}",
    ]


def fingerprint(settings: AgentSettings, files: TritonFiles, environ: Mapping[str, str]) -> str:
    """Of everything that a Triton was started with, but for its secret and what is in the files of its certificate.

    Equal for two agents exactly when one may go on with the Triton of the other. Blocks on the disk.
    """
    paths = [files.server, *(path for path in (files.stub,) if path), *_files_below(files.backends)]
    facts = {
        "command": command(settings, files.server, files.backends, ""),
        "files": [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths],
        "environment": sorted(
            (key, value)
            for key, value in environment(environ, files.libraries).items()
            if key.startswith(("CUDA_", "LD_", "NVIDIA_", "OMP_", "PYTHON"))
        ),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def environment(base: Mapping[str, str], libraries: tuple[Path, ...]) -> dict[str, str]:
    """Triton's environment: the agent's, with the libraries first on LD_LIBRARY_PATH.

    CUDA numbers GPUs by speed unless told otherwise, NVML and so the agent by bus.
    """
    paths = [str(path) for path in libraries]
    if base.get("LD_LIBRARY_PATH"):
        paths.append(base["LD_LIBRARY_PATH"])
    return {**base, "LD_LIBRARY_PATH": ":".join(paths), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def check_ports(settings: AgentSettings) -> None:
    """Raises ExhaustedError naming the setting and the port when another program listens on one of Triton's ports."""
    triton, plain = settings.triton, "127.0.0.1" if settings.tls.on else settings.triton.listen
    for key, host in (("grpc_port", triton.listen), ("http_port", plain), ("metrics_port", plain)):
        port = int(getattr(triton, key))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ExhaustedError(
                    f"Triton cannot listen on {host}:{port}: {error.strerror}",
                    hint=f"set agent.triton.{key} to a free port, or end the program that has it (see: ss -ltnp)",
                    reason="PORT_TAKEN",
                ) from None
