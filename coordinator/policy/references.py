"""Checks of what a policy says about other deployments: they exist, and fallbacks lead nowhere in a circle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import VersionKey
from meshkit.errors import InvalidInputError

Deployments = Mapping[str, routing_pb2.Deployment]
Versions = Mapping[VersionKey, registry_pb2.ModelVersion]


def reached(deployment: routing_pb2.Deployment, deployments: Deployments) -> set[str]:
    """Every deployment that this one's fallbacks and mirror lead to, by their fallbacks and mirrors in turn."""
    found: set[str] = set()
    ahead = list(_named(deployment))
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += _named(deployments[name]) if name in deployments else ()
    return found


def check_references(deployment: routing_pb2.Deployment, deployments: Deployments) -> None:
    """`deployments` are the others, as they are. Raises InvalidInputError."""
    for field, names in (("fallbacks", deployment.policy.fallbacks), ("mirror", _mirror(deployment))):
        for name in names:
            if name not in deployments:
                others = ", ".join(sorted(deployments.keys() - {deployment.name})) or "none"
                raise InvalidInputError(
                    f"policy.{field}: {name!r} is not deployed",
                    hint=f"deployed are: {others}; or run: aimesh deploy {name}",
                    reason="BAD_POLICY",
                )
    circle = _circle(deployment.name, {**deployments, deployment.name: deployment})
    if circle:
        raise InvalidInputError(
            f"policy.fallbacks leads in a circle: {' -> '.join(circle)}",
            hint="leave one of them out of the policies",
            reason="FALLBACK_CIRCLE",
        )


def check_signatures(versions: Versions, deployment: routing_pb2.Deployment, deployments: Deployments) -> None:
    """Raises InvalidInputError when a fallback or a mirror does not take the requests that are meant for this model."""
    for name in _named(deployment):
        for ours in _signatures(versions, deployment):
            for theirs in _signatures(versions, deployments[name]):
                _check_taken(deployment.name, ours, name, theirs)


def _check_taken(name: str, ours: _Inputs, other: str, theirs: _Inputs) -> None:
    unknown = sorted(tensor for tensor, (kind, _) in ours.items() if tensor not in theirs or theirs[tensor][0] != kind)
    missing = sorted(tensor for tensor, (_, optional) in theirs.items() if tensor not in ours and not optional)
    if unknown or missing:
        what = [f"does not take input {tensor!r} as it is" for tensor in unknown]
        what += [f"needs input {tensor!r}" for tensor in missing]
        raise InvalidInputError(
            f"{other!r} cannot take the requests of {name!r}: it {', '.join(what)}",
            hint="fallbacks and mirrors are sent the same tensors; name a deployment with the same inputs",
            reason="BAD_POLICY",
        )


_Inputs = Mapping[str, tuple[int, bool]]
"""Type, and whether it may be left out, of each input by name."""


def _signatures(versions: Versions, deployment: routing_pb2.Deployment) -> list[_Inputs]:
    recorded = (versions.get((deployment.name, target.version)) for target in deployment.targets)
    return [
        {each.name: (each.data_type, each.optional) for each in version.signature.inputs}
        for version in recorded
        if version is not None and version.signature.inputs
    ]


def _circle(start: str, deployments: Deployments) -> list[str]:
    """The shortest way from a deployment over fallbacks back to itself; empty when there is none."""
    ways, seen = [[start]], {start}
    for way in ways:  # grows while it is walked: the shortest ways come first
        for name in deployments[way[-1]].policy.fallbacks if way[-1] in deployments else ():
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def _named(deployment: routing_pb2.Deployment) -> list[str]:
    return [*deployment.policy.fallbacks, *_mirror(deployment)]


def _mirror(deployment: routing_pb2.Deployment) -> Iterable[str]:
    """Another deployment that gets copies; a mirror may also be a version of this one."""
    return [deployment.policy.mirror.deployment] if deployment.policy.mirror.deployment else []
