"""Under which name and number a job's result is recorded. Pure."""

from __future__ import annotations

from aimesh.training.v1 import training_pb2
from coordinator.registry.finding import versions_of
from coordinator.state import State
from meshkit.names import version_key

FIRST = "1.0.0"


def next_version(state: State, spec: training_pb2.JobSpec, *, breaks: bool = False) -> str:
    """NAME:VERSION: as the user said, else the next minor version after the newest; the next major one when it breaks
    callers of that."""
    name = spec.output.model or spec.name
    if spec.output.version:
        return f"{name}:{spec.output.version}"
    known = [version_key(version.version) for version in versions_of(state, name)]
    if not known:
        return f"{name}:{FIRST}"
    major, minor = max(known)[:2]
    return f"{name}:{major + 1}.0.0" if breaks else f"{name}:{major}.{minor + 1}.0"
