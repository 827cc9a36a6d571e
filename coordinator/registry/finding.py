"""Finding versions in the state, and what kind they are."""

from __future__ import annotations

from aimesh.registry.v1 import registry_pb2
from coordinator.state import State
from meshkit.errors import NotFoundError, PreconditionError
from meshkit.names import version_key


def find_version(state: State, name: str, version: str = "") -> registry_pb2.ModelVersion:
    """The version named, or the newest. Raises NotFoundError saying which ones there are."""
    known = sorted((v for n, v in state.versions if n == name), key=version_key)
    if not known:
        raise NotFoundError(f"model {name!r} does not exist", hint="see: aimesh models list", reason="MODEL_NOT_FOUND")
    if version and version not in known:
        raise NotFoundError(
            f"model {name!r} has no version {version!r}", hint=f"it has {', '.join(known)}", reason="VERSION_NOT_FOUND"
        )
    return state.versions[(name, version or known[-1])]


def versions_of(state: State, name: str) -> list[registry_pb2.ModelVersion]:
    """All versions of a name, in no order."""
    return [version for (held, _), version in state.versions.items() if held == name]


def kind_of(version: registry_pb2.ModelVersion) -> registry_pb2.Kind.ValueType:
    """What a version is; one that does not say is a model."""
    return version.kind or registry_pb2.KIND_MODEL


def word(kind: registry_pb2.Kind.ValueType) -> str:
    """A kind for people: model or prompt."""
    return registry_pb2.Kind.Name(kind).removeprefix("KIND_").lower()


def check_is_model(version: registry_pb2.ModelVersion) -> None:
    """Raises PreconditionError for a prompt, which no node runs."""
    if kind_of(version) == registry_pb2.KIND_PROMPT:
        raise PreconditionError(
            f"{version.name}:{version.version} is a prompt, and prompts run on no node",
            hint=f"programs fetch its text: aimesh prompts get {version.name}:{version.version}",
            reason="WRONG_KIND",
        )
