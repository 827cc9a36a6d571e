"""Checks of the machine: GPUs, ports, limits, disk, memory."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

from meshkit.errors import ExhaustedError
from tools.doctor.finding import Finding, fail, ok, warn

GIB = 1 << 30
LEAST_FILES = 4096


def gpus() -> Finding:
    """None is a normal case; a broken driver is not."""
    try:
        import pynvml
    except ImportError:
        return warn("nvidia-ml-py is not installed: GPUs are not seen", "pip install 'aimesh[agent]'")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return ok("no GPU: no NVIDIA driver is installed; models run on the CPU")
    except pynvml.NVMLError as error:
        return warn(f"the NVIDIA driver is broken: {error}", "reinstall the driver, or look at: nvidia-smi")
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [_gpu(pynvml, handle) for handle in handles]
    except pynvml.NVMLError as error:
        return warn(f"a GPU cannot be read: {error}", "look at: nvidia-smi; a reset or a reboot may be due")
    finally:
        pynvml.nvmlShutdown()
    return ok(", ".join(names) or "no GPU; models run on the CPU")


def ports() -> Finding:
    """What `aimesh up` would listen on."""
    from tools.local.layout import FIRST_BASE, Layout
    from tools.local.ports import claim_any
    from tools.local.record import default_state_dir

    try:
        layout, claimed = claim_any(Layout(default_state_dir(os.environ), FIRST_BASE, nodes=3))
    except ExhaustedError as error:
        return fail(error.message, error.hint)
    claimed.close()
    return ok(f"free from {layout.port_base} on")


def file_limit() -> Finding:
    """Every connection is a file."""
    return judge_file_limit(*resource.getrlimit(resource.RLIMIT_NOFILE))


def judge_file_limit(soft: int, hard: int) -> Finding:
    """A finding for the soft and hard limit of open files; -1 is no limit."""
    if soft in (-1, resource.RLIM_INFINITY) or soft >= LEAST_FILES:
        return ok(f"{'no limit' if soft in (-1, resource.RLIM_INFINITY) else soft} open files")
    raise_it = (
        f"ulimit -n {LEAST_FILES}"
        if hard < 0 or hard >= LEAST_FILES
        else f"raise nofile to {LEAST_FILES} in /etc/security/limits.conf"
    )
    return fail(f"{soft} open files (hard limit {hard}); a mesh needs {LEAST_FILES}", raise_it)


def disk() -> Finding:
    """Room for models."""
    from tools.local.record import default_state_dir

    place = default_state_dir(os.environ)
    while not place.exists():
        place = place.parent
    return judge_disk(shutil.disk_usage(place).free, place)


def judge_disk(free: int, place: Path) -> Finding:
    """A finding for the bytes that are free."""
    seen = f"{free / GIB:.1f} GiB free in {place}"
    if free < GIB:
        return fail(seen, "free some, or name another place: aimesh up --state-dir DIR")
    if free < 5 * GIB:
        return warn(seen, "enough for the demo; models of some GB need more")
    return ok(seen)


def memory() -> Finding:
    """Room for Triton and models."""
    from tools.local.machine import machine_size

    return judge_memory(*machine_size())


def judge_memory(size: int, cores: float) -> Finding:
    """A finding for the bytes of memory and the cores."""
    seen = f"{size / GIB:.1f} GiB memory, {cores:g} cores"
    if size < 2 * GIB:
        return fail(seen, "a mesh needs 2 GiB at least")
    if size < 4 * GIB or cores < 2:
        return warn(seen, "enough for one node: aimesh up --nodes 1")
    return ok(seen)


def _gpu(pynvml: object, handle: object) -> str:
    name = pynvml.nvmlDeviceGetName(handle)  # type: ignore[attr-defined]
    size = pynvml.nvmlDeviceGetMemoryInfo(handle).total  # type: ignore[attr-defined]
    return f"{name} ({size / GIB:.0f} GiB)"
