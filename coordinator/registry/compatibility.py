"""Which nodes can run a version: its runtime, the library behind it, Triton, and the size of the hardware.

What has no room at this moment is placement's business; here it is what could never run.
"""

from __future__ import annotations

import re

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2

GIB = 1024**3
LEAST_MEASURED = 64 * 1024**2
"""A version that was measured counts with so many bytes of memory at least: a request may need what no load did."""
_RELEASE = re.compile(r"v?(\d+(?:\.\d+)*)")


def compatible(
    version: registry_pb2.ModelVersion, node: membership_pb2.Node, measured: registry_pb2.Measured | None = None
) -> registry_pb2.NodeCompatibility:
    """Whether a node can run a version, with every reason why not; what was measured counts before the estimate."""
    need, largest = version.requirements, max((gpu.memory_bytes for gpu in node.capacity.gpus), default=0)
    memory, gpu_memory = needed(version, measured)
    reasons = [message for _, message in _software(version, node)]
    for label, value in sorted(need.node_labels.items()):
        if node.labels.get(label) != value:
            reasons.append(f"label {label} is {node.labels.get(label, '')!r}, not {value!r}")
    if memory > node.capacity.memory_bytes:
        reasons.append(f"needs {memory / GIB:.2f} GiB of memory, it has {node.capacity.memory_bytes / GIB:.2f} GiB")
    if gpu_memory > largest:
        has = f"its largest has {largest / GIB:.2f} GiB" if largest else "it has none"
        reasons.append(f"needs a GPU with {gpu_memory / GIB:.2f} GiB, {has}")
    return registry_pb2.NodeCompatibility(
        node=node.id,
        compatible=not reasons,
        runtime_version=node.runtimes.get(version.runtime, ""),
        triton_version=node.report.triton.version,
        gpu_memory_bytes=largest,
        memory_bytes=node.capacity.memory_bytes,
        reasons=reasons,
    )


def needed(version: registry_pb2.ModelVersion, measured: registry_pb2.Measured | None) -> tuple[int, int]:
    """Memory and GPU memory of one replica in bytes: as measured, else as estimated."""
    estimate, found = version.requirements, measured or registry_pb2.Measured()
    memory = max(LEAST_MEASURED, found.memory_bytes) if found.memory_bytes else estimate.memory_bytes
    gpu_memory = found.gpu_memory_bytes if estimate.gpu_memory_bytes else 0
    return memory, gpu_memory or estimate.gpu_memory_bytes


def software_limit(version: registry_pb2.ModelVersion, node: membership_pb2.Node) -> tuple[str, str] | None:
    """The first thing in a node's software that keeps a version off it: (runtime or triton, why); None when it fits."""
    return next(iter(_software(version, node)), None)


def _software(version: registry_pb2.ModelVersion, node: membership_pb2.Node) -> list[tuple[str, str]]:
    """What does not say what it has is taken to have it: it is tried, and says why it cannot."""
    need, found = version.requirements, []
    if node.runtimes:
        has = node.runtimes.get(version.runtime)
        if has is None:
            found.append(("runtime", f"has no runtime {version.runtime}"))
        elif is_older(has, need.runtime_version):
            found.append(("runtime", f"runtime {version.runtime} is {has}, needs {need.runtime_version}"))
    triton = node.report.triton.version
    if is_older(triton, need.triton_version):
        found.append(("triton", f"Triton is {triton}, needs {need.triton_version}"))
    return found


def is_older(version: str, least: str) -> bool:
    """Whether a program's version is below another, by their leading numbers: 2.9.1+cu128 is 2.9.1, and 2.9 is 2.9.0.

    What is empty or begins with no number is not known to be older.
    """
    has, needs = _release(version), _release(least)
    if has is None or needs is None:
        return False
    length = max(len(has), len(needs))
    return has + [0] * (length - len(has)) < needs + [0] * (length - len(needs))


def _release(version: str) -> list[int] | None:
    match = _RELEASE.match(version)
    return [int(part) for part in match[1].split(".")] if match else None
