"""Every check, in the order that they are made."""

from __future__ import annotations

from tools.doctor import machine, software
from tools.doctor.finding import Check
from tools.doctor.triton_start import triton_start

CHECKS: tuple[Check, ...] = (
    Check("Python", software.python_version),
    Check("NumPy", software.numpy_version),
    Check("glibc", software.glibc_version),
    Check("libpython", software.libpython),
    Check("etcd", software.etcd_version),
    Check("Envoy", software.envoy_version),
    Check("Triton", software.triton_files),
    Check("Triton start", triton_start),
    Check("GPUs", machine.gpus),
    Check("ports", machine.ports),
    Check("file limit", machine.file_limit),
    Check("disk", machine.disk),
    Check("memory", machine.memory),
)
